"""The training objective: the loss terms of a global batch, from its embeddings, distributed over the workers.

Each worker compares its own rows of the similarity with all columns; its terms are shares whose sum over workers is the term
of the global batch.

To add a loss term: write its function and a row of `LOSS_TERMS`, and add its weight to `LossConfig` in
`waver/config/training.py`. A term that reads phrases or informed videos also needs `ExperimentConfig` to require them (its
validator, `uses_fusion` and `uses_knowledge` in `waver/config/experiment.py`). Other terms need nothing else.

Source: `contrastive` with informed videos is the one loss of the released code of WAVER (arXiv 2312.09507). All other terms,
and the retrieval of plain videos, are extensions of waver.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from waver.data.batch import Batch
from waver.knowledge.soft_targets import Spaces
from waver.model.embeddings import Embeddings
from waver.model.interaction import mean_frame, uniform_weights, wti
from waver.model.student import Encoded, Student
from waver.training import parallel
from waver.training.diagnostics import (
    batch_diagnostics,
    effective_candidates,
    shared_caption_share,
    top1_accuracy,
    top1_agreement,
)
from waver.training.global_batch import GlobalBatch, Objective, Similarities, Videos
from waver.training.losses import distillation, shared_phrases, soft_targets


def _contrastive(batch: GlobalBatch) -> Float[Tensor, ""]:
    """Captions against the videos that are retrieved."""
    return batch.contrast(batch.retrieved)


def _distill(batch: GlobalBatch) -> Float[Tensor, ""]:
    """Similarities with plain videos learn from those with informed videos."""
    temperature = batch.objective.temperature
    return distillation(batch.plain.both, batch.informed.both, batch.logit_scale, temperature=temperature)


def _informed(batch: GlobalBatch) -> Float[Tensor, ""]:
    """Captions against informed videos."""
    return batch.contrast(batch.informed)


def _knowledge(batch: GlobalBatch) -> Float[Tensor, ""]:
    """Phrases of the teacher against plain videos; clips that share a phrase are not each other's negatives.

    With a temperature of its own the term leaves the scale of captions and videos alone. Phrases are short and alike, and a
    clip has several: a scale that it trains would fall, and soften the contrast of captions.
    """
    ids = batch.share.phrase_ids
    all_ids = parallel.all_gather(ids, batch.share.num_pairs)  # not their embeddings, which every worker has
    known = (_phrase_tokens(batch.phrases, ids), _phrase_tokens(batch.phrases, all_ids))
    return batch.contrast(
        Similarities(wti, known, batch.videos["plain"]),
        shared_phrases(ids, all_ids),
        temperature=batch.objective.knowledge_temperature,
    )


def _phrases_video(batch: GlobalBatch) -> Float[Tensor, ""]:
    """Distributions of plain videos over the phrases of the batch learn from the teacher's of the clips."""
    student = batch.spaces.student.of_clips(mean_frame(batch.videos["plain"][0]), batch.pool)
    teacher = batch.spaces.teacher.of_clips(batch.described_clips, batch.pool)
    return soft_targets(student, teacher, num_pairs=batch.share.num_pairs)


def _phrases_text(batch: GlobalBatch) -> Float[Tensor, ""]:
    """Distributions of captions over the phrases of the batch learn the teacher's, of the captions or of their clips."""
    student = batch.spaces.student.of_captions(batch.sentences, batch.pool)
    teacher = batch.spaces.teacher
    if batch.objective.text_target == "clip":
        target = teacher.of_clips(batch.described_clips, batch.pool)
    else:
        target = teacher.of_captions(batch.teacher_captions, batch.pool)
    return soft_targets(student, target, num_pairs=batch.share.num_pairs)


def _keep(batch: GlobalBatch) -> Float[Tensor, ""]:
    """Similarities of captions and videos stay near those of the frozen teacher (Li and Hoiem, arXiv 1606.09282)."""
    num_pairs, clips, captions = batch.share.num_pairs, batch.teacher_clips, batch.teacher_captions
    all_clips, all_captions = (parallel.all_gather(items, num_pairs) for items in (clips, captions))
    teacher = (captions @ all_clips.T, clips @ all_captions.T)
    return distillation(batch.retrieved.both, teacher, batch.logit_scale, temperature=batch.objective.temperature)


