"""Training input of later epochs: threads, processes of Ray Data, a bare copy, and a loader that opens every video.

- threads: `read_ahead`, threads of the training process (`resources.loaders_per_worker: 0`).
- loaders: `clip_stream`, processes of Ray Data (`resources.loaders_per_worker: 2`).
- copy: `numpy.copyto` of frames that are in memory, into memory that was used before.
- conventional: the data set of the baseline, in the worker processes of torch's DataLoader, which stay between epochs.

The first three deliver the same clips of a clip store in the same random order. All ways take turns, so that other work of
the machine affects all. The start is the time to the first batch. Speed is that of one epoch: warm, the second, from its
first batch to its last; cold, the first, after the kernel was asked to drop the clips files from its page cache.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from waver.benchmarks.context import Context
from waver.benchmarks.synthetic import PROMPT, make_captions, make_clips, make_video
from waver.benchmarks.table import Row, not_measured
from waver.data.batch import ReadClips, read_ahead
from waver.data.clip_store import ClipStore
from waver.model.tokenizer import find_tokenizer

THREADS, LOADERS, COPY, CONVENTIONAL = "threads", "loaders of Ray Data", "copy", "conventional"
_NUM_VIDEOS = 4
Measure = Callable[[], tuple[float, float]]
"""Reads an epoch; returns clips per second, and seconds to the first batch."""


@dataclass(frozen=True)
class InputSpeed:
    """What one way of reading takes, a value for each turn."""

    frame_format: str
    is_cold: bool
    way: str
    clips_per_s: tuple[float, ...]
    start_s: tuple[float, ...]
    of_copy: tuple[float, ...]
    """Clips per second, divided by those of the copy in the same turn."""


def measure_training_input(context: Context) -> list[Row]:
    """Measures raw frames in the page cache: clips per second of a later epoch, and seconds to the first batch."""
    sizes = context.sizes
    others: dict[str, Measure] = {}
    if context.conventional:
        others[CONVENTIONAL] = conventional_input(context)
    speeds = list(
        measure_input(
            context.folder,
            num_clips=sizes.input_clips,
            batch_size=sizes.input_batch,
            repeats=context.repeats,
            loaders=sizes.loaders,
            stores=[("raw", False)],
            shape=(sizes.max_frames, sizes.image_size),
            others=others,
        )
    )
    work = f"input of later epochs, raw frames, page cache warm, batches of {sizes.input_batch}"
    start = "start of the input: time to the first batch"
    rows = [
        Row(
            work,
            speed.way,
            "clips/s",
            speed.clips_per_s,
            ratios=() if speed.way == COPY else speed.of_copy,
            reference="" if speed.way == COPY else COPY,
            target={THREADS: "0.4 of copy"}.get(speed.way, ""),
        )
        for speed in speeds
    ]
    # The copy reads what it copies first, and the workers of the baseline are started once.
    rows += [
        Row(start, speed.way, "s", speed.start_s, target={THREADS: "0.1 s"}.get(speed.way, ""))
        for speed in speeds
        if speed.way in (THREADS, LOADERS)
    ]
    missing = [] if context.conventional else [(CONVENTIONAL, context.why_not)]
    missing += [] if sizes.loaders else [(LOADERS, "no loaders were asked for")]
    return rows + [not_measured(work, way, reason) for way, reason in missing]


def measure_input(
    folder: Path,
    *,
    num_clips: int = 480,
    batch_size: int = 32,
    repeats: int = 5,
    loaders: int = 2,
    stores: Sequence[tuple[str, bool]] = (("raw", False), ("raw", True), ("jpeg", False), ("jpeg", True)),
    shape: tuple[int, int] = (12, 224),
    others: dict[str, Measure] | None = None,
) -> Iterator[InputSpeed]:
    """Makes clip stores, reads them in all ways in turns, and yields what each way takes.

    Args:
        folder: folder of the stores.
        num_clips: number of clips in a store.
        batch_size: number of clips in a batch.
        repeats: number of turns.
        loaders: processes of Ray Data; 0 to leave them out, and Ray.
        stores: (format of the frames, whether the page cache is cold) of each measurement.
        shape: number of frames of a clip, and their height and width in pixels.
        others: name -> another way, which does not read the store.
    """
    max_frames, size = shape
    ways: dict[str, ReadClips] = {THREADS: read_ahead, COPY: copy_frames}
    connection: Any = nullcontext()
    if loaders:
        from waver.on_ray.cluster.connection import connect  # imported here, since all other ways need no Ray
        from waver.on_ray.stages.loader import clip_stream

        ways[LOADERS] = partial(clip_stream, loaders=loaders)
        connection = connect(num_cpus=os.cpu_count())
    with connection:
        for frame_format, is_cold in stores:
            path = folder / frame_format
            if not path.exists():
                make_clips(path, num_clips, size=size, max_frames=max_frames, frame_format=frame_format)
            measures: dict[str, Measure] = {
                way: partial(read_once, reader, path, batch_size, is_cold) for way, reader in ways.items()
            }
            measures |= others or {}
            turns = [{way: measure() for way, measure in measures.items()} for _ in range(repeats)]
            for way in measures:
                speeds, starts = zip(*(turn[way] for turn in turns), strict=True)
                ratios = tuple(turn[way][0] / turn[COPY][0] for turn in turns)
                yield InputSpeed(frame_format, is_cold, way, speeds, starts, ratios)


def read_once(reader: ReadClips, path: Path, batch_size: int, is_cold: bool) -> tuple[float, float]:
    """Reads an epoch, after one to warm up unless the page cache is to be cold; returns clips/s and seconds to start."""
    store = ClipStore(path)
    order = np.random.default_rng(0).permutation(store.ok_clip_ids()).tolist()
    epoch = [order[first : first + batch_size] for first in range(0, len(order), batch_size)]
    if is_cold:
        drop_from_page_cache(path)
    first = 0 if is_cold else len(epoch)
    started = counted_from = time.perf_counter()
    start_s, num_clips = 0.0, 0
    for number, (frames, _) in enumerate(reader(store, epoch if is_cold else epoch * 2)):
        if number == 0:
            start_s = time.perf_counter() - started
        if number == first:
            counted_from = time.perf_counter()
        elif number > first:
            num_clips += len(frames)
    return num_clips / (time.perf_counter() - counted_from), start_s


def copy_frames(store: ClipStore, batches: list[list[str]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Copies the frames of the first batch once per batch."""
    source, num_frames = store.read(max(batches, key=len))
    target = np.zeros_like(source)
    for batch in batches:
        np.copyto(target[: len(batch)], source[: len(batch)])
        yield target[: len(batch)], num_frames[: len(batch)]


