"""Exact retrieval metrics, in both directions, for any number of captions per clip.

The rank of a caption's clip is 1 + (clips with a higher score) + (other clips with the same score) / 2: a tie counts as in
expectation over a random order of the tied. From video to text a clip stands before groups of captions, one group a clip;
the score of a group is that of its best caption, and a clip's rank is that of its own group.

A clip without embedding (it could not be decoded) stays in the gallery: nothing finds it, and as a query it is a miss.

An answer can be excused: the text also stands on that clip, or that clip is the same video under another id. It is then
neither right nor wrong: it is left out of the count, for the text among clips and for the clip among captions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from waver.evaluation.top_clips import TopClips, join_clips, join_rows, no_clips, push
from waver.tools.errors import WaverError

# A tile of the similarity: (first text, last text + 1, first clip, last clip + 1) -> (texts, clips).
Tile = Callable[[slice, slice], Float[Tensor, "t c"]]


class EvaluationError(WaverError):
    """A metric cannot be computed; the message names the cause and the remedy."""


@dataclass(frozen=True)
class Ranks:
    """Rank of the right answer for every query, from 1; inf is a miss (the right clip has no embedding)."""

    t2v: Float[Tensor, " texts"]
    v2t: Float[Tensor, " clips"]
    top: TopClips | None = None
    """What each text finds first, where it was asked for."""
    top_groups: TopClips | None = None
    """What each clip finds first: clips whose captions it takes for its own, scored by the best of them."""

    def cpu(self) -> "Ranks":
        """The same in main memory."""
        tops = (top and top.map(Tensor.cpu) for top in (self.top, self.top_groups))
        return Ranks(self.t2v.cpu(), self.v2t.cpu(), *tops)


def rank_tiles(
    tile: Tile,
    clip_of_text: Int[Tensor, " texts"],
    available: Bool[Tensor, " clips"],
    *,
    chunk_size: int,
    excused: Int[Tensor, "pairs 2"] | None = None,
    top_k: int = 0,
    worker: int = 0,
    num_workers: int = 1,
    all_reduce: Callable[[Tensor, Literal["sum", "max"]], Tensor] = lambda tensor, _: tensor,
) -> Ranks:
    """Ranks every right answer, tile by tile; memory grows with the sides of the matrix, not with its area.

    Tiles are the same for any number of workers, so are their values to the last bit, and so are the ranks.

    Args:
        tile: computes one tile; a worker asks only for rows of its own (`row_chunks(...)[worker::num_workers]`).
        clip_of_text: the clip of each text; texts of a clip are adjacent and clips come in ascending order.
        available: which clips have an embedding; scores of the others are ignored.
        chunk_size: side of a tile; a clip's captions are never parted, so a tile can be higher.
        excused: (text, clip) that are not counted as wrong, by text, each once, see
            `waver.data.duplicates.excused_pairs`; None for none.
        top_k: how many of the first answers of each query are wanted by name, excused ones among them; 0 for none.
        worker, num_workers: who this is, among how many.
        all_reduce: sum or maximum of a tensor over the workers.

    Returns:
        The ranks of all queries, on every worker.

    Raises:
        EvaluationError: if a score is NaN.
    """
    num_clips, device = len(available), clip_of_text.device
    who = {"worker": worker, "num_workers": num_workers, "all_reduce": all_reduce}
    columns = column_chunks(num_clips, chunk_size)
    rows = row_chunks(clip_of_text, chunk_size)[worker::num_workers]
    right_text, right_clip = _right_scores(tile, clip_of_text, available, rows, columns)
    right_clip = all_reduce(right_clip, "max")

    t2v = torch.zeros(2, len(clip_of_text), dtype=torch.long, device=device)  # (higher, equal) for each text
    v2t = torch.zeros(2, num_clips, dtype=torch.long, device=device)  # the same for each clip
    top, top_groups = (no_clips(num, top_k, like=right_text) for num in (len(clip_of_text), num_clips))
    mine = torch.zeros(len(clip_of_text), dtype=torch.bool, device=device)
    for row in rows:
        mine[row] = True
        clips, group = torch.unique_consecutive(clip_of_text[row], return_inverse=True)
        hidden = _rows_of(excused, row)
        for column in columns:
            scores = checked(tile(row, column), row, column, available)
            numbers = torch.arange(column.start, column.stop, device=device)
            if top_k:
                push(top, row, scores, numbers)
                push(top_groups, column, _best_of_group(scores, group, len(clips)).T, clips)
            if hidden is not None:
                text, clip = hidden[(hidden[:, 1] >= column.start) & (hidden[:, 1] < column.stop)].T
                scores[text - row.start, clip - column.start] = -torch.inf
            best = _best_of_group(scores, group, len(clips))
            # The right answer itself is neither higher nor equal.
            other = clip_of_text[row, None] != numbers
            t2v[0, row] += ((scores > right_text[row, None]) & other).sum(1)
            t2v[1, row] += ((scores == right_text[row, None]) & other).sum(1)
            other = clips[:, None] != numbers
            v2t[0, column] += ((best > right_clip[column]) & other).sum(0)
            v2t[1, column] += ((best == right_clip[column]) & other).sum(0)
    t2v, v2t = all_reduce(t2v, "sum"), all_reduce(v2t, "sum")
    return Ranks(
        (1 + t2v[0] + t2v[1] / 2).double().masked_fill(~available[clip_of_text], torch.inf),
        (1 + v2t[0] + v2t[1] / 2).double().masked_fill(~available, torch.inf),
        join_rows(top, mine, all_reduce) if top_k else None,
        join_clips(top_groups, **who) if top_k else None,
    )


def column_chunks(num_clips: int, chunk_size: int) -> list[slice]:
    """Cuts the gallery into chunks."""
    return [slice(start, min(start + chunk_size, num_clips)) for start in range(0, num_clips, chunk_size)]


def row_chunks(clip_of_text: Int[Tensor, " texts"], chunk_size: int) -> list[slice]:
    """Cuts the texts into chunks of about chunk_size, never between two captions of a clip."""
    assert bool((clip_of_text[1:] >= clip_of_text[:-1]).all()), "texts must be sorted by clip"
    _, sizes = torch.unique_consecutive(clip_of_text, return_counts=True)
    chunks, start, stop = [], 0, 0
    for size in sizes.tolist():
        if stop > start and stop + size - start > chunk_size:
            chunks.append(slice(start, stop))
            start = stop
        stop += size
    return [*chunks, slice(start, stop)]


def rank_similarity(
    similarity: Float[Tensor, "texts clips"],
    clip_of_text: Int[Tensor, " texts"],
    available: Bool[Tensor, " clips"] | None = None,
    *,
    chunk_size: int = 256,
    excused: Int[Tensor, "pairs 2"] | None = None,
) -> Ranks:
    """Ranks from a whole similarity matrix."""
    if available is None:
        available = torch.ones(similarity.shape[1], dtype=torch.bool)
    return rank_tiles(
        lambda rows, clips: similarity[rows, clips], clip_of_text, available, chunk_size=chunk_size, excused=excused
    )


def _right_scores(
    tile: Tile, clip_of_text: Tensor, available: Tensor, rows: list[slice], columns: list[slice]
) -> tuple[Tensor, Tensor]:
    """Score of each text with its clip, and of each clip with its best caption.

    They are read from the very tiles that are counted later: another computation could differ in the last bit, and a right
    answer would tie with itself or lose to itself. Only tiles on the diagonal are needed.
    """
    right_text = torch.full(clip_of_text.shape, -torch.inf, device=clip_of_text.device)
    right_clip = torch.full(available.shape, -torch.inf, device=clip_of_text.device)
    for row in rows:
        clips = clip_of_text[row]
        for column in columns:
            inside = ((clips >= column.start) & (clips < column.stop)).nonzero().squeeze(1)
            if len(inside):
                scores = checked(tile(row, column), row, column, available)
                right_text = right_text.to(scores.dtype)
                right_text[row.start + inside] = scores[inside, clips[inside] - column.start]
    right_clip = right_clip.to(right_text.dtype).scatter_reduce(0, clip_of_text, right_text, "amax")
    return right_text, right_clip


def _best_of_group(scores: Tensor, group: Tensor, num_groups: int) -> Tensor:
    best = torch.full((num_groups, scores.shape[1]), -torch.inf, dtype=scores.dtype, device=scores.device)
    return best.scatter_reduce(0, group[:, None].expand_as(scores), scores, "amax")


def _rows_of(excused: Tensor | None, row: slice) -> Tensor | None:
    """Those of the excused pairs whose text is in a chunk of rows; they stand by text."""
    if excused is None or not len(excused):
        return None
    assert bool((excused[:, 0].diff() >= 0).all()), "excused pairs must be sorted by text"
    ends = torch.tensor([row.start, row.stop], device=excused.device)
    start, stop = torch.searchsorted(excused[:, 0].contiguous(), ends).tolist()
    return excused[start:stop]


def checked(
    scores: Float[Tensor, "t c"], row: slice, column: slice, available: Bool[Tensor, " clips"]
) -> Float[Tensor, "t c"]:
    """A copy of a tile, -inf for clips without embedding.

    Raises:
        EvaluationError: if a score of another clip is NaN.
    """
    scores = scores.masked_fill(~available[column], -torch.inf)
    if scores.isnan().any():
        text, clip = scores.isnan().nonzero()[0].tolist()
        raise EvaluationError(
            f"the similarity of text {row.start + text} and clip {column.start + clip} is NaN: no metric can be computed; "
            "look for a diverged checkpoint or damaged weights"
        )
    return scores
