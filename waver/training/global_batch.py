"""A global batch after the towers, which the terms of the loss read: embeddings and similarities, and how they contrast.

Each worker compares its own rows of the similarity with all columns; the sum over workers is that of the global batch.
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
from waver.model.interaction import sentence
from waver.model.student import Encoded, Student
from waver.training import parallel
from waver.training.losses import contrastive, equal_pairs, sigmoid

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


_Gathered = tuple[Embeddings, Embeddings]
"""Embeddings of this worker's items, and of those of all workers."""


def _gather(own: Embeddings, num_pairs: int) -> _Gathered:
    own = own.full_precision()
    return own, own.map(lambda tensor: parallel.all_gather(tensor, num_pairs))
