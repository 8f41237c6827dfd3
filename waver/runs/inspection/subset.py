"""Which clips and captions of a split are looked at: the same in every evaluation, and in every run on the same data."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Subset:
    """Some clips of a gallery and some captions of each."""

    clips: tuple[int, ...]
    """Numbers in the gallery, in an order that has nothing to do with it: the first n are as good a choice as all."""
    texts: tuple[tuple[int, ...], ...]
    """Numbers of captions of each of these clips; the first is the one that stands for the clip."""

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
    """Chooses by a hash of the ids, so that nothing else has a say: neither the order, nor the workers, nor the library.

    A clip that joins the data set displaces one at most.

    Args:
        clip_ids: the gallery.
        text_ids: of its captions.
        clip_of_text: number of each caption's clip.
        num_clips: at most.
        captions_per_clip: at most.
        seed: another one chooses others.
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
    """The queries whose right answer stands last, worst first; of equal ones the first in the gallery.

    A query that is right, or whose right clip could not be decoded, is no failure of the model and is not among them.
    """
    failed = ranks.where(ranks.isfinite(), 1)
    order = failed.argsort(descending=True, stable=True)[:num_queries]
    return order[failed[order] > 1].tolist()


def _hash(name: str, seed: int) -> bytes:
    return hashlib.sha256(f"{seed} {name}".encode("utf-8", "surrogatepass")).digest()
