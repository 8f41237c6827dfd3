"""Scores of a query that know of other queries: DSL and QB-Norm, tile by tile.

Some videos are near to everything (hubs). Both methods make a video cheaper the more other queries like it.

- DSL, dual softmax: Cheng et al., "Improving Video-Text Retrieval by Multi-Stream Corpus Alignment and Dual Softmax Loss",
  2021 (arXiv 2109.04290). The score of a pair is multiplied by a softmax over all queries of the test set. It needs them
  all at once, and it knows that each video is meant by one of them.
- QB-Norm with the dynamic inverted softmax: Bogolin et al., "Cross Modal Retrieval with Querybank Normalisation", CVPR 2022
  (arXiv 2112.12777). The other queries are a bank of training captions, so that a query is answered by itself.

Both are tiles around a `Tile`. What they divide by is accumulated in a pass of its own, in an order that does not depend on
the number of workers, in float64; memory grows with the sides of the matrix.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from waver.evaluation.ranking import EvaluationError, Ranks, Tile, checked, column_chunks, rank_tiles, row_chunks
from waver.evaluation.top_clips import no_clips, push


@dataclass(frozen=True)
class Workers:
    """This worker among all, as `rank_tiles` takes it."""

    worker: int = 0
    num_workers: int = 1
    all_reduce: Callable[[Tensor, Literal["sum", "max"]], Tensor] = lambda tensor, _: tensor


def check_one_to_one(clip_of_text: Int[Tensor, " texts"], num_clips: int) -> None:
    """Whether DSL means anything here.

    Raises:
        EvaluationError: where a clip has several captions: a softmax over texts would share one video among them.
    """
    if len(clip_of_text) != num_clips:
        raise EvaluationError(
            f"evaluate.dsl compares all queries at once and takes each clip for the answer to one of them; here "
            f"{len(clip_of_text)} captions stand for {num_clips} clips. Evaluate on a split with one caption a clip (the "
            "test split of msrvtt 9k or 7k, or of didemo), or leave it out (--set evaluate.dsl=false); evaluate.qb_norm "
            "has no such need"
        )


def dual_softmax_ranks(
    tile: Tile,
    clip_of_text: Int[Tensor, " texts"],
    available: Bool[Tensor, " clips"],
    *,
    scale: float,
    chunk_size: int,
    workers: Workers = Workers(),
) -> Ranks:
    """Ranks by s * softmax(scale * s), the softmax over the texts for text to video, over the clips for video to text.

    Args:
        tile: of similarities s; see `rank_tiles`.
        clip_of_text: the clip of each text, ascending.
        available: which clips have an embedding; the others are in no softmax.
        scale: of the logits, divided by the temperature.
        chunk_size: side of a tile.
        workers: who this is, among how many.

    Raises:
        EvaluationError: see `check_one_to_one`.
    """
    check_one_to_one(clip_of_text, len(available))
    chunks = row_chunks(clip_of_text, chunk_size)
    of_texts, of_clips = _log_masses(tile, chunks, available, scale=scale, chunk_size=chunk_size, workers=workers)

    def over_texts(rows: slice, columns: slice) -> Tensor:
        scores = tile(rows, columns).double()
        return scores * (scale * scores - of_clips[columns]).exp()

    def over_clips(rows: slice, columns: slice) -> Tensor:
        scores = tile(rows, columns).double()
        return scores * (scale * scores - of_texts[rows, None]).exp()

    t2v, v2t = (
        rank_tiles(rescored, clip_of_text, available, chunk_size=chunk_size, **vars(workers))
        for rescored in (over_texts, over_clips)
    )
    return Ranks(t2v.t2v, v2t.v2t)


@dataclass(frozen=True)
class QueryBank:
    """What the queries of a bank think of the gallery."""

    log_mass: Float[Tensor, " clips"]
    """Logarithm of the sum of exp(beta * s) over the bank."""
    active: Bool[Tensor, " clips"]
    """The activation set: clips that are among the first of some query in the bank."""


def read_bank(
    tile: Tile,
    num_queries: int,
    available: Bool[Tensor, " clips"],
    *,
    beta: float,
    top_k: int,
    chunk_size: int,
    workers: Workers = Workers(),
) -> QueryBank:
    """Compares a bank of queries with the gallery.

    Args:
        tile: of similarities between the bank and the gallery; rows are asked for in chunks of `chunk_size` queries.
        num_queries: in the bank.
        available: which clips have an embedding.
        beta: inverse temperature.
        top_k: how many of the first clips of a query are active.
        chunk_size: side of a tile.
        workers: who this is, among how many.
    """
    chunks = column_chunks(num_queries, chunk_size)
    active = torch.zeros(len(available), dtype=torch.int, device=available.device)

    def watch(chunk: slice, columns: slice, scores: Tensor) -> None:
        nonlocal first
        if columns.start == 0:
            first = no_clips(len(scores), top_k, like=scores)
        push(first, slice(None), scores, torch.arange(columns.start, columns.stop, device=scores.device))
        if columns.stop == len(available):
            active[first.clips[first.clips >= 0]] = 1

    first = None
    _, log_mass = _log_masses(tile, chunks, available, scale=beta, chunk_size=chunk_size, workers=workers, watch=watch)
    return QueryBank(log_mass, workers.all_reduce(active, "max").bool())


def inverted_softmax_ranks(
    tile: Tile,
    bank: QueryBank,
    clip_of_text: Int[Tensor, " texts"],
    available: Bool[Tensor, " clips"],
    *,
    beta: float,
    chunk_size: int,
    workers: Workers = Workers(),
) -> Float[Tensor, " texts"]:
    """Ranks, from text to video, by the dynamic inverted softmax.

    A query whose first clip is in the activation set is answered by exp(beta * s) over the bank's sum for the clip, another
    by s. There are no ranks from video to text: a bank of captions says nothing of them.

    Args:
        tile: of similarities; see `rank_tiles`.
        bank: of the same gallery.
        clip_of_text: the clip of each text, ascending.
        available: which clips have an embedding.
        beta: inverse temperature.
        chunk_size: side of a tile.
        workers: who this is, among how many.
    """
    mine = row_chunks(clip_of_text, chunk_size)[workers.worker :: workers.num_workers]
    first = no_clips(len(clip_of_text), 1, like=bank.log_mass)
    for rows in mine:
        for columns in column_chunks(len(available), chunk_size):
            scores = checked(tile(rows, columns), rows, columns, available).double()
            push(first, rows, scores, torch.arange(columns.start, columns.stop, device=scores.device))
    normalised = bank.active[first.clips[:, 0]]

    def dynamic(rows: slice, columns: slice) -> Tensor:
        scores = tile(rows, columns).double()
        # The logarithm of the published quotient: the same order, and no overflow.
        return (beta * scores - bank.log_mass[columns]).where(normalised[rows, None], scores)

    return rank_tiles(dynamic, clip_of_text, available, chunk_size=chunk_size, **vars(workers)).t2v


def _log_masses(
    tile: Tile,
    chunks: list[slice],
    available: Bool[Tensor, " clips"],
    *,
    scale: float,
    chunk_size: int,
    workers: Workers,
    watch: Callable[[slice, slice, Tensor], None] = lambda rows, columns, scores: None,
) -> tuple[Float[Tensor, " texts"], Float[Tensor, " clips"]]:
    """Log of the sums of exp(scale * s): of each text over clips (this worker's texts), of each clip over all texts."""
    num_clips, device = len(available), available.device
    of_texts = torch.full((chunks[-1].stop,), -torch.inf, dtype=torch.float64, device=device)
    of_clips = torch.full((num_clips,), -torch.inf, dtype=torch.float64, device=device)
    # In turns of one chunk for each worker, then added in the order of chunks: rounding, too, is the same for any number.
    for turn in range(0, len(chunks), workers.num_workers):
        parts = torch.zeros(workers.num_workers, num_clips, dtype=torch.float64, device=device)
        if turn + workers.worker < len(chunks):
            rows = chunks[turn + workers.worker]
            for columns in column_chunks(num_clips, chunk_size):
                scores = checked(tile(rows, columns), rows, columns, available)
                watch(rows, columns, scores)
                logits = scale * scores.double()
                parts[workers.worker, columns] = logits.logsumexp(0)
                of_texts[rows] = torch.logaddexp(of_texts[rows], logits.logsumexp(1))
        for part in workers.all_reduce(parts, "sum")[: len(chunks) - turn]:
            of_clips = torch.logaddexp(of_clips, part)
    return of_texts, of_clips
