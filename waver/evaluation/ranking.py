"""Ranks of the correct answers, in both directions, for any number of captions per clip, tile by tile.

Text to video: the rank of a caption's clip is 1 + (clips with a higher score) + (other clips with the same score) / 2, which
is the expected rank if ties are broken at random. Video to text: a clip ranks groups of captions, one group per clip. The
score of a group is that of its best caption, and the clip's rank is that of its own group.

A clip without embedding (it could not be decoded) stays in the gallery: no caption finds it, and as a query it is a miss.

An answer can be excused: the clip has the same caption, or is the same video under another id. An excused answer counts
neither as correct nor as wrong, for the caption among clips and for the clip among captions.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from waver.evaluation.top_clips import TopClips, empty_top_clips, merge_clips, merge_rows, update_top_clips
from waver.tools.errors import WaverError

Tile = Callable[[slice, slice], Float[Tensor, "t c"]]
"""Computes one tile of the similarity: (texts, clips) -> scores (t, c)."""


class EvaluationError(WaverError):
    """A metric cannot be computed; the message has the cause and the remedy."""


@dataclass(frozen=True)
class Workers:
    """This worker among all workers of an evaluation."""

    worker: int = 0
    """Number of this worker, from 0."""
    num_workers: int = 1
    all_reduce: Callable[[Tensor, Literal["sum", "max"]], Tensor] = lambda tensor, operation: tensor
    """Sum or maximum of a tensor over the workers."""


@dataclass(frozen=True)
class Ranks:
    """Rank of the correct answer for every query, from 1; inf is a miss (the correct clip has no embedding)."""

    t2v: Float[Tensor, " texts"]
    v2t: Float[Tensor, " clips"]
    t2v_ties: Int[Tensor, " texts"]
    """Number of wrong answers with the score of the correct one."""
    v2t_ties: Int[Tensor, " clips"]
    top: TopClips | None = None
    """First answers of each text; None if not requested."""
    top_groups: TopClips | None = None
    """First answers of each clip: clips, each scored by its best caption; None if not requested."""

    def cpu(self) -> "Ranks":
        """Copies all tensors to main memory."""
        top, top_groups = (top and top.map(Tensor.cpu) for top in (self.top, self.top_groups))
        return Ranks(self.t2v.cpu(), self.v2t.cpu(), self.t2v_ties.cpu(), self.v2t_ties.cpu(), top, top_groups)


@dataclass(frozen=True)
class _Scores:
    """Scores of the correct answers."""

    text: Float[Tensor, " texts"]
    """Score of each text with its clip."""
    clip: Float[Tensor, " clips"]
    """Score of each clip with its best caption."""


@dataclass(frozen=True)
class _Rows:
    """A chunk of texts, grouped by clip."""

    texts: slice
    clip_of_text: Int[Tensor, " t"]
    clips: Int[Tensor, " g"]
    """Clips of the groups, ascending."""
    group_of_text: Int[Tensor, " t"]

    @classmethod
    def of(cls, texts: slice, clip_of_text: Int[Tensor, " texts"]) -> "_Rows":
        """Groups the texts of a chunk."""
        clips, group_of_text = torch.unique_consecutive(clip_of_text[texts], return_inverse=True)
        return cls(texts, clip_of_text[texts], clips, group_of_text)

    def best_of_group(self, scores: Float[Tensor, "t c"]) -> Float[Tensor, "g c"]:
        """Returns the score of the best text of each group."""
        best = torch.full((len(self.clips), scores.shape[1]), -torch.inf, dtype=scores.dtype, device=scores.device)
        return best.scatter_reduce(0, self.group_of_text[:, None].expand_as(scores), scores, "amax")


@dataclass(frozen=True)
class _Counts:
    """How many wrong answers score higher than the correct one (row 0), and how many score the same (row 1)."""

    t2v: Int[Tensor, "2 texts"]
    v2t: Int[Tensor, "2 clips"]

    def ranks(self, correct_available: Bool[Tensor, " texts"], available: Bool[Tensor, " clips"]) -> Ranks:
        """Converts counts to ranks; inf for correct answers without embedding."""
        t2v, v2t = ((1 + higher + equal / 2).double() for higher, equal in (self.t2v, self.v2t))
        return Ranks(
            t2v.masked_fill(~correct_available, torch.inf),
            v2t.masked_fill(~available, torch.inf),
            self.t2v[1],
            self.v2t[1],
        )


def rank_tiles(
    tile: Tile,
    clip_of_text: Int[Tensor, " texts"],
    available: Bool[Tensor, " clips"],
    *,
    chunk_size: int,
    excused: Int[Tensor, "pairs 2"] | None = None,
    top_k: int = 0,
    workers: Workers = Workers(),
) -> Ranks:
    """Ranks every correct answer, tile by tile; memory grows with the sides of the similarity matrix, not with its area.

    Every tile is computed once. It has the same bits for any number of workers, and so ranks are the same too.

    Args:
        tile: computes one tile; a worker requests rows of its own share only (`row_chunks(...)[worker::num_workers]`).
        clip_of_text: the clip of each text; texts of a clip are adjacent and clips come in ascending order.
        available: which clips have an embedding; scores of the others are ignored.
        chunk_size: side of a tile; captions of a clip are never split, so a tile can be higher.
        excused: (text, clip) pairs that do not count as wrong, sorted by text and unique, see
            `waver.data.duplicates.excused_pairs`; None for none.
        top_k: number of first answers to return for each query, excused ones included; 0 for none.
        workers: this worker among all.

    Returns:
        The ranks of all queries, on every worker.

    Raises:
        EvaluationError: if a score is NaN.
    """
    num_texts, num_clips, device = len(clip_of_text), len(available), clip_of_text.device
    columns = column_chunks(num_clips, chunk_size)
    rows = row_chunks(clip_of_text, chunk_size)[workers.worker :: workers.num_workers]
    correct, diagonal = _correct_scores(tile, clip_of_text, available, rows, columns)
    correct = _Scores(correct.text, workers.all_reduce(correct.clip, "max"))
    counts = _Counts(*(torch.zeros(2, number, dtype=torch.long, device=device) for number in (num_texts, num_clips)))
    top, top_groups = (empty_top_clips(number, top_k, like=correct.text) for number in (num_texts, num_clips))
    own_rows = torch.zeros(num_texts, dtype=torch.bool, device=device)
    for row in rows:
        own_rows[row] = True
        grouped = _Rows.of(row, clip_of_text)
        row_excused = _excused_in(excused, row)
        for column in columns:
            scores = diagonal.pop((row.start, column.start), None)
            if scores is None:
                scores = mask_missing(tile(row, column), row, column, available)
            if top_k:
                numbers = torch.arange(column.start, column.stop, device=device)
                update_top_clips(top, row, scores, numbers)
                update_top_clips(top_groups, column, grouped.best_of_group(scores).T, grouped.clips)
            if row_excused is not None:
                text, clip = row_excused[(row_excused[:, 1] >= column.start) & (row_excused[:, 1] < column.stop)].T
                scores[text - row.start, clip - column.start] = -torch.inf
            _count_tile(counts, scores, grouped, column, correct)
    counts = _Counts(workers.all_reduce(counts.t2v, "sum"), workers.all_reduce(counts.v2t, "sum"))
    ranks = counts.ranks(available[clip_of_text], available)
    if not top_k:
        return ranks
    top, top_groups = merge_rows(top, own_rows, workers.all_reduce), merge_clips(top_groups, **vars(workers))
    return replace(ranks, top=top, top_groups=top_groups)


def rank_similarity(
    similarity: Float[Tensor, "texts clips"],
    clip_of_text: Int[Tensor, " texts"],
    available: Bool[Tensor, " clips"] | None = None,
    *,
    chunk_size: int = 256,
    excused: Int[Tensor, "pairs 2"] | None = None,
) -> Ranks:
    """Ranks every correct answer in a whole similarity matrix; see `rank_tiles`."""
    if available is None:
        available = torch.ones(similarity.shape[1], dtype=torch.bool)
    return rank_tiles(
        lambda rows, clips: similarity[rows, clips], clip_of_text, available, chunk_size=chunk_size, excused=excused
    )


def column_chunks(num_clips: int, chunk_size: int) -> list[slice]:
    """Splits the gallery into chunks of chunk_size clips; the last may be smaller."""
    return [slice(start, min(start + chunk_size, num_clips)) for start in range(0, num_clips, chunk_size)]


def row_chunks(clip_of_text: Int[Tensor, " texts"], chunk_size: int) -> list[slice]:
    """Splits the texts into chunks of about chunk_size, never between two captions of a clip."""
    assert bool((clip_of_text[1:] >= clip_of_text[:-1]).all()), "texts must be sorted by clip"
    _, sizes = torch.unique_consecutive(clip_of_text, return_counts=True)
    chunks: list[slice] = []
    start, stop = 0, 0
    for size in sizes.tolist():
        if stop > start and stop + size - start > chunk_size:
            chunks.append(slice(start, stop))
            start = stop
        stop += size
    return [*chunks, slice(start, stop)]


def mask_missing(
    scores: Float[Tensor, "t c"], row: slice, column: slice, available: Bool[Tensor, " clips"]
) -> Float[Tensor, "t c"]:
    """Copies a tile, with -inf for clips without embedding.

    Args:
        scores: the tile.
        row: its texts.
        column: its clips.
        available: which clips of the gallery have an embedding.

    Raises:
        EvaluationError: if a score of a clip with embedding is NaN.
    """
    scores = scores.masked_fill(~available[column], -torch.inf)
    if scores.isnan().any():
        text, clip = scores.isnan().nonzero()[0].tolist()
        raise EvaluationError(
            f"the similarity of text {row.start + text} and clip {column.start + clip} is NaN: no metric can be computed; "
            "look for a diverged checkpoint or damaged weights"
        )
    return scores


def _correct_scores(
    tile: Tile, clip_of_text: Tensor, available: Tensor, rows: list[slice], columns: list[slice]
) -> tuple[_Scores, dict[tuple[int, int], Tensor]]:
    """Returns the scores of the correct answers, and the tiles on the diagonal, (first text, first clip) -> masked scores.

    They are read from the same tiles that are counted later: computed otherwise they could differ in the last bit, and a
    correct answer would tie with itself or lose to itself. Only tiles on the diagonal are computed. They are kept for
    counting, so that no tile is computed twice; their memory grows with the number of texts, not with that of all tiles.
    """
    of_text = torch.full(clip_of_text.shape, -torch.inf, device=clip_of_text.device)
    of_clip = torch.full(available.shape, -torch.inf, device=clip_of_text.device)
    diagonal: dict[tuple[int, int], Tensor] = {}
    for row in rows:
        clips = clip_of_text[row]
        for column in columns:
            inside = ((clips >= column.start) & (clips < column.stop)).nonzero().squeeze(1)
            if len(inside):
                scores = mask_missing(tile(row, column), row, column, available)
                diagonal[row.start, column.start] = scores
                of_text = of_text.to(scores.dtype)
                of_text[row.start + inside] = scores[inside, clips[inside] - column.start]
    correct = _Scores(of_text, of_clip.to(of_text.dtype).scatter_reduce(0, clip_of_text, of_text, "amax"))
    return correct, diagonal


def _count_tile(counts: _Counts, scores: Tensor, rows: _Rows, column: slice, correct: _Scores) -> None:
    """Adds the answers of one tile to the counts, in place; the correct answer itself is neither higher nor equal."""
    numbers = torch.arange(column.start, column.stop, device=scores.device)
    is_wrong = rows.clip_of_text[:, None] != numbers
    of_text, of_clip = correct.text[rows.texts, None], correct.clip[column]
    counts.t2v[0, rows.texts] += ((scores > of_text) & is_wrong).sum(1)
    counts.t2v[1, rows.texts] += ((scores == of_text) & is_wrong).sum(1)
    best = rows.best_of_group(scores)
    is_wrong = rows.clips[:, None] != numbers
    counts.v2t[0, column] += ((best > of_clip) & is_wrong).sum(0)
    counts.v2t[1, column] += ((best == of_clip) & is_wrong).sum(0)


def _excused_in(excused: Tensor | None, row: slice) -> Tensor | None:
    """Returns the excused pairs whose text is in a chunk of rows; None for none at all."""
    if excused is None or not len(excused):
        return None
    assert bool((excused[:, 0].diff() >= 0).all()), "excused pairs must be sorted by text"
    ends = torch.tensor([row.start, row.stop], device=excused.device)
    start, stop = torch.searchsorted(excused[:, 0].contiguous(), ends).tolist()
    return excused[start:stop]