@dataclass(frozen=True)
class LossTerm:
    """One row of `LOSS_TERMS`."""

    compute: Callable[[GlobalBatch], Float[Tensor, ""]]
    """Returns this worker's share of the term."""
    needs_plain: bool = False
    """Whether it reads plain videos even if informed ones are retrieved."""
    teaches: bool = False
    """Whether it only trains the teacher of `distill`. Such a term is computed if `distill` has a weight and plain videos
    are retrieved."""


LOSS_TERMS: Mapping[str, LossTerm] = {
    "contrastive": LossTerm(_contrastive),
    "distill": LossTerm(_distill, needs_plain=True),
    "informed": LossTerm(_informed, teaches=True),
    "knowledge": LossTerm(_knowledge, needs_plain=True),
    "phrases_video": LossTerm(_phrases_video, needs_plain=True),
    "phrases_text": LossTerm(_phrases_text),
    "keep": LossTerm(_keep),
}
"""Name (`loss.<name>`, its weight) -> the term; terms are computed and summed in this order."""


def active_terms(weights: Mapping[str, float], retrieved: Videos) -> list[str]:
    """Returns the terms that are computed: those with a weight, `informed` only where it trains a teacher."""
    trains_teacher = weights["distill"] > 0 and retrieved == "plain"
    return [name for name, term in LOSS_TERMS.items() if weights[name] > 0 and (trains_teacher or not term.teaches)]


def needs_plain(weights: Mapping[str, float], retrieved: Videos) -> bool:
    """Returns whether the active terms read plain videos."""
    return retrieved == "plain" or any(LOSS_TERMS[name].needs_plain for name in active_terms(weights, retrieved))


def loss_terms(
    student: Student,
    encoded: Encoded,
    batch: Batch,
    phrases: Float[Tensor, "P D"],
    objective: Objective,
    spaces: Spaces | None = None,
) -> tuple[dict[str, Float[Tensor, ""]], dict[str, Float[Tensor, ""]]]:
    """Computes this worker's shares of the loss terms and of the diagnostics; their sums are those of the global batch.

    Args:
        student: computes the similarities.
        encoded: this worker's embeddings of the batch.
        batch: this worker's share, on the device of the model.
        phrases: the teacher's embeddings of all phrases.
        objective: how the loss is computed.
        spaces: the phrases in the spaces of teacher and student, for terms that read them.

    Returns:
        (name -> loss term, name -> diagnostic, see `waver.training.diagnostics`).
    """
    whole = GlobalBatch(student, encoded, batch, phrases, objective, spaces)
    learns_weights = student.interaction.learns_weights
    diagnostics = batch_diagnostics(encoded, num_pairs=batch.num_pairs, learned_weights=learns_weights)
    diagnostics |= shared_caption_share(whole.same_caption, num_pairs=batch.num_pairs)
    terms = {name: LOSS_TERMS[name].compute(whole) for name in active_terms(objective.weights, objective.retrieved)}
    if "distill" in terms:
        diagnostics |= top1_agreement(whole.plain.t2v, whole.informed.t2v, num_pairs=batch.num_pairs)
        for name, videos in (("plain", whole.plain), ("informed", whole.informed)):
            diagnostics[f"accuracy/{name}"] = top1_accuracy(videos.t2v, offset=whole.offset, num_pairs=batch.num_pairs)
        diagnostics["distill/candidates"] = effective_candidates(
            whole.informed.both, whole.logit_scale / objective.temperature, num_pairs=batch.num_pairs
        )
    return terms, diagnostics


def _phrase_tokens(phrases: Float[Tensor, "P D"], phrase_ids: Int[Tensor, "B K"]) -> Embeddings:
    """Returns the K phrases of each clip as the tokens of one text, with equal weights."""
    mask = torch.ones_like(phrase_ids, dtype=torch.bool)
    return Embeddings(phrases[phrase_ids], mask, uniform_weights(mask).to(phrases.dtype))
