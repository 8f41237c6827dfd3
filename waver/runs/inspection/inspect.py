"""Visualises a model after an evaluation: images, distributions, and points for the projector.

All show the same small subset, so that steps and runs can be compared, except the worst-ranked queries, which are chosen
among all queries. One worker inspects while the others wait, so it must be fast.
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
from waver.model.tokenizer import Tokenizer
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
    """Visualisations for TensorBoard, by tag.

    A tag shows the same query in every evaluation, except those of the worst-ranked queries, which are numbered.
    """

    images: dict[str, Picture]
    """Tag -> image; `waver.runs.inspection.pictures.to_png` encodes one."""
    histograms: dict[str, Float[np.ndarray, " values"]]
    pr_curves: dict[str, tuple[Bool[np.ndarray, " pairs"], Float[np.ndarray, " pairs"]]]
    """Tag -> (labels, predictions in [0, 1])."""
    point_sets: dict[str, PointSet]
    """Name -> points for `waver.runs.inspection.projection.write_projection`."""
    embedding_s: float
    """Seconds for reading frames and running the model."""
    drawing_s: float
    """Seconds for everything else."""


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
    """Inspects a model after an evaluation. One worker calls it.

    Strips show scores and ranks of the evaluation. Everything else is computed from new embeddings of the subset, in the
    precision of the weights.

    Args:
        student: the evaluated model.
        evaluation: evaluation with `ranks.top`; strips show at most 5 answers, or as many as `ranks.top` has.
        captions: caption table; only rows of the evaluated split are read.
        store: clip store.
        settings: how the subset is embedded, and how much is drawn.
        video: embeddings of all clips of the gallery that are not missing, from the evaluation; if None, the clips of the
            subset are embedded again, which takes minutes with a large backbone on a CPU.
        knowledge: knowledge of the clips; without it, or if it lacks these clips, no attention is drawn.
    """
    assert evaluation.ranks.top is not None, "evaluate with top_k > 0"
    assert not settings.informed or (knowledge and settings.top_k), "informed clips need phrases"
    start = time.perf_counter()
    evaluation = replace(evaluation, ranks=evaluation.ranks.cpu(), clip_of_text=evaluation.clip_of_text.cpu())
    split = build_gallery(captions, evaluation.split)
    assert split.text_ids == evaluation.text_ids, "captions must be those of the evaluation"
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
        images |= {"similarity/matrix": similarity_matrix(embedded.similarity)} | _maps(
            student, embedded, settings.tokenizer
        )
        histograms |= similarity_distributions(embedded.similarity)
        pr_curves["similarity/pairs"] = pr_curve(embedded.similarity)
        point_sets = _point_sets(student, embedded)
    drawing_s = time.perf_counter() - start - embedding_s
    return Inspection(images, histograms, pr_curves, point_sets, embedding_s, drawing_s)


def _strips(
    evaluation: Evaluation, texts: Sequence[str], subset: Subset, store: ClipStore, settings: InspectionSettings
) -> dict[str, Picture]:
    """Draws strips in both directions, for the first queries of the subset and for the worst-ranked queries."""
    ranks, drawn = evaluation.ranks, subset[: settings.num_queries]
    t2v = {f"t2v/query_{n}": own[0] for n, own in enumerate(drawn.texts, 1)}
    t2v |= {f"t2v/worst_{n}": text for n, text in enumerate(worst_queries(ranks.t2v, settings.num_worst), 1)}
    v2t = {f"v2t/query_{n}": clip for n, clip in enumerate(drawn.clips, 1)}
    v2t |= {f"v2t/worst_{n}": clip for n, clip in enumerate(worst_queries(ranks.v2t, settings.num_worst), 1)}
    shown = [clip for text in t2v.values() for clip in clips_of_strip(evaluation, text)]
    shown += [evaluation.clip_ids[clip] for clip in v2t.values()]
    thumbnails = read_thumbnails(store, shown, size=FRAME_SIZE, num_frames=NUM_FRAMES)
    return {tag: text_to_video(evaluation, texts, text, thumbnails) for tag, text in t2v.items()} | {
        tag: video_to_text(evaluation, texts, clip, thumbnails) for tag, clip in v2t.items()
    }


def _maps(student: Student, embedded: EmbeddedSubset, tokenizer: Tokenizer) -> dict[str, Picture]:
    """Draws heat maps of the first clips: tokens by frames, and phrases by frames, if the model has such interactions."""
    clips = embedded.clips
    images: dict[str, Picture] = {}
    for number, (row, frames) in enumerate(zip(embedded.representatives, clips.columns, strict=False)):
        clip_id, one = embedded.clip_ids[number], slice(number, number + 1)
        tokens = tokenizer.strings(embedded.token_ids[row].tolist())
        interaction = interaction_of(student, tokens, embedded.text[row : row + 1], clips.video[one])
        if interaction:
            images[f"interaction/pair_{number + 1}"] = interaction_map(
                interaction, frames, caption=embedded.captions[row], clip_id=clip_id
            )
        if clips.attention:
            images[f"knowledge/attention_{number + 1}"] = attention_map(
                clips.attention[number], clips.phrases[number], frames, clip_id=clip_id
            )
    return images


def _point_sets(student: Student, embedded: EmbeddedSubset) -> dict[str, PointSet]:
    """Returns clips with their captions, and clips alone, because the two modalities often lie far apart."""
    clips, clip_ids, clip_of_caption = embedded.clips, embedded.clip_ids, embedded.clip_of_caption
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
            (clips.video, False),
            (embedded.text, student.interaction.compares_sentence),
        )
    )
    both = PointSet(
        np.concatenate([video, text]),
        (*clip_points, *caption_points),
        np.concatenate([clips.thumbnails, with_border(clips.thumbnails)[clip_of_caption]]),
    )
    return {"clips_and_captions": both, "clips": PointSet(video, clip_points, clips.thumbnails)}
