"""Rankings as files that TREC's tools read (trec_eval, pytrec_eval, ir_measures, ...).

    t2v.run, t2v.qrels    queries are captions, documents are clips
    v2t.run, v2t.qrels    queries are clips, documents are the captions of one clip each, scored by the best of them

A run has lines `query Q0 document rank score tag`, qrels have lines `query 0 document 1`. A document of v2t has the id of
its clip: the group is what we rank, so its success and reciprocal rank are ours. White space and `%` in ids become `%XX`, as
in a URL. Clips without embedding are in the qrels and in no run: average over all queries (`trec_eval -c`). Of equal scores
trec_eval takes its own order (by document id) where we count the mean; the tools agree where there are no ties.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from waver.evaluation.top_clips import TopClips
from waver.tools.files import write_text

TREC_DEPTH = 1000
"""Answers of each query in a run: what trec_eval looks at by default."""


def write_trec(
    folder: Path,
    *,
    clip_ids: Sequence[str],
    text_ids: Sequence[str],
    clip_of_text: Sequence[int],
    t2v: TopClips,
    v2t: TopClips,
    tag: str,
) -> None:
    """Writes the four files.

    Args:
        folder: is made where it is missing; files of the same names are replaced.
        clip_ids: the gallery, in order.
        text_ids: of the queries from text to video.
        clip_of_text: the clip of each text.
        t2v: what each text finds.
        v2t: what each clip finds: clips whose captions it takes for its own.
        tag: name of the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clips, texts = [_id(clip) for clip in clip_ids], [_id(text) for text in text_ids]
    right = [clips[clip] for clip in clip_of_text]
    for direction, queries, documents, top in (("t2v", texts, right, t2v), ("v2t", clips, clips, v2t)):
        qrels = (f"{query} 0 {document} 1\n" for query, document in zip(queries, documents, strict=True))
        write_text(folder / f"{direction}.qrels", "".join(qrels))
        write_text(folder / f"{direction}.run", "".join(_run(queries, clips, top, _id(tag))))


def _run(queries: Sequence[str], clips: Sequence[str], top: TopClips, tag: str) -> list[str]:
    """The lines of a run; nine digits tell any two float32 apart."""
    return [
        f"{query} Q0 {clips[clip]} {rank} {score:.9g} {tag}\n"
        for query, found, scores in zip(queries, top.clips.tolist(), top.scores.tolist(), strict=True)
        for rank, (clip, score) in enumerate(zip(found, scores, strict=True), start=1)
        if clip >= 0
    ]


def _id(name: str) -> str:
    """A word: fields of a line are parted by white space."""
    return re.sub(r"[\s%]", lambda found: "".join(f"%{byte:02X}" for byte in found[0].encode()), name)
