"""Exports the embeddings of the captions and clips of a split, which an evaluation of a run has computed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int

from waver.evaluation.evaluate import Evaluation
from waver.evaluation.gallery import Gallery
from waver.evaluation.metrics import retrieval_metrics
from waver.evaluation.protocols import Protocol
from waver.evaluation.ranking import rank_similarity
from waver.model.interaction import XCLIP_TEMPERATURE, mean_frame, sentence
from waver.search.export import readme
from waver.search.export.folder import Source, check_space, replace_folder
from waver.search.export.formats import Items, write_items
from waver.search.export.items import items_of
from waver.tools.files import write_text

_README = """\
# Embeddings of {name}, {split} split

`waver export` wrote these files from the checkpoint {checkpoint}.
The model compares text and video by the interaction `{kind}`. `export.json` has all metrics and the protocol in a form for
programs. The protocol of the evaluation:

{protocol}
`videos.{format}` has the embeddings of {clips} clips, sorted by id. The gallery has {gallery} clips.{missing}

| field | shape | |
|---|---|---|
| `id` | ({clips},) | text: id of the clip{beside_videos} |
{videos}
`texts.{format}` has the embeddings of the {captions} captions of the gallery, sorted by clip.

| field | shape | |
|---|---|---|
| `id` | ({captions},) | text: id of the caption, `<clip id>#<number>`{beside_texts} |
| `caption`, `style` | ({captions},) | text: the caption, and the style of its writer if it is known |
| `clip_id` | ({captions},) | text: id of its clip |
| `clip` | ({captions},) | row of its clip in `videos`; -1 if the clip could not be decoded |
{texts}
## Scores and R@1

{scores}{databases}"""
_SCORES = """\
This loads the files:

```python
{load}```

This computes the score of every caption with every clip, as `waver evaluate` does:

```python
{code}```

This prints the R@1 from text to video, in percent; `waver evaluate` has {recall!r}. Scores that differ by at most 1e-7
count as equal, since waver computes in float32, which has no finer resolution. A caption whose clip could not be decoded is
a miss.

```python
{recall_code}```

{excused}If only the pooled vectors are compared, by their cosines, the R@1 is {pooled:.1f} instead of {recall:.1f}.

"""
_EXCUSED = """\
The split has duplicates: clips or captions that occur twice. `excused.csv` lists the pairs (rows of `texts` and `videos`)
that are right because of them, although the clip is not that of the caption. If these pairs do not count as wrong, the R@1
is {recall:.1f}, the variant `excused` of `waver evaluate`. To compute it, run this line before the R@1:

```python
scores[tuple(np.loadtxt("excused.csv", int, delimiter=",", skiprows=1, ndmin=2).T)] = -np.inf
```

"""
_NO_SCORES = """\
{xti}

The R@1 from text to video is {recall:.1f}. If only the pooled vectors are compared, by their cosines, it is {pooled:.1f}.

This loads the files:

```python
{load}```

