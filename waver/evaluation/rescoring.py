"""Similarities rescored by other queries, DSL and QB-Norm, tile by tile.

Some videos are close to every query (hubs). Both methods lower a video's score the more other queries are close to it.

- DSL, dual softmax: Cheng et al., "Improving Video-Text Retrieval by Multi-Stream Corpus Alignment and Dual Softmax Loss",
  2021 (arXiv 2109.04290). Multiplies the score of a pair by a softmax over all queries of the test set. It needs all of
  them at once, and assumes that each video answers one of them.
- QB-Norm with the dynamic inverted softmax: Bogolin et al., "Cross Modal Retrieval with Querybank Normalisation", CVPR 2022
  (arXiv 2112.12777). Normalises by a bank of training captions, so that each query is answered by itself.

Both wrap a `Tile`. Their normalisers are accumulated in a separate pass, in float64 and in an order that does not depend on
the number of workers. Memory grows with the sides of the similarity matrix.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from waver.evaluation.ranking import (
    EvaluationError,
    Ranks,
    Tile,
    Workers,
    column_chunks,
    mask_missing,
    rank_tiles,
    row_chunks,
)
from waver.evaluation.top_clips import TopClips, empty_top_clips, update_top_clips


def check_one_to_one(clip_of_text: Int[Tensor, " texts"], num_clips: int) -> None:
    """Checks that DSL is defined for a split.

    Raises:
        EvaluationError: if a clip has several captions, since a softmax over texts would divide the clip among them.
    """
    if len(clip_of_text) != num_clips:
        raise EvaluationError(
            f"evaluate.dsl compares all queries at once and assumes that each clip answers one of them; this split has "
            f"{len(clip_of_text)} captions for {num_clips} clips. Evaluate on a split with one caption per clip (the test "
            "split of msrvtt 9k or 7k, or of didemo), or switch it off (--set evaluate.dsl=false); evaluate.qb_norm has no "
            "such requirement"
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
        tile: computes a tile of similarities s; see `rank_tiles`.
        clip_of_text: the clip of each text, ascending.
        available: which clips have an embedding; the others are left out of every softmax.
        scale: factor on the similarities in the softmax: the logit scale divided by DSL's temperature.
        chunk_size: side of a tile.
        workers: this worker among all.

    Raises:
        EvaluationError: see `check_one_to_one`.
    """
    check_one_to_one(clip_of_text, len(available))
    chunks = row_chunks(clip_of_text, chunk_size)
    of_texts, of_clips = _log_sums(tile, chunks, available, scale=scale, chunk_size=chunk_size, workers=workers)

    def over_texts(rows: slice, columns: slice) -> Tensor:
        scores = tile(rows, columns).double()
        return scores * (scale * scores - of_clips[columns]).exp()

    def over_clips(rows: slice, columns: slice) -> Tensor:
        scores = tile(rows, columns).double()
        return scores * (scale * scores - of_texts[rows, None]).exp()

    t2v, v2t = (
        rank_tiles(rescored, clip_of_text, available, chunk_size=chunk_size, workers=workers)
        for rescored in (over_texts, over_clips)
    )
    return Ranks(t2v.t2v, v2t.v2t, t2v.t2v_ties, v2t.v2t_ties)


@dataclass(frozen=True)
class QueryBank:
    """The normaliser of each clip, from a bank of queries."""

    log_sum: Float[Tensor, " clips"]
    """Logarithm of the sum of exp(beta * s) over the bank."""
    active: Bool[Tensor, " clips"]
    """The activation set: clips among the first top_k answers of some query in the bank."""


