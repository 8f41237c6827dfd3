"""Ray Data as the loader of a training worker: batches of clips from the store, in the order of the plan, read ahead."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from waver.data.clip_store import ClipStore
from waver.on_ray.cluster.connection import local_node_label

_READ_AHEAD = 2
_LONGEST_REST_S = 6 * 3600


def clip_stream(store: ClipStore, batches: list[list[str]], *, loaders: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Reads batches of clips ahead of their use.

    One execution of Ray Data serves all batches of a run, across its epochs: starting one takes seconds, going on takes
    none. Each batch is one block, so nothing is cut or joined on the way.

    Args:
        store: where the clips are; every node must see it.
        batches: ids of the clips of each batch.
        loaders: batches read at the same time.

    Yields:
        frames, uint8 (B, max_frames, size, size, 3), and num_frames, int32 (B,), for each batch in order.
    """
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    # Blocks stay as they are, however large: one that is cut would meet the captions of another.
    context.target_max_block_size = None
    # The stream rests while a validation runs, and Ray Data must not take that for a hang.
    context.execution_no_progress_timeout_s = _LONGEST_REST_S
    plan = ray.data.from_blocks([pa.table({"clip_id": batch}) for batch in batches])
    blocks = plan.map_batches(
        _Loader,
        fn_constructor_args=(store.path,),
        batch_size=None,
        batch_format="pyarrow",
        compute=ActorPoolStrategy(size=loaders),
        num_cpus=0,  # its worker has taken them, so that a group that grows leaves room for its loaders
        # Frames need not cross the network, and a node that is lost takes nothing from workers on others.
        label_selector=local_node_label(),
    )
    shape = (store.settings.max_frames, store.settings.size, store.settings.size, 3)
    for block in blocks.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=_READ_AHEAD):
        num_frames = block["num_frames"].combine_chunks().to_numpy()
        # A view of Ray's shared memory, copied so that the block can be freed while the batch is in use.
        pixels = np.frombuffer(block["frames"].combine_chunks().buffers()[2], np.uint8)
        yield pixels.reshape(len(num_frames), *shape).copy(), num_frames.copy()


class _Loader:
    """Reads the clips of a block; keeps the files of the store open between blocks."""

    def __init__(self, path: Path):
        self.store = ClipStore(path)

    def __call__(self, batch: pa.Table) -> pa.Table:
        frames, num_frames = self.store.read(batch["clip_id"].to_pylist())
        # All pixels in one buffer, a row a clip: Arrow's layout around the array as it is.
        offsets = np.arange(len(frames) + 1, dtype=np.int64) * frames[0].nbytes
        pixels = pa.Array.from_buffers(
            pa.large_binary(), len(frames), [None, pa.py_buffer(offsets), pa.py_buffer(frames.reshape(-1))]
        )
        return pa.table({"frames": pixels, "num_frames": pa.array(num_frames, pa.int32())})
