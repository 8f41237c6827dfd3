"""The first k answers of each query, collected while the similarity is computed in tiles."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class TopClips:
    """The first k clips of each query, best first, and their scores."""

    clips: Int[Tensor, "queries k"]
    """Indices into the gallery; ties are sorted by index. -1 if there are fewer than k clips."""
    scores: Float[Tensor, "queries k"]
    """-inf where there is no clip."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "TopClips":
        """Applies a function to both tensors."""
        return TopClips(function(self.clips), function(self.scores))


def empty_top_clips(num_queries: int, k: int, like: Tensor) -> TopClips:
    """Returns k empty places for each query; scores have the dtype and device of `like`."""
    shape = (num_queries, k)
    return TopClips(
        torch.full(shape, -1, device=like.device), torch.full(shape, -torch.inf, dtype=like.dtype, device=like.device)
    )


def update_top_clips(top: TopClips, queries: slice, scores: Float[Tensor, "q c"], clips: Int[Tensor, " c"]) -> None:
    """Merges further clips into the first answers of some queries, in place.

    Args:
        top: the first answers so far.
        queries: q of its queries.
        scores: of these queries with c clips; -inf excludes a clip.
        clips: indices of the clips, ascending and greater than all merged before, so that ties are sorted by index.
    """
    scores = torch.cat([top.scores[queries], scores], dim=1)
    clips = torch.cat([top.clips[queries], clips.expand(len(scores), -1)], dim=1)
    # Stable, which topk is not: among equal scores the earlier clip stays first.
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    k = top.clips.shape[1]
    top.scores[queries] = scores[:, :k]
    top.clips[queries] = clips.gather(1, order[:, :k]).masked_fill(scores[:, :k] == -torch.inf, -1)


def merge_rows(
    top: TopClips, own: Bool[Tensor, " queries"], all_reduce: Callable[[Tensor, Literal["sum", "max"]], Tensor]
) -> TopClips:
    """Merges the workers' first answers if each query belongs to one worker.

    Args:
        top: this worker's first answers.
        own: the queries that belong to this worker.
        all_reduce: reduces a tensor over the workers.
    """
    return top.map(lambda tensor: all_reduce(tensor.where(own[:, None], 0), "sum"))


def merge_clips(
    top: TopClips,
    *,
    worker: int,
    num_workers: int,
    all_reduce: Callable[[Tensor, Literal["sum", "max"]], Tensor],
) -> TopClips:
    """Merges the workers' first answers if each worker compared other clips; worker by worker, to save memory."""
    merged = empty_top_clips(*top.clips.shape, like=top.scores)
    for turn in range(num_workers):
        theirs = top if turn == worker else top.map(torch.zeros_like)
        theirs = theirs.map(lambda tensor: all_reduce(tensor, "sum"))
        clips = torch.cat([merged.clips, theirs.clips], dim=1)
        scores = torch.cat([merged.scores, theirs.scores], dim=1)
        # Sorted by index first: the clips of two workers alternate in the gallery.
        clips, order = clips.sort(dim=1)
        scores, best = scores.gather(1, order).sort(dim=1, descending=True, stable=True)
        k = top.clips.shape[1]
        merged = TopClips(clips.gather(1, best[:, :k]), scores[:, :k])
    return merged