def build_query_bank(
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
        tile: computes a tile of similarities between bank and gallery, in chunks of `chunk_size` queries.
        num_queries: number of queries in the bank.
        available: which clips have an embedding.
        beta: inverse temperature.
        top_k: number of first clips of a query that are active.
        chunk_size: side of a tile.
        workers: this worker among all.
    """
    chunks = column_chunks(num_queries, chunk_size)
    active = torch.zeros(len(available), dtype=torch.int, device=available.device)
    first: TopClips | None = None

    def activate(columns: slice, scores: Tensor) -> None:
        nonlocal first
        if columns.start == 0:
            first = empty_top_clips(len(scores), top_k, like=scores)
        assert first is not None, "the first tile of a row starts at column 0"
        update_top_clips(first, slice(None), scores, torch.arange(columns.start, columns.stop, device=scores.device))
        if columns.stop == len(available):
            active[first.clips[first.clips >= 0]] = 1

    _, log_sum = _log_sums(
        tile, chunks, available, scale=beta, chunk_size=chunk_size, workers=workers, on_tile=activate
    )
    return QueryBank(log_sum, workers.all_reduce(active, "max").bool())


def inverted_softmax_ranks(
    tile: Tile,
    bank: QueryBank,
    clip_of_text: Int[Tensor, " texts"],
    available: Bool[Tensor, " clips"],
    *,
    beta: float,
    chunk_size: int,
    workers: Workers = Workers(),
) -> Ranks:
    """Ranks by the dynamic inverted softmax, from text to video.

    A query whose first clip is in the activation set scores clips by exp(beta * s) / (the clip's sum over the bank), any
    other query by s. Only `t2v` of the result is defined: the bank has no videos.

    Args:
        tile: computes a tile of similarities s; see `rank_tiles`.
        bank: normalisers of the same gallery.
        clip_of_text: the clip of each text, ascending.
        available: which clips have an embedding.
        beta: inverse temperature.
        chunk_size: side of a tile.
        workers: this worker among all.
    """
    own_rows = row_chunks(clip_of_text, chunk_size)[workers.worker :: workers.num_workers]
    first = empty_top_clips(len(clip_of_text), 1, like=bank.log_sum)
    for rows in own_rows:
        for columns in column_chunks(len(available), chunk_size):
            scores = mask_missing(tile(rows, columns), rows, columns, available).double()
            update_top_clips(first, rows, scores, torch.arange(columns.start, columns.stop, device=scores.device))
    normalised = bank.active[first.clips[:, 0]]

    def dynamic(rows: slice, columns: slice) -> Tensor:
        scores = tile(rows, columns).double()
        # The logarithm of the published quotient: the same order, and no overflow.
        return (beta * scores - bank.log_sum[columns]).where(normalised[rows, None], scores)

    return rank_tiles(dynamic, clip_of_text, available, chunk_size=chunk_size, workers=workers)


def _log_sums(
    tile: Tile,
    chunks: list[slice],
    available: Bool[Tensor, " clips"],
    *,
    scale: float,
    chunk_size: int,
    workers: Workers,
    on_tile: Callable[[slice, Tensor], None] = lambda columns, scores: None,
) -> tuple[Float[Tensor, " texts"], Float[Tensor, " clips"]]:
    """Returns the logarithms of the sums of exp(scale * s): of this worker's texts over clips, of clips over all texts.

    Calls `on_tile` with the columns and the masked scores of every tile.
    """
    num_clips, device = len(available), available.device
    of_texts = torch.full((chunks[-1].stop,), -torch.inf, dtype=torch.float64, device=device)
    of_clips = torch.full((num_clips,), -torch.inf, dtype=torch.float64, device=device)
    # One chunk per worker and turn, added in the order of chunks: rounding does not depend on the number of workers.
    for turn in range(0, len(chunks), workers.num_workers):
        parts = torch.zeros(workers.num_workers, num_clips, dtype=torch.float64, device=device)
        if turn + workers.worker < len(chunks):
            rows = chunks[turn + workers.worker]
            for columns in column_chunks(num_clips, chunk_size):
                scores = mask_missing(tile(rows, columns), rows, columns, available)
                on_tile(columns, scores)
                logits = scale * scores.double()
                parts[workers.worker, columns] = logits.logsumexp(0)
                of_texts[rows] = torch.logaddexp(of_texts[rows], logits.logsumexp(1))
        for part in workers.all_reduce(parts, "sum")[: len(chunks) - turn]:
            of_clips = torch.logaddexp(of_clips, part)
    return of_texts, of_clips
