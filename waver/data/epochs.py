"""Assigns captions to the global batches of an epoch.

The assignment is a pure function of (captions, seed, epoch), the same on each worker and for any number of workers, so that
a run can be resumed at any step and repeated with other resources.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int


def epoch_batches(
    clip_of_caption: Int[np.ndarray, " captions"],
    *,
    epoch: int,
    seed: int,
    global_batch_size: int,
    captions_per_clip: int | None,
) -> list[Int[np.ndarray, " B"]]:
    """Assigns the rows of the caption table to the global batches of an epoch.

    An epoch visits each caption once. With `captions_per_clip` it consists of so many passes instead; a pass visits each
    clip once, in a new order. Each visit takes the next caption of the clip, so that all captions are used before any is
    repeated, across passes and epochs.

    A batch never has two captions of one clip. No clip is dropped: an epoch or a pass is divided into as few batches as
    possible, whose sizes differ by at most one (a small last batch would have hardly any negatives).

    Args:
        clip_of_caption: for each caption, the number of its clip; captions of a clip are adjacent.
        epoch: number of the epoch, from 0.
        seed: seed of the run.
        global_batch_size: maximal number of pairs in a batch, over all workers. With fewer clips a batch has all of them.
        captions_per_clip: passes in an epoch; None to visit each caption once.

    Returns:
        The rows of each batch.
    """
    _, first, num_captions = np.unique(clip_of_caption, return_index=True, return_counts=True)
    if captions_per_clip is None:
        draw = np.random.default_rng([seed, 2, epoch])
        return _all_captions(first, num_captions, num_batches(num_captions, global_batch_size), draw)
    start = np.random.default_rng([seed, 0]).integers(0, num_captions)
    batches: list[np.ndarray] = []
    for visit in range(epoch * captions_per_clip, (epoch + 1) * captions_per_clip):
        rows = first + (start + visit) % num_captions
        order = np.random.default_rng([seed, 1, visit]).permutation(len(rows))
        batches += np.array_split(rows[order], -(-len(rows) // global_batch_size))
    return batches


def num_batches(num_captions: Int[np.ndarray, " clips"], global_batch_size: int) -> int:
    """Returns the number of batches in an epoch that visits each caption once.

    It is at least the number of captions of any clip, since these are in different batches.

    Args:
        num_captions: number of captions of each clip.
        global_batch_size: maximal number of pairs in a batch.
    """
    return max(-(-int(num_captions.sum()) // global_batch_size), int(num_captions.max()))


def _all_captions(
    first: Int[np.ndarray, " clips"], num_captions: Int[np.ndarray, " clips"], number: int, draw: np.random.Generator
) -> list[Int[np.ndarray, " B"]]:
    """Assigns captions to batches whose sizes differ by at most one; captions of a clip go to different batches.

    The captions, clip by clip in random order, are dealt to the batches in rounds. Each round is a new random order of all
    batches. Only a clip whose captions continue into the next round could meet a batch twice: it goes first there, to
    batches that it has not met.

    Args:
        first: first row of each clip; its other rows follow.
        num_captions: number of captions of each clip, at most `number`.
        number: number of batches.
        draw: random numbers.
    """
    order = draw.permutation(len(first))
    ends = np.cumsum(num_captions[order])
    starts = ends - num_captions[order]
    rows = np.concatenate([first[clip] + draw.permutation(num_captions[clip]) for clip in order])
    batch_of = np.empty(len(rows), np.int64)
    for begin in range(0, len(rows), number):
        dealt = draw.permutation(number)
        clip = int(np.searchsorted(ends, begin, side="right"))  # the one at the beginning of the round
        if met := begin - starts[clip]:
            free = dealt[~np.isin(dealt, batch_of[begin - met : begin])][: ends[clip] - begin]
            dealt = np.concatenate([free, dealt[~np.isin(dealt, free)]])
        batch_of[begin : begin + number] = dealt[: len(rows) - begin]
    by_batch = np.argsort(batch_of, kind="stable")
    return np.split(rows[by_batch], np.cumsum(np.bincount(batch_of, minlength=number))[:-1])


def even_batches(num_rows: int, batch_size: int) -> Sequence[slice]:
    """Divides the rows of an evaluation into consecutive slices of one size, at most `batch_size`; the last may be smaller.

    The slices do not depend on the number of workers.
    """
    size = math.ceil(num_rows / max(1, math.ceil(num_rows / batch_size)))
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, max(1, size))]