def drop_from_page_cache(path: Path) -> None:
    """Asks the kernel to drop the clips files of a store from its page cache (Linux)."""
    for file in (path / "clips").iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())  # pages that are not on the disk yet are kept
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def conventional_input(context: Context) -> Measure:
    """Returns a function that decodes some captions' videos with the loader of the baseline."""
    sizes, conventional = context.sizes, context.conventional
    videos = [str(make_video(context.folder / f"video{number}.mp4")) for number in range(_NUM_VIDEOS)]
    captions = make_captions(sizes.decoded_clips, 1, max_words=sizes.max_words)["caption"].to_pylist()
    tokens = find_tokenizer(sizes.backbone)(captions, max_words=sizes.max_words, prompt=PROMPT)
    data = conventional.CaptionedVideos(
        [videos[row % _NUM_VIDEOS] for row in range(len(captions))],
        *tokens,
        frames_per_second=1.0,
        max_frames=sizes.max_frames,
        size=sizes.image_size,
    )
    batch_size = max(1, sizes.decoded_clips // 8)
    loader = conventional.make_loader(data, batch_size, num_workers=sizes.decoders)
    for _ in loader:  # starts the workers, which stay
        pass

    def measure() -> tuple[float, float]:
        started, start_s = time.perf_counter(), 0.0
        for number, _ in enumerate(loader):
            start_s = start_s if number else time.perf_counter() - started
        return len(data) / (time.perf_counter() - started), start_s

    return measure
