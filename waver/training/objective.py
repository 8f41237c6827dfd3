"""The training objective: the loss terms of a global batch, from its embeddings, distributed over the workers.

Each worker compares its own rows of the similarity with all columns; its terms are shares whose sum over workers is the term
of the global batch.

To add a loss term: write its function and a row of `LOSS_TERMS`, and add its weight to `LossConfig` in
`waver/config/training.py`. A term that reads phrases or informed videos also needs `ExperimentConfig` to require them (its
validator, `uses_fusion` and `uses_knowledge` in `waver/config/experiment.py`). Other terms need nothing else.

Source: `contrastive` with informed videos is the one loss of the released code of WAVER (arXiv 2312.09507). All other terms,
and the retrieval of plain videos, are extensions of waver.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from waver.data.batch import Batch
from waver.knowledge.soft_targets import Spaces
from waver.model.embeddings import Embeddings
from waver.model.interaction import mean_frame, sentence, uniform_weights, wti
from waver.model.student import Encoded, Student
from waver.training import parallel
from waver.training.diagnostics import (
    batch_diagnostics,
    effective_candidates,
    shared_caption_share,
    top1_accuracy,
    top1_agreement,
)
from waver.training.losses import contrastive, distillation, equal_pairs, shared_phrases, sigmoid, soft_targets

Videos = Literal["plain", "informed"]
"""How clips are embedded: from their frames alone, or with their phrases."""


@dataclass(frozen=True)
class Objective:
    """How the loss of a batch is computed: its terms, their weights, and how they contrast pairs."""

    weights: Mapping[str, float]
    """Name of each term -> weight; terms with weight 0 are not computed."""
    temperature: float
    """Temperature of the terms `distill` and `keep`."""
    retrieved: Videos
    """Which videos captions retrieve at inference."""
    kind: Literal["softmax", "sigmoid"] = "softmax"
    """How terms contrast positive with negative pairs: `contrastive` or `sigmoid` of `waver.training.losses`."""
    text_target: Literal["caption", "clip"] = "caption"
    """Whose distribution over phrases captions learn in `phrases_text`."""
    knowledge_temperature: float | None = None
    """Temperature of the term `knowledge`; None for the learned scale and bias, which the term then trains."""
    ignores_shared_captions: bool = False
    """Whether a caption and the clip of an equal caption are left out of the negative pairs."""


class Similarities:
    """Similarities of this worker's m texts with all M videos, and of its m videos with all M texts.

    Each direction is computed when it is first read: the sigmoid loss reads only one.

    Args:
        compare: computes the similarity of every text with every video.
        text: this worker's texts, and those of all workers.
        video: the same of the videos.
    """

    def __init__(
        self,
        compare: Callable[[Embeddings, Embeddings], Float[Tensor, "T V"]],
        text: "_Gathered",
        video: "_Gathered",
    ):
        self._compare, self._text, self._video = compare, text, video

    @functools.cached_property
    def t2v(self) -> Float[Tensor, "m M"]:
        """This worker's texts with all videos."""
        return self._compare(self._text[0], self._video[1])

    @functools.cached_property
    def v2t(self) -> Float[Tensor, "m M"]:
        """This worker's videos with all texts."""
        return self.t2v.T if parallel.world_size() == 1 else self._compare(self._text[1], self._video[0]).T

    @property
    def both(self) -> tuple[Float[Tensor, "m M"], Float[Tensor, "m M"]]:
        """(t2v, v2t)."""
        return self.t2v, self.v2t


