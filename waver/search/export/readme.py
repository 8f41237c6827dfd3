"""Writes parts of the README.md of an export: tables of its files, and Python that computes scores without waver."""

from collections.abc import Mapping, Sequence

from waver.search.export.formats import Format

_LOAD: Mapping[Format, str] = {
    "npz": """\
import numpy as np

{names} = (dict(np.load(f"{{name}}.npz")) for name in {files})
""",
    "safetensors": """\
import numpy as np
from safetensors.numpy import load_file

{names} = (load_file(f"{{name}}.safetensors") for name in {files})
""",
    "parquet": """\
import numpy as np
import pyarrow.parquet as pq

tables = (pq.read_table(f"{{name}}.parquet") for name in {files})
{names} = ({{key: np.stack(table[key].to_numpy()) for key in table.column_names}} for table in tables)
for items in ({all}):
    items["values"] = items["values"].reshape(*items["mask"].shape, -1)
""",
}

_UNIT = """\
unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True).clip(1e-12)
"""
_DOT = """\
scores = texts["pooled"].astype(float) @ {videos}["pooled"].T
"""
_TOKEN_WISE = f"""\
{_UNIT}frames, valid, b = unit({{videos}}["values"].astype(float)), {{videos}}["mask"][..., None], {{videos}}["weights"]
words = [(unit(w[m]), a[m]) for w, m, a in zip(texts["values"], texts["mask"], texts["weights"])]
cosines = ((np.where(valid, frames @ w.T, -1), a) for w, a in words)  # (videos, frames, words) of each text
scores = np.stack([(c.max(1) @ a + (c.max(2) * b).sum(1)) / 2 for c, a in cosines])
"""
_XCLIP = f"""\
{_UNIT}frames, valid, mean = unit({{videos}}["values"].astype(float)), {{videos}}["mask"], {{videos}}["pooled"].astype(float)


def attend(cosines, axis, valid=True):
    weights = np.exp((cosines - 1) / {{temperature}}) * valid
    return (weights * cosines).sum(axis) / weights.sum(axis)


def compare(words, sentence):
    c = frames @ words.T  # (videos, frames, words)
    fine = (attend(attend(c, 1, valid[..., None]), 1) + attend(attend(c, 2), 1, valid)) / 2
    return (mean @ sentence + attend(mean @ words.T, 1) + attend(frames @ sentence, 1, valid) + fine) / 4


scores = np.stack([compare(unit(w[m]), s) for w, m, s in zip(texts["values"], texts["mask"], texts["pooled"])])
"""
_RECALL = """\
right = scores[np.arange(len(scores)), texts["clip"]][:, None]
hits = (scores <= right + 1e-7).all(1) / (abs(scores - right) <= 1e-7).sum(1)  # ties share a hit
print(100 * np.mean(hits * (texts["clip"] >= 0)))
"""

_ARRAYS = """\
| `values` | ({number}, {tokens}, {width}) | embedding of each {token}; 0 after the last one{flat} |
| `mask` | ({number}, {tokens}) | true where there is a {token} |
| `weights` | ({number}, {tokens}) | importance of each {token}; sums to 1 |
| `pooled` | ({number}, {width}) | a unit vector for the whole {item}: {pooling} |
"""
_LANCE = (
    'import lancedb; table = lancedb.connect("lancedb").create_table("{videos}", '
    '[{{"row": row, "vector": v}} for row, v in enumerate({videos}["pooled"])]); '
    'found = [table.search(v).distance_type("cosine").limit(10).to_list() for v in {queries}["pooled"]]'
)
TEXT_POOLING = "the last token, normalised"
VIDEO_POOLING = "the mean of the normalised frames, normalised"

XTI = (
    "No product of embeddings gives the score of this model (`xti`): a transformer reads each pair of text and video, so "
    "only waver can compute it."
)


def score_code(interaction: str, videos: str, temperature: float) -> str:
    """Returns Python that computes `scores` (texts, videos) from two mappings of arrays; empty for xti.

    Args:
        interaction: name of the interaction, see `waver.model.interaction.INTERACTIONS`.
        videos: name of the mapping that has the videos; the other one is `texts`.
        temperature: that of `xclip`.
    """
    code = {"dp": _DOT, "ti": _TOKEN_WISE, "wti": _TOKEN_WISE, "xclip": _XCLIP, "xti": ""}[interaction]
    return code.format(videos=videos, temperature=temperature)


def load_code(format: Format, files: Sequence[str]) -> str:
    """Returns Python that loads files of items, each into a mapping of arrays that has the name of the file."""
    if len(files) == 1:
        return _LOAD[format].format(
            names=f"({files[0]},)", files=f"({files[0]!r},)".replace("'", '"'), all=f"{files[0]},"
        )
    names = ", ".join(files)
    return _LOAD[format].format(names=names, files=str(tuple(files)).replace("'", '"'), all=names)


def arrays_table(number: int, tokens: int, width: int, *, texts: bool, format: Format) -> str:
    """Returns the rows of a Markdown table that describe the arrays of a file."""
    return _ARRAYS.format(
        number=number,
        tokens=tokens,
        width=width,
        token="token" if texts else "frame",
        item="caption" if texts else "video",
        pooling=TEXT_POOLING if texts else VIDEO_POOLING,
        flat="; a flat list of all numbers" if format == "parquet" else "",
    )


def databases(queries: str, videos: str, *, exact: bool) -> str:
    """Returns the section on vector databases; `exact`: whether the model itself compares the pooled vectors (`dp`)."""
    said = (
        "The model itself compares the pooled vectors, so an exact search for them returns the ranking of the model."
        if exact
        else "A vector database compares only the pooled vectors, and the model compares tokens, so this search is an "
        "approximation. Let the database find some hundred candidates, and sort them by the scores of the model."
    )
    lance = _LANCE.format(queries=queries, videos=videos)
    return f"""\
## Vector databases

{said} With FAISS:

```python
import faiss; found, rows = faiss.knn({queries}["pooled"], {videos}["pooled"], 10, faiss.METRIC_INNER_PRODUCT)
```

With LanceDB:

```python
{lance}
```

`rows` of FAISS and `row` of LanceDB are rows of `{videos}`.
"""


def recall_code() -> str:
    """Returns Python that prints the t2v R@1 from `scores` and `texts`."""
    return _RECALL


def beside(file: str, format: Format) -> str:
    """Returns where the text of a file is, for a format that can hold only numbers; empty for the others."""
    return f"; in `{file}.jsonl`, a line per row" if format == "safetensors" else ""
