"""The plan of an epoch: which caption of which clip stands in which batch.

It is a pure function of (captions, seed, epoch), the same for every worker and every number of workers, so that a run can
be resumed anywhere and repeated with other resources.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from waver.tools.errors import WaverError


class BatchSizeError(WaverError):
    """The global batch is larger than the number of training clips."""


def epoch_batches(
    clip_of_caption: Int[np.ndarray, " captions"],
    *,
    epoch: int,
    seed: int,
    global_batch_size: int,
    captions_per_clip: int = 1,
) -> list[Int[np.ndarray, " B"]]:
    """Rows of the caption table for each global batch of an epoch.

    An epoch is `captions_per_clip` passes; a pass visits every clip once, in a new order. Each visit takes another caption
    of the clip: all of them come up before any comes again, across passes and epochs. Two captions of one clip never meet
    in a batch. Nothing is dropped: a pass is cut into as few batches as hold it, whose sizes differ by at most one (a small
    rest would make a batch with hardly any negatives).

    Args:
        clip_of_caption: for each caption, the number of its clip; captions of a clip are adjacent.
        epoch: from 0.
        seed: of the run.
        global_batch_size: pairs in a batch, over all workers, at most.
        captions_per_clip: passes in an epoch.

    Raises:
        BatchSizeError: if there are fewer clips than pairs in a batch.
    """
    _, first, num_captions = np.unique(clip_of_caption, return_index=True, return_counts=True)
    if len(first) < global_batch_size:
        raise BatchSizeError(
            f"train.global_batch_size = {global_batch_size} is more than the {len(first)} training clips: "
            f"no clip may stand in a batch twice; set it to {len(first)} at most"
        )
    start = np.random.default_rng([seed, 0]).integers(0, num_captions)
    batches: list[np.ndarray] = []
    for visit in range(epoch * captions_per_clip, (epoch + 1) * captions_per_clip):
        rows = first + (start + visit) % num_captions
        order = np.random.default_rng([seed, 1, visit]).permutation(len(rows))
        batches += np.array_split(rows[order], -(-len(rows) // global_batch_size))
    return batches


def fixed_batches(num_rows: int, batch_size: int) -> Sequence[slice]:
    """Consecutive slices of an evaluation. They do not depend on the number of workers, so neither does any figure."""
    return [slice(start, min(start + batch_size, num_rows)) for start in range(0, num_rows, batch_size)]