class GlobalBatch:
    """A global batch after the towers: this worker's embeddings, those of all workers, and their similarities.

    Args:
        student: computes the similarities.
        encoded: this worker's embeddings.
        batch: this worker's share, on the device of the model.
        phrases: the teacher's embeddings of all phrases.
        objective: how the loss is computed.
        spaces: the phrases in the spaces of teacher and student; None if no term reads them.
    """

    def __init__(
        self,
        student: Student,
        encoded: Encoded,
        batch: Batch,
        phrases: Float[Tensor, "P D"],
        objective: Objective,
        spaces: Spaces | None,
    ):
        self.share, self.phrases, self.objective, self._spaces = batch, phrases, objective, spaces
        self.logit_scale, self.logit_bias = student.logit_scale.exp(), student.logit_bias
        self.offset = parallel.shard(batch.num_pairs, parallel.rank(), parallel.world_size()).start
        """Column, in the global batch, of this worker's first pair."""
        self._similarity = student.similarity
        self._text = _gather(encoded.text, batch.num_pairs)
        ways: dict[Videos, Embeddings | None] = {"plain": encoded.plain, "informed": encoded.informed}
        self.videos = {name: _gather(video, batch.num_pairs) for name, video in ways.items() if video is not None}

    @functools.cached_property
    def plain(self) -> Similarities:
        """Similarities of captions and plain videos."""
        return Similarities(self._similarity, self._text, self.videos["plain"])

    @functools.cached_property
    def informed(self) -> Similarities:
        """Similarities of captions and informed videos."""
        return Similarities(self._similarity, self._text, self.videos["informed"])

    @property
    def retrieved(self) -> Similarities:
        """Similarities of captions and the videos that they retrieve at inference."""
        return self.plain if self.objective.retrieved == "plain" else self.informed

    @property
    def sentences(self) -> Float[Tensor, "m D"]:
        """The normalised end token of each of this worker's captions."""
        return sentence(self._text[0])

    @functools.cached_property
    def pool(self) -> Int[Tensor, " S"]:
        """Ids of the phrases of all clips of the batch, each once; the same on every worker."""
        occurs = torch.zeros(len(self.phrases), dtype=torch.bool, device=self.phrases.device)
        occurs[parallel.all_gather(self.share.phrase_ids, self.share.num_pairs)] = True
        return occurs.nonzero()[:, 0]

    @property
    def spaces(self) -> Spaces:
        """The phrases in the spaces of teacher and student."""
        assert self._spaces is not None, "a term that learns distributions over phrases has their spaces"
        return self._spaces

    @property
    def teacher_clips(self) -> Float[Tensor, "m E"]:
        """The teacher's embeddings of this worker's clips."""
        assert self.share.teacher_clips is not None, "a term that learns from the teacher has its embeddings"
        return self.share.teacher_clips

    @property
    def described_clips(self) -> Float[Tensor, "m E"]:
        """The teacher's embeddings of the clips that the phrases belong to: this worker's, or others under a control."""
        described = self.share.described_clips
        return self.teacher_clips if described is None else described

    @property
    def teacher_captions(self) -> Float[Tensor, "m E"]:
        """The teacher's embeddings of this worker's captions."""
        assert self.share.teacher_captions is not None, "a term that learns from the teacher has its embeddings"
        return self.share.teacher_captions

    @functools.cached_property
    def same_caption(self) -> Bool[Tensor, "m M"]:
        """Whether this worker's pairs have the same caption as each pair of the batch; a pair has its own."""
        keys = self.share.caption_keys
        return equal_pairs(keys, parallel.all_gather(keys, self.share.num_pairs))

    def contrast(
        self,
        similarities: Similarities,
        not_negative: Bool[Tensor, "m M"] | None = None,
        *,
        temperature: float | None = None,
    ) -> Float[Tensor, ""]:
        """Computes the loss that contrasts the pairs of the batch with all other combinations of its texts and videos.

        Args:
            similarities: of texts and videos.
            not_negative: pairs left out of the negatives, beside those with the same caption if the objective ignores these;
                None for none.
            temperature: divides the similarities in place of the learned scale; scale and bias then have no gradient.
        """
        if self.objective.ignores_shared_captions:
            not_negative = self.same_caption if not_negative is None else not_negative | self.same_caption
        scale, bias = self.logit_scale, self.logit_bias
        if temperature is not None:
            scale, bias = scale.new_tensor(1 / temperature), None if bias is None else bias.detach()
        if self.objective.kind == "softmax":
            return contrastive(*similarities.both, scale, offset=self.offset, not_negative=not_negative)
        assert bias is not None, "a student that learns with the sigmoid loss has a bias"
        return sigmoid(similarities.t2v, scale, bias, offset=self.offset, not_negative=not_negative)


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
    reads_teacher: bool = False
    """Whether it reads the frozen teacher's embeddings of clips and captions."""
    reads_phrases: bool = False
    """Whether it compares clips or captions with the phrases of the batch, in the spaces of teacher and student."""


LOSS_TERMS: Mapping[str, LossTerm] = {
    "contrastive": LossTerm(_contrastive),
    "distill": LossTerm(_distill, needs_plain=True),
    "informed": LossTerm(_informed, teaches=True),
    "knowledge": LossTerm(_knowledge, needs_plain=True),
    "phrases_video": LossTerm(_phrases_video, needs_plain=True, reads_teacher=True, reads_phrases=True),
    "phrases_text": LossTerm(_phrases_text, reads_teacher=True, reads_phrases=True),
    "keep": LossTerm(_keep, reads_teacher=True),
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


_Gathered = tuple[Embeddings, Embeddings]
"""Embeddings of this worker's items, and of those of all workers."""


def _gather(own: Embeddings, num_pairs: int) -> _Gathered:
    own = own.full_precision()
    return own, own.map(lambda tensor: parallel.all_gather(tensor, num_pairs))


def _phrase_tokens(phrases: Float[Tensor, "P D"], phrase_ids: Int[Tensor, "B K"]) -> Embeddings:
    """Returns the K phrases of each clip as the tokens of one text, with equal weights."""
    mask = torch.ones_like(phrase_ids, dtype=torch.bool)
    return Embeddings(phrases[phrase_ids], mask, uniform_weights(mask).to(phrases.dtype))
