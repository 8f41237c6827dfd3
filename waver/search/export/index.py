"""Exports the windows of an index."""

from pathlib import Path

from waver.model.interaction import XCLIP_TEMPERATURE
from waver.search.export import readme
from waver.search.export.folder import Source, check_folder, check_space, replace_folder
from waver.search.export.formats import Format, Items, write_items
from waver.search.export.items import streamed_items
from waver.search.search import Index, open_index
from waver.tools.files import write_text

_NAMES = ("window_id", "video_id", "path", "start_s", "end_s")

_README = """\
# Embeddings of the windows of an index

`waver export` wrote these files from the index {index}.
The model is the checkpoint {checkpoint}.
It compares text and video by the interaction `{kind}`.

`windows.{format}` has the embeddings of {number} windows, in the order of the index. `export.json` has the checkpoint, the
interaction and the number of windows in a form for programs.

| field | shape | |
|---|---|---|
| `window_id`, `video_id`, `path` | ({number},) | text: names of the window and its video, path of the video{beside} |
| `start_s`, `end_s` | ({number},) | start and end in the video, seconds; {none} for the start or the end of the video |
{arrays}
## Search

Only the model can embed a query, so this needs waver:

```python
import waver
from waver.model.interaction import sentence

text = waver.load({checkpoint!r}).embed_texts(["a man folds a paper plane"])
texts = {{"values": text.values.numpy(), "mask": text.mask.numpy(), "weights": text.weights.numpy()}}
texts["pooled"] = sentence(text).numpy()
```

This loads the windows:

```python
{load}```

{scores}
{databases}"""
_SCORES = """\
This computes the scores of the model, which `waver search` shows:

```python
{code}best = np.argsort(-scores[0])[:10]  # rows of `windows`
```
"""


def export_index(path: Path, folder: Path, format: Format) -> int:
    """Writes the windows of an index into `windows.<format>`, with a README.md; returns their number.

    Memory holds the embeddings of 1,024 windows at a time, and the weights and pooled vectors of all windows.

    Args:
        path: folder of the index.
        folder: receives the files; an earlier export of the same index in the same format is replaced.
        format: format of the file.

    Raises:
        SearchError: if there is no index, or it is damaged.
        ExportError: if the folder holds something else, or the disk is full.
    """
    index = open_index(path)
    source = Source(str(path.absolute()), None, format)
    check_folder(folder, source)
    items = _items(index)
    check_space(folder, items.num_bytes)
    kind = index.model.config.similarity.kind
    content = {"checkpoint": index.settings.checkpoint, "similarity": kind, "num_windows": len(index)}
    with replace_folder(folder, source, content) as part:
        write_items(part, "windows", items, format)
        write_text(part / "README.md", _readme(index, items, format, kind))
    return len(index)


def _items(index: Index) -> Items:
    return streamed_items(
        lambda rows: index.embeddings(range(rows.start, rows.stop)),
        index.windows.select(list(_NAMES)),
        "videos",
        index.model.config.video.max_frames,
        index.settings.embeddings.width,
    )


def _readme(index: Index, items: Items, format: Format, kind: str) -> str:
    code = readme.score_code(kind, "windows", XCLIP_TEMPERATURE)
    return _README.format(
        index=index.path,
        checkpoint=index.settings.checkpoint,
        kind=kind,
        format=format,
        number=len(index),
        beside=readme.beside("windows", format),
        none="null" if format == "parquet" else "NaN",
        arrays=readme.arrays_table(len(index), items.num_tokens, items.width, texts=False, format=format),
        load=readme.load_code(format, ["windows"]),
        scores=_SCORES.format(code=code) if code else f"{readme.XTI}\n",
        databases=readme.databases("texts", "windows", exact=kind == "dp"),
    )
