"""An epoch of a synthetic MSR-VTT with a frozen backbone: 9,000 clips and their captions, random embeddings of both.

The stores are those that `waver embed` writes. Clips have frames of 8 pixels, which nobody reads. A few steps are measured,
of the size and with the settings of experiments/msrvtt_waver.yaml but for the frozen backbone; the time of the epoch is
extrapolated from them. Captions that are left out save disk space and the time to write them, and change no step.
"""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from waver.benchmarks.context import Context
from waver.benchmarks.students import Setup, build_setup, embed
from waver.benchmarks.table import Row, rows_of
from waver.benchmarks.timing import take_turns
from waver.data.batch import Batch
from waver.data.embedded_clips import EmbeddedClips
from waver.data.embedding_store import EmbeddingStore
from waver.runs.train_loop import worker_batches
from waver.training.plan import plan_epoch, training_rows

PAIRS_OF_MSRVTT = 180_000
CAPTIONS, FRAMES = "stored frames and captions", "stored frames"
_PIXELS = 8
"""Size of the frames of the clip store."""


def measure_epoch(context: Context) -> list[Row]:
    """Measures seconds of a step and, of the stores, disk space and memory."""
    sizes = context.sizes
    per_clip = max(1, sizes.epoch_captions // sizes.epoch_clips)
    train = {
        "backbone_lr_scale": 0,
        "precision": "fp32",
        "global_batch_size": sizes.epoch_pairs,
        "captions_per_clip": per_clip,
    }
    setup = build_setup(
        context, sizes.epoch_clips, captions_per_clip=per_clip, image_size=_PIXELS, settings={"train": train}
    )
    started = time.perf_counter()
    stored = embed(setup, context.folder, tokens=True)
    written_s = time.perf_counter() - started
    assert stored.frames is not None, "embed writes frames"
    assert stored.tokens is not None, "embed writes tokens"
    number = context.repeats + 1
    ways: dict[str, Callable[[], object]] = {
        CAPTIONS: setup.stepper(_epoch(setup, stored, number)),
        FRAMES: setup.stepper(_epoch(setup, EmbeddedClips(setup.clips, stored.frames), number)),
    }
    found = take_turns(ways, context.repeats)
    work = (
        f"step of {sizes.epoch_pairs} pairs, synthetic MSR-VTT, {sizes.epoch_clips:,} clips, frozen backbone, CPU fp32"
    )
    rows = rows_of(work, found, reference=FRAMES)
    num_steps = math.ceil(sizes.epoch_clips / sizes.epoch_pairs) * round(PAIRS_OF_MSRVTT / sizes.epoch_clips)
    rows += [
        Row(
            f"epoch of {PAIRS_OF_MSRVTT:,} pairs, extrapolated from {context.repeats} steps",
            name,
            "minutes",
            tuple(seconds * num_steps / 60 for seconds in timing.wall_s),
            target="30 minutes" if name == CAPTIONS else "",
            note=f"{num_steps:,} steps",
        )
        for name, timing in found.items()
    ]
    texts = list(dict.fromkeys(setup.captions["caption"].to_pylist()))
    written = f"both stores were written in {written_s:.0f} s"
    return [
        *rows,
        _space("frames of the embedding store", stored.frames, sizes.epoch_clips, sizes.epoch_clips, written),
        _space("captions of the embedding store", stored.tokens, len(texts), PAIRS_OF_MSRVTT, ""),
    ]


def _epoch(setup: Setup, store: EmbeddedClips, number: int) -> Iterator[Batch]:
    """Yields the first batches of an epoch, as a run plans it."""
    rows = training_rows(setup.captions, setup.clips)
    plan = plan_epoch(setup.config, setup.captions, rows, epoch=0)
    plan = (plan * math.ceil(number / len(plan)))[:number]
    return worker_batches(plan, setup.captions, store, setup.config, setup.knowledge)


def _space(what: str, store: EmbeddingStore, num_items: int, full: int, note: str) -> Row:
    """Returns the disk space of a store, and the memory of its index; its values stay in the page cache."""
    num_bytes = folder_bytes(store.path)
    before = psutil.Process().memory_info().rss
    opened = EmbeddingStore(store.path)
    assert len(opened) == num_items, "the store has an item for each clip or caption"  # opens its index
    index = max(0, psutil.Process().memory_info().rss - before)
    scale = full / num_items
    notes = [
        f"{num_bytes / num_items / 1024:.1f} KiB an item",
        f"index in memory {index / 2**20:.0f} MiB, values in the page cache",
        f"{num_bytes * scale / 2**30:.2f} GiB for {full:,} items (computed)" if full != num_items else "",
        note,
    ]
    return Row(f"disk space of the {what}, {num_items:,} items", "fp16", "GiB", (num_bytes / 2**30,),
               note="; ".join(filter(None, notes)))  # fmt: skip


def folder_bytes(folder: Path) -> int:
    """Returns the size of all files below a folder, bytes."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
