"""Reads batches of clips for a training worker ahead of their use, in order, with Ray Data."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from waver.data.clip_store import ClipStore
from waver.on_ray.cluster.connection import local_node_label

_PREFETCH_BATCHES = 2
_MAX_PAUSE_S = 6 * 3600


def clip_stream(store: ClipStore, batches: list[list[str]], *, loaders: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Reads batches of clips ahead of their use.

    One execution of Ray Data serves all batches of a run, since each execution takes seconds to start. Each batch is one
    block, so that Ray Data neither splits nor merges batches.

    Args:
        store: clip store; its path must exist on every node.
        batches: clip ids of each batch.
        loaders: number of loader processes, each of which reads one batch at a time.

    Yields:
        frames, uint8 (B, max_frames, size, size, 3), and num_frames, int32 (B,), of each batch in order.
    """
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    # Ray Data must not split large blocks: part of a batch would be paired with the captions of another.
    context.target_max_block_size = None
    # No batch is taken during an evaluation, and Ray Data must not mistake that for a hang.
    context.execution_no_progress_timeout_s = _MAX_PAUSE_S
    plan = ray.data.from_blocks([pa.table({"clip_id": batch}) for batch in batches])
    blocks = plan.map_batches(
        _Loader,
        fn_constructor_args=(store.path,),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=loaders),
        num_cpus=0,  # the training worker has reserved CPUs for its loaders, see CPUS_PER_LOADER
        # On the worker's node, frames do not cross the network, and a lost node takes no loader from other workers.
        label_selector=local_node_label(),
    )
    shape = (store.settings.max_frames, store.settings.size, store.settings.size, 3)
    for block in blocks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=_PREFETCH_BATCHES):
        num_frames = block["num_frames"].combine_chunks().to_numpy()
        # Copied out of Ray's shared memory, so that the block can be freed while the batch is in use.
        pixels = np.frombuffer(block["frames"].combine_chunks().buffers()[2], np.uint8)
        yield pixels.reshape(len(num_frames), *shape).copy(), num_frames.copy()


class _Loader:
    """Reads the clips of a batch from the store; keeps the store's files open between batches."""

    def __init__(self, path: Path):
        self.store = ClipStore(path)

    def __call__(self, batch: pa.Table) -> pa.Table:
        frames, num_frames = self.store.read(batch["clip_id"].to_pylist())
        # Wraps the array of frames in Arrow's layout, one row per clip, without copying it.
        offsets = np.arange(len(frames) + 1, dtype=np.int64) * frames[0].nbytes
        pixels = pa.Array.from_buffers(
            pa.large_binary(), len(frames), [None, pa.py_buffer(offsets), pa.py_buffer(frames.reshape(-1))]
        )
        return pa.table({"frames": pixels, "num_frames": pa.array(num_frames, pa.int32())})
