"""Soft targets: what a frozen teacher says of a clip or a caption, as a distribution over phrases.

    p(phrase | item) = softmax over a pool of phrases of (item - mean) . phrase / temperature

Embeddings have unit length. `mean` is that of all training items of the kind, clips or captions. Subtracting it takes from
each phrase its mean score: without this a phrase that is near everything (a hub) leads for a tenth of all clips.

The temperature is chosen by the number of phrases that share the probability: the mean over items of exp(entropy), which is
the perplexity by which t-SNE chooses its bandwidths (van der Maaten and Hinton, 2008). Cosines of two texts lie close
together (0.7 to 0.9) and those of texts and images elsewhere (0.2 to 0.3), so clips and captions have a temperature each.

Soft targets are waver's own; WAVER (arXiv 2312.09507) fuses the best phrases into videos instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from waver.data.embedded_clips import EmbeddedClips
from waver.knowledge.errors import KnowledgeError
from waver.knowledge.teacher import mean_frames

_LOG_TEMPERATURES = (-14.0, 14.0)
_BISECTIONS = 60


@dataclass(frozen=True)
class FrozenEmbeddings:
    """A frozen backbone's embeddings of clips and captions, read from embedding stores."""

    items: EmbeddedClips
    max_words: int
    """Largest number of tokens of a caption."""

    def clips(self, clip_ids: Sequence[str]) -> Float[Tensor, "B D"]:
        """Returns a unit vector per clip: the normalised mean of its normalised frames."""
        return F.normalize(mean_frames(*self.items.read(clip_ids)), dim=-1)

    def captions(self, captions: Sequence[str]) -> Float[Tensor, "B D"]:
        """Returns a unit vector per caption: its normalised end token."""
        assert self.items.tokens is not None, "the captions are stored"
        values, lengths = self.items.tokens.read([(caption, "") for caption in captions], self.max_words)
        return F.normalize(torch.from_numpy(values[np.arange(len(lengths)), lengths - 1]), dim=-1)


@dataclass(frozen=True)
class PhraseSpace:
    """Phrases in the embedding space of a frozen backbone, and how clips and captions are compared with them."""

    phrases: Float[Tensor, "P D"]
    """Unit vectors."""
    clip_mean: Float[Tensor, " D"]
    """Mean of the training clips."""
    caption_mean: Float[Tensor, " D"]
    """Mean of the training captions."""
    clip_temperature: float
    caption_temperature: float

    def of_clips(self, clips: Float[Tensor, "B D"], pool: Int[Tensor, " S"]) -> Float[Tensor, "B S"]:
        """Returns the logits of the distribution of each clip over the phrases `pool` (phrase ids)."""
        return (clips - self.clip_mean) @ self.phrases[pool].T / self.clip_temperature

    def of_captions(self, captions: Float[Tensor, "B D"], pool: Int[Tensor, " S"]) -> Float[Tensor, "B S"]:
        """Returns the logits of the distribution of each caption over the phrases `pool` (phrase ids)."""
        return (captions - self.caption_mean) @ self.phrases[pool].T / self.caption_temperature

    def to(self, device: torch.device | str) -> "PhraseSpace":
        """Copies the tensors to a device."""
        tensors = {name: getattr(self, name).to(device) for name in ("phrases", "clip_mean", "caption_mean")}
        return replace(self, **tensors)


@dataclass(frozen=True)
class Spaces:
    """The phrases in the space of the teacher, whose distributions are learned, and in that of the student before training.

    Both are the same if the teacher is the student's own backbone.
    """

    teacher: PhraseSpace
    student: PhraseSpace

    def to(self, device: torch.device | str) -> "Spaces":
        """Copies the tensors to a device."""
        return Spaces(self.teacher.to(device), self.student.to(device))


def phrase_space(
    phrases: Float[Tensor, "P D"],
    clips: Float[Tensor, "N D"],
    captions: Float[Tensor, "M D"],
    pool: Int[Tensor, " S"],
    *,
    effective_phrases: float,
) -> PhraseSpace:
    """Builds the space of a frozen backbone from a sample of training items.

    Args:
        phrases: the backbone's embeddings of all phrases.
        clips: unit vectors of training clips.
        captions: unit vectors of training captions.
        pool: phrases that a batch is compared with, for the choice of the temperatures.
        effective_phrases: mean of exp(entropy) over the items, which decides the temperatures.

    Raises:
        KnowledgeError: if the pool has too few phrases for this number.
    """
    if len(pool) <= effective_phrases:
        raise KnowledgeError(
            f"knowledge.effective_phrases = {effective_phrases:g}, but the clips of a batch have only {len(pool)} different "
            "phrases: lower it, raise knowledge.top_k, or build a larger dictionary"
        )
    space = PhraseSpace(F.normalize(phrases, dim=-1), clips.mean(dim=0), captions.mean(dim=0), 1.0, 1.0)
    return replace(
        space,
        clip_temperature=find_temperature(space.of_clips(clips, pool), effective_phrases),
        caption_temperature=find_temperature(space.of_captions(captions, pool), effective_phrases),
    )


def effective_number(logits: Float[Tensor, "B S"]) -> Float[Tensor, " B"]:
    """Returns exp(entropy) of each row's softmax: from 1, for a sure row, to S, for a uniform one."""
    log_p = logits.log_softmax(dim=1)
    return (-(log_p.exp() * log_p).sum(dim=1)).exp()


def find_temperature(scores: Float[Tensor, "B S"], number: float) -> float:
    """Returns the temperature at which the mean effective number of the rows is `number`, by bisection.

    Args:
        scores: logits at temperature 1.
        number: between 1 and S.
    """
    scores, (low, high) = scores.double(), _LOG_TEMPERATURES
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        is_sharp = effective_number(scores / np.exp(middle)).mean() < number
        low, high = (middle, high) if is_sharp else (low, middle)
    return float(np.exp((low + high) / 2))