"""


@dataclass(frozen=True)
class EvaluatedRun:
    """What an export writes of a run."""

    name: str
    checkpoint: str
    """Path of the checkpoint."""
    similarity: str
    """Name of the interaction."""
    evaluation: Evaluation
    """The evaluation, with the embeddings of captions and clips."""
    queries: Gallery
    """Captions and clips of the split."""
    result: Mapping[str, Any]
    """See `waver.runs.results.result_of`."""
    excused: Int[torch.Tensor, "pairs 2"] | None
    """See `EvaluationOptions.excused`."""


def write_run(run: EvaluatedRun, folder: Path, source: Source) -> None:
    """Writes `texts.<format>`, `videos.<format>`, README.md, export.json and, if there are duplicates, `excused.csv`.

    Args:
        run: the run.
        folder: receives the files; an earlier export of the same source is replaced, see `check_folder`.
        source: what is exported.

    Raises:
        ExportError: if the disk is full.
    """
    texts, videos = _texts(run), _videos(run)
    check_space(folder, texts.num_bytes + videos.num_bytes)
    pooled = _pooled_metrics(run)
    content = {
        "name": run.name,
        "checkpoint": run.checkpoint,
        "similarity": run.similarity,
        "num_texts": len(texts.names),
        "num_videos": len(videos.names),
        "missing_clips": list(run.evaluation.missing_clips),
        "metrics": run.evaluation.metrics,
        "variants": run.evaluation.variants,
        "pooled_metrics": pooled,
        "protocol": run.result["protocol"],
        "leaky": run.result["leaky"],
    }
    with replace_folder(folder, source, content) as part:
        write_items(part, "texts", texts, source.format)
        write_items(part, "videos", videos, source.format)
        pairs = _excused_rows(run)
        if len(pairs):
            write_text(part / "excused.csv", "text,video\n" + "".join(f"{text},{video}\n" for text, video in pairs))
        said = _scores(run, source, pooled["t2v/R@1"], excused=len(pairs) > 0)
        write_text(part / "README.md", _readme(run, source, texts, videos, said))


def _row_of_clip(run: EvaluatedRun) -> np.ndarray:
    """Returns, for each clip of the gallery, its row in `videos`; -1 if it was not decoded."""
    missing = set(run.evaluation.missing_clips)
    there = np.array([clip not in missing for clip in run.evaluation.clip_ids])
    return np.where(there, there.cumsum() - 1, -1)


def _texts(run: EvaluatedRun) -> Items:
    queries, evaluation = run.queries, run.evaluation
    assert evaluation.text is not None, "evaluate with keep_text"
    clips = queries.clip_of_text.numpy()
    names = pa.table(
        {
            "id": pa.array(queries.text_ids, pa.string()),
            "caption": pa.array(queries.texts, pa.string()),
            "style": pa.array(queries.styles, pa.string()),
            "clip_id": pa.array([queries.clip_ids[clip] for clip in clips], pa.string()),
            "clip": pa.array(_row_of_clip(run)[clips], pa.int64()),
        }
    )
    return items_of(evaluation.text, names, "texts")


def _videos(run: EvaluatedRun) -> Items:
    evaluation = run.evaluation
    assert evaluation.video is not None, "evaluate with keep_video"
    missing = set(evaluation.missing_clips)
    ids = [clip for clip in evaluation.clip_ids if clip not in missing]
    return items_of(evaluation.video, pa.table({"id": pa.array(ids, pa.string())}), "videos")


def _excused_rows(run: EvaluatedRun) -> np.ndarray:
    """Returns excused pairs as rows of `texts` and `videos`, (pairs, 2); clips without embedding are left out."""
    if run.excused is None:
        return np.empty((0, 2), np.int64)
    texts, clips = run.excused.cpu().numpy().T
    videos = _row_of_clip(run)[clips]
    return np.stack([texts, videos], axis=1)[videos >= 0]


def _pooled_metrics(run: EvaluatedRun) -> dict[str, float]:
    """Returns the metrics of the pooled vectors, compared by their cosines."""
    evaluation, rows = run.evaluation, torch.from_numpy(_row_of_clip(run))
    assert evaluation.text is not None
    assert evaluation.video is not None
    cosines = (sentence(evaluation.text).float() @ mean_frame(evaluation.video).float().T).cpu()
    ranks = rank_similarity(cosines[:, rows.clamp(min=0)], run.queries.clip_of_text, rows >= 0)
    return retrieval_metrics(ranks)


def _scores(run: EvaluatedRun, source: Source, pooled: float, *, excused: bool) -> str:
    """Returns the section of the README that computes scores and R@1."""
    load, recall = readme.load_code(source.format, ["texts", "videos"]), run.evaluation.metrics["t2v/R@1"]
    code = readme.score_code(run.similarity, "videos", XCLIP_TEMPERATURE)
    if not code:
        return _NO_SCORES.format(xti=readme.XTI, load=load, recall=recall, pooled=pooled)
    said = _EXCUSED.format(recall=run.evaluation.variants["excused"]["t2v/R@1"]) if excused else ""
    return _SCORES.format(
        load=load, code=code, recall=recall, recall_code=readme.recall_code(), excused=said, pooled=pooled
    )


def _readme(run: EvaluatedRun, source: Source, texts: Items, videos: Items, scores: str) -> str:
    missing, format = run.evaluation.missing_clips, source.format
    lines = Protocol(**run.result["protocol"]).lines()
    return _README.format(
        name=run.name,
        split=run.evaluation.split,
        checkpoint=run.checkpoint,
        kind=run.similarity,
        protocol="".join(f"    {line}\n" for line in lines),
        format=format,
        clips=len(videos.names),
        missing=" `export.json` names those that could not be decoded (`missing_clips`)." if missing else "",
        gallery=run.evaluation.gallery_size,
        captions=len(texts.names),
        beside_videos=readme.beside("videos", format),
        beside_texts=readme.beside("texts", format),
        videos=readme.arrays_table(len(videos.names), videos.num_tokens, videos.width, texts=False, format=format),
        texts=readme.arrays_table(len(texts.names), texts.num_tokens, texts.width, texts=True, format=format),
        scores=scores,
        databases=readme.databases("texts", "videos", exact=run.similarity == "dp"),
    )
