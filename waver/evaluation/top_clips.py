"""The first answers of each query by name, kept while the similarity passes by in tiles."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class TopClips:
    """The clips that each query finds first, best first, and their scores."""

    clips: Int[Tensor, "queries k"]
    """Numbers of clips in the gallery; of equal scores the earlier clip stands first. -1 where there is no k-th."""
    scores: Float[Tensor, "queries k"]
    """-inf where there is no clip."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "TopClips":
        """Applies a function to both tensors."""
        return TopClips(function(self.clips), function(self.scores))


def no_clips(num_queries: int, k: int, like: Tensor) -> TopClips:
    """k places for each query, all empty; scores of the type of `like`."""
    shape = (num_queries, k)
    return TopClips(
        torch.full(shape, -1, device=like.device), torch.full(shape, -torch.inf, dtype=like.dtype, device=like.device)
    )


def push(top: TopClips, queries: slice, scores: Float[Tensor, "q c"], clips: Int[Tensor, " c"]) -> None:
    """Lets more clips compete for the places of some queries, in place.

    Args:
        top: the best so far.
        queries: which.
        scores: of these queries with these clips; -inf for clips that must not be found.
        clips: their numbers, ascending and after all that competed before, so that ties fall in the order of the gallery.
    """
    scores = torch.cat([top.scores[queries], scores], dim=1)
    clips = torch.cat([top.clips[queries], clips.expand(len(scores), -1)], dim=1)
    # Stable, which topk is not: of equal scores the one that came first stays first.
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    k = top.clips.shape[1]
    top.scores[queries] = scores[:, :k]
    top.clips[queries] = clips.gather(1, order[:, :k]).masked_fill(scores[:, :k] == -torch.inf, -1)


def join_rows(
    top: TopClips, mine: Bool[Tensor, " queries"], all_reduce: Callable[[Tensor, Literal["sum", "max"]], Tensor]
) -> TopClips:
    """The places of all queries, where each query was one worker's alone.

    Args:
        top: what this worker found.
        mine: the queries that were this worker's.
        all_reduce: over the workers.
    """
    return top.map(lambda tensor: all_reduce(tensor.where(mine[:, None], 0), "sum"))


def join_clips(
    top: TopClips,
    *,
    worker: int,
    num_workers: int,
    all_reduce: Callable[[Tensor, Literal["sum", "max"]], Tensor],
) -> TopClips:
    """The places of all queries, where each worker let other clips compete; one after the other, to save memory."""
    joined = no_clips(*top.clips.shape, like=top.scores)
    for turn in range(num_workers):
        theirs = top.map(
            lambda tensor, turn=turn: all_reduce(tensor if worker == turn else torch.zeros_like(tensor), "sum")
        )
        clips = torch.cat([joined.clips, theirs.clips], dim=1)
        scores = torch.cat([joined.scores, theirs.scores], dim=1)
        # By number first: the clips of two workers alternate in the gallery.
        clips, order = clips.sort(dim=1)
        scores, best = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
        k = top.clips.shape[1]
        joined = TopClips(clips.gather(1, best[:, :k]), scores[:, :k])
    return joined
