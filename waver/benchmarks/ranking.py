"""The token-wise interaction of captions with clips, and the ranks in both directions, at the lengths of real captions."""

from collections.abc import Callable

import numpy as np
import torch

from waver.benchmarks.context import Context
from waver.benchmarks.synthetic import draw_lengths
from waver.benchmarks.table import Row, not_measured, rows_of
from waver.benchmarks.timing import take_turns
from waver.config.training import EvaluateConfig
from waver.evaluation.ranking import Ranks, rank_tiles
from waver.evaluation.token_wise import token_wise
from waver.model.embeddings import Embeddings
from waver.model.interaction import uniform_weights

WAVER, CONVENTIONAL = "waver", "conventional"


def measure_ranking(context: Context) -> list[Row]:
    """Measures seconds; the embeddings are given, and each clip has one caption."""
    sizes = context.sizes
    text, video = random_pairs(sizes.ranked, sizes.width, max_words=sizes.max_words, max_frames=sizes.max_frames)
    ways: dict[str, Callable[[], object]] = {WAVER: lambda: rank(text, video)}
    work = f"wti {sizes.ranked} x {sizes.ranked} and ranks both ways"
    if (conventional := context.conventional) is None:
        found = take_turns(ways, context.repeats)
        return [*rows_of(work, found, reference=WAVER), not_measured(work, CONVENTIONAL, context.why_not)]
    ways[CONVENTIONAL] = lambda: rank_conventionally(conventional, text, video)
    ranks, expected = rank(text, video), rank_conventionally(conventional, text, video)
    differing = sum(
        int(np.count_nonzero(a.numpy() != b)) for a, b in zip((ranks.t2v, ranks.v2t), expected, strict=True)
    )
    notes = {WAVER: f"{differing} of {2 * sizes.ranked} ranks differ from the conventional ones"}
    found = take_turns(ways, context.repeats, warm_up=False)  # both have just run
    return rows_of(work, found, reference=CONVENTIONAL, targets={WAVER: "1.5 s"}, notes=notes)


def random_pairs(number: int, width: int, *, max_words: int, max_frames: int) -> tuple[Embeddings, Embeddings]:
    """Draws captions of the lengths of MSR-VTT's, and clips of `max_frames` frames."""
    generator = torch.Generator().manual_seed(10)
    lengths = torch.from_numpy(draw_lengths(number, max_words=max_words))
    masks = torch.arange(max_words) < lengths[:, None], torch.ones(number, max_frames, dtype=torch.bool)
    text, video = (
        Embeddings(torch.randn(*mask.shape, width, generator=generator), mask, uniform_weights(mask)) for mask in masks
    )
    return text, video


def rank(text: Embeddings, video: Embeddings) -> Ranks:
    """Ranks captions and clips as `waver evaluate` does."""
    number = len(text)
    return rank_tiles(
        lambda rows, columns: token_wise(text[rows], video[columns]),
        torch.arange(number),
        torch.ones(number, dtype=torch.bool),
        chunk_size=EvaluateConfig().chunk_size,
    )


def rank_conventionally(conventional, text: Embeddings, video: Embeddings) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ranks (t2v, v2t) of the baseline."""
    parts = [(items.values, items.mask, items.weights) for items in (text, video)]
    similarity = conventional.compare_in_blocks(*parts)
    return conventional.ranks(similarity), conventional.ranks(similarity.T)
