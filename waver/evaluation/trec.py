"""Rankings in the format of TREC's tools (trec_eval, pytrec_eval, ir_measures, ...).

    t2v.run, t2v.qrels    queries are captions, documents are clips
    v2t.run, v2t.qrels    queries are clips, documents are groups of captions, one group per clip
    README.txt            the rule for ties, and for queries without answers

Lines of a run are `query Q0 document rank score tag`, lines of qrels `query 0 document 1`. A document of v2t has the id of
its clip and the score of its best caption: waver ranks groups, so success and reciprocal rank agree. White space and `%` in
ids become `%XX`, as in URLs. Clips without embedding are in the qrels but in no run: average over all queries (`trec_eval
-c`).

Ties: waver's R@K is the expectation over random orders of equal scores, and its rank the average one. A run lists equal
scores in the order of the gallery, which is that of the clip ids; trec_eval ignores ranks, and sorts equal scores by
document id, the last id first. So the figures agree without ties, and differ by chance with them.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from waver.evaluation.top_clips import TopClips
from waver.tools.files import write_text

TREC_DEPTH = 1000
"""Default number of answers per query in a run, as in trec_eval."""
_README = """\
Rankings of a run of waver: t2v from captions to clips, v2t from clips to the groups of captions of a clip.

    trec_eval -c -m success.1,5,10 -m recip_rank t2v.qrels t2v.run

Ties. In waver's metrics R@K is the expectation over random orders of equal scores, and the rank is the average one. The
runs list equal scores in the order of the clip ids. trec_eval does not read the ranks: it sorts equal scores by document
id, the last id first. Without ties the figures agree; with ties those of trec_eval depend on the names of the clips.

Queries without answers. Clips without embedding are in the qrels but in no run. -c counts their queries as misses, as
waver does.
"""


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
    """Writes rankings and relevance judgements in both directions.

    Args:
        folder: receives t2v.run, t2v.qrels, v2t.run, v2t.qrels and README.txt; created if missing, files are replaced.
        clip_ids: the gallery, in order.
        text_ids: ids of the captions.
        clip_of_text: index of each caption's clip.
        t2v: first clips of each caption.
        v2t: first groups of captions of each clip, by the clip of the group.
        tag: name of the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clips, texts = [_id(clip) for clip in clip_ids], [_id(text) for text in text_ids]
    relevant = [clips[clip] for clip in clip_of_text]
    for direction, queries, documents, top in (("t2v", texts, relevant, t2v), ("v2t", clips, clips, v2t)):
        qrels = (f"{query} 0 {document} 1\n" for query, document in zip(queries, documents, strict=True))
        write_text(folder / f"{direction}.qrels", "".join(qrels))
        write_text(folder / f"{direction}.run", "".join(_run(queries, clips, top, _id(tag))))
    write_text(folder / "README.txt", _README)


def _run(queries: Sequence[str], clips: Sequence[str], top: TopClips, tag: str) -> list[str]:
    """Returns the lines of a run; nine significant digits distinguish any two float32."""
    return [
        f"{query} Q0 {clips[clip]} {rank} {score:.9g} {tag}\n"
        for query, answers, scores in zip(queries, top.clips.tolist(), top.scores.tolist(), strict=True)
        for rank, (clip, score) in enumerate(zip(answers, scores, strict=True), start=1)
        if clip >= 0
    ]


def _id(name: str) -> str:
    """Escapes white space, which separates the fields of a line."""
    return re.sub(r"[\s%]", lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), name)
