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
    captions_per_clip: int = 1,
) -> list[Int[np.ndarray, " B"]]:
    """Assigns the rows of the caption table to the global batches of an epoch.

    An epoch consists of `captions_per_clip` passes; a pass visits each clip once, in a new order. Each visit takes the next
    caption of the clip, so that all captions are used before any is repeated, across passes and epochs. A batch never has
    two captions of one clip. No clip is dropped: a pass is divided into as few batches as possible, whose sizes differ by at
    most one (a small last batch would have hardly any negatives).

    Args:
        clip_of_caption: for each caption, the number of its clip; captions of a clip are adjacent.
        epoch: number of the epoch, from 0.
        seed: seed of the run.
        global_batch_size: maximal number of pairs in a batch, over all workers. With fewer clips a batch has all of them.
        captions_per_clip: passes in an epoch.

    Returns:
        The rows of each batch.
    """
    _, first, num_captions = np.unique(clip_of_caption, return_index=True, return_counts=True)
    start = np.random.default_rng([seed, 0]).integers(0, num_captions)
    batches: list[np.ndarray] = []
    for visit in range(epoch * captions_per_clip, (epoch + 1) * captions_per_clip):
        rows = first + (start + visit) % num_captions
        order = np.random.default_rng([seed, 1, visit]).permutation(len(rows))
        batches += np.array_split(rows[order], -(-len(rows) // global_batch_size))
    return batches


def even_batches(num_rows: int, batch_size: int) -> Sequence[slice]:
    """Divides the rows of an evaluation into consecutive slices of one size, at most `batch_size`; the last may be smaller.

    The slices do not depend on the number of workers.
    """
    size = math.ceil(num_rows / max(1, math.ceil(num_rows / batch_size)))
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, max(1, size))]
