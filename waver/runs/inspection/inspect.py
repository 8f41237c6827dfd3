"""What a model does, for people to look at after an evaluation: pictures, distributions, and points for the projector.

Everything shows the same small subset, so that two steps of a run, and two runs, can be compared; but for the worst
failures, which are looked for among all queries. One worker does it while the others wait, so it is quick.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Bool, Float

from waver.data.clip_store import ClipStore
from waver.evaluation.evaluate import Evaluation
from waver.evaluation.gallery import build_gallery
from waver.knowledge.store import Knowledge
from waver.model.embeddings import Embeddings
from waver.model.student import Student
from waver.runs.inspection.distributions import pr_curve, rank_distributions, similarity_distributions
from waver.runs.inspection.embedding import EmbeddedSubset, embed_subset
from waver.runs.inspection.interaction import attention_map, interaction_map, interaction_of
from waver.runs.inspection.matrix import similarity_matrix
from waver.runs.inspection.pictures import Picture, read_thumbnails
from waver.runs.inspection.projection import Point, PointSet, one_vector, with_border
from waver.runs.inspection.settings import InspectionSettings
from waver.runs.inspection.strips import FRAME_SIZE, NUM_FRAMES, clips_of_strip, text_to_video, video_to_text
from waver.runs.inspection.subset import Subset, choose_subset, worst_queries


@dataclass(frozen=True)
class Inspection:
    """For TensorBoard. A tag shows the same query in every evaluation; those of the worst are named by their place."""

    images: dict[str, Picture]
    """See `waver.runs.inspection.pictures.to_png`."""
    histograms: dict[str, Float[np.ndarray, " values"]]
    pr_curves: dict[str, tuple[Bool[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]]
    """(labels, predictions in [0, 1])."""
    point_sets: dict[str, PointSet]
    """See `waver.runs.inspection.projection.write_projection`."""
    embedding_s: float
    """Seconds that the model took, with reading the frames of the subset."""
    drawing_s: float
    """Seconds that the rest took."""


@torch.no_grad()
def inspect_run(
    student: Student,
    evaluation: Evaluation,
    captions: pa.Table,
    store: ClipStore,
    settings: InspectionSettings,
    *,
    video: Embeddings | None = None,
    knowledge: Knowledge | None = None,
) -> Inspection:
    """Inspects a model after an evaluation; one worker calls it.

    Scores and ranks of the strips are those of the evaluation. Everything else comes from embedding the subset again, in the
    precision of the weights.

    Args:
        student: the model, as the evaluation left it.
        evaluation: with `top`, of 5 clips or more; with fewer, strips are shorter.
        captions: caption table; only rows of evaluation.split are read.
        store: its clips.
        settings: how the subset is embedded, and how much is drawn.
        video: embeddings of all clips of the gallery that are not missing, from the evaluation; None embeds the clips of the
            subset again, which takes a minute or two with a large backbone on a CPU.
        knowledge: of the clips; no attention is drawn if it is None or knows other clips only.
    """
    assert evaluation.ranks.top is not None, "evaluate with top_k"
    assert not settings.informed or (knowledge and settings.top_k), "informed videos need the phrases of their clips"
    start = time.perf_counter()
    evaluation = replace(evaluation, ranks=evaluation.ranks.cpu(), clip_of_text=evaluation.clip_of_text.cpu())
    split = build_gallery(captions, evaluation.split)
    assert split.text_ids == evaluation.text_ids, "these are the captions that were evaluated"
    subset = choose_subset(
        evaluation.clip_ids,
        evaluation.text_ids,
        evaluation.clip_of_text,
        num_clips=settings.num_clips,
        captions_per_clip=settings.captions_per_clip,
        seed=settings.seed,
    )
    images = _strips(evaluation, split.texts, subset, store, settings)
    drawn = time.perf_counter()
    if not settings.top_k or student.fusion is None:
        knowledge = None
    embedded = embed_subset(student, evaluation, split, subset, store, settings, video=video, knowledge=knowledge)
    embedding_s = time.perf_counter() - drawn
    histograms, pr_curves, point_sets = rank_distributions(evaluation.ranks), {}, {}
    if embedded:
        images |= {"similarity/matrix": similarity_matrix(embedded.similarity)} | _maps(student, embedded)
        histograms |= similarity_distributions(embedded.similarity)
        pr_curves["similarity/pairs"] = pr_curve(embedded.similarity)
        point_sets = _point_sets(student, embedded)
    drawing_s = time.perf_counter() - start - embedding_s
    return Inspection(images, histograms, pr_curves, point_sets, embedding_s, drawing_s)


def _strips(
    evaluation: Evaluation, texts: Sequence[str], subset: Subset, store: ClipStore, settings: InspectionSettings
) -> dict[str, Picture]:
    """In both directions, of the first queries of the subset and of the worst failures."""
    ranks, looked_at = evaluation.ranks, subset[: settings.num_queries]
    t2v = {f"t2v/query_{n}": own[0] for n, own in enumerate(looked_at.texts, 1)}
    t2v |= {f"t2v/worst_{n}": text for n, text in enumerate(worst_queries(ranks.t2v, settings.num_worst), 1)}
    v2t = {f"v2t/query_{n}": clip for n, clip in enumerate(looked_at.clips, 1)}
    v2t |= {f"v2t/worst_{n}": clip for n, clip in enumerate(worst_queries(ranks.v2t, settings.num_worst), 1)}
    shown = [clip for text in t2v.values() for clip in clips_of_strip(evaluation, text)]
    shown += [evaluation.clip_ids[clip] for clip in v2t.values()]
    thumbnails = read_thumbnails(store, shown, size=FRAME_SIZE, num_frames=NUM_FRAMES)
    return {tag: text_to_video(evaluation, texts, text, thumbnails) for tag, text in t2v.items()} | {
        tag: video_to_text(evaluation, texts, clip, thumbnails) for tag, clip in v2t.items()
    }


def _maps(student: Student, embedded: EmbeddedSubset) -> dict[str, Picture]:
    """Of the first clips: tokens and frames, phrases and frames; those that the model has."""
    images, sight = {}, embedded.sight
    for number, (row, frames) in enumerate(zip(embedded.representatives, sight.columns, strict=False)):
        clip_id, one = embedded.clip_ids[number], slice(number, number + 1)
        interaction = interaction_of(student, embedded.token_ids[row], embedded.text[row : row + 1], sight.video[one])
        if interaction:
            images[f"interaction/pair_{number + 1}"] = interaction_map(
                interaction, frames, caption=embedded.captions[row], clip_id=clip_id
            )
        if sight.attention:
            images[f"knowledge/attention_{number + 1}"] = attention_map(
                sight.attention[number], sight.phrases[number], frames, clip_id=clip_id
            )
    return images


def _point_sets(student: Student, embedded: EmbeddedSubset) -> dict[str, PointSet]:
    """Clips and their captions in one space, and the clips alone: the two kinds often lie far apart."""
    sight, clip_ids, clip_of_caption = embedded.sight, embedded.clip_ids, embedded.clip_of_caption
    clip_points = tuple(
        Point("clip", embedded.captions[row], clip_id, "")
        for row, clip_id in zip(embedded.representatives, clip_ids, strict=True)
    )
    caption_points = tuple(
        Point("caption", caption, clip_ids[clip], style)
        for caption, clip, style in zip(embedded.captions, clip_of_caption, embedded.styles, strict=True)
    )
    video, text = (
        one_vector(embeddings, end_token_only=end_token_only).float().cpu().numpy()
        for embeddings, end_token_only in (
            (sight.video, False),
            (embedded.text, student.interaction.compares_sentence),
        )
    )
    both = PointSet(
        np.concatenate([video, text]),
        (*clip_points, *caption_points),
        np.concatenate([sight.thumbnails, with_border(sight.thumbnails)[clip_of_caption]]),
    )
    return {"clips_and_captions": both, "clips": PointSet(video, clip_points, sight.thumbnails)}
