"""Chooses the clips and captions to inspect: the same in every evaluation and in every run on the same data."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Subset:
    """Some clips of a gallery and some captions of each."""

    clips: tuple[int, ...]
    """Indices in the gallery, in pseudo-random order: any first n are a random sample, too."""
    texts: tuple[tuple[int, ...], ...]
    """Indices of captions of each clip; the first represents the clip."""

    def __getitem__(self, clips: slice) -> "Subset":
        return Subset(self.clips[clips], self.texts[clips])


def choose_subset(
    clip_ids: Sequence[str],
    text_ids: Sequence[str],
    clip_of_text: Int[Tensor, " texts"],
    *,
    num_clips: int,
    captions_per_clip: int = 1,
    seed: int = 0,
) -> Subset:
    """Chooses clips and captions by a hash of their ids, which depends neither on their order nor on a random generator.

    A new clip in the gallery displaces at most one chosen clip.

    Args:
        clip_ids: ids of the clips of the gallery.
        text_ids: ids of its captions.
        clip_of_text: index of each caption's clip.
        num_clips: maximum number of clips.
        captions_per_clip: maximum number of captions of a clip.
        seed: changes the choice.
    """
    clips = sorted(range(len(clip_ids)), key=lambda clip: _hash(clip_ids[clip], seed))[:num_clips]
    texts: dict[int, list[int]] = {clip: [] for clip in clips}
    for text, clip in enumerate(clip_of_text.tolist()):
        if clip in texts:
            texts[clip].append(text)
    chosen = [
        tuple(sorted(texts[clip], key=lambda text: _hash(text_ids[text], seed))[:captions_per_clip]) for clip in clips
    ]
    return Subset(tuple(clips), tuple(chosen))


def worst_queries(ranks: Float[Tensor, " queries"], num_queries: int) -> list[int]:
    """Returns the queries with the highest ranks, worst first; in a tie the lower index comes first.

    Leaves out queries with rank 1 and those whose clip could not be decoded (infinite rank), which the model cannot find.
    """
    finite = ranks.where(ranks.isfinite(), 1)
    order = finite.argsort(descending=True, stable=True)[:num_queries]
    return order[finite[order] > 1].tolist()


def _hash(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).digest()
