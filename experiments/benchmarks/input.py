"""Compares ways to read training input from a clip store, page cache warm and cold, with a bare copy of the same bytes.

    python experiments/benchmarks/input.py [--clips 480] [--batch-size 32] [--repeats 5] [--loaders 2]

- threads: `read_ahead`, threads of the training process (`resources.loaders_per_worker: 0`).
- loaders: `clip_stream`, processes of Ray Data (`resources.loaders_per_worker: 2`).
- copy: `numpy.copyto` of frames that are in memory, into memory that was used before.

Every way delivers the same clips in the same random order. They take turns in one process, so that other work of the machine
affects all; `of a copy` is the median of the ratios within a turn. The start is the time to the first batch. Speed is that
of one epoch: warm, the second, from its first batch to its last; cold, the first, from the first batch to the last, after
the kernel was asked to drop the clips files from its page cache.
"""

import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import typer
from PIL import Image

from waver.data.batch import read_ahead
from waver.data.clip import Clip
from waver.data.clip_store import ClipStore, StoreSettings
from waver.data.clip_store_writer import create_store, write_block, write_manifest
from waver.data.ledger import DecodedClip
from waver.on_ray.cluster.connection import connect
from waver.on_ray.stages.loader import clip_stream

NUM_FRAMES, SIZE, CLIPS_PER_BLOCK = 12, 224, 32
Reader = Callable[[ClipStore, list[list[str]]], Iterator[tuple[np.ndarray, np.ndarray]]]


@dataclass(frozen=True)
class InputSpeed:
    """What one way of reading takes, over all repeats."""

    frame_format: str
    is_cold: bool
    way: str
    clips_per_s: tuple[float, ...]
    start_s: tuple[float, ...]
    of_copy: tuple[float, ...]
    """Clips per second, divided by those of the copy in the same turn."""


def measure_input(
    folder: Path, *, clips: int = 480, batch_size: int = 32, repeats: int = 5, loaders: int = 2
) -> Iterator[InputSpeed]:
    """Makes a store of raw and one of JPEG frames, reads them in all ways, and yields what each way takes.

    Ray must be connected if `loaders` > 0.

    Args:
        folder: of the stores, which take about 2 MB a clip.
        clips: in each store.
        batch_size: clips in a batch.
        repeats: number of turns.
        loaders: processes of Ray Data; 0 leaves this way out.
    """
    ways: dict[str, Reader] = {"threads": read_ahead, "copy": copy_frames}
    if loaders:
        ways["loaders"] = partial(clip_stream, loaders=loaders)
    for frame_format in ("raw", "jpeg"):
        make_store(folder / frame_format, frame_format, clips)
        for is_cold in (False, True):
            turns = [
                {way: read_once(reader, folder / frame_format, batch_size, is_cold) for way, reader in ways.items()}
                for _ in range(repeats)
            ]
            for way in ways:
                speeds, starts = zip(*(turn[way] for turn in turns), strict=True)
                ratios = tuple(turn[way][0] / turn["copy"][0] for turn in turns)
                yield InputSpeed(frame_format, is_cold, way, speeds, starts, ratios)


def make_store(path: Path, frame_format: str, num_clips: int) -> None:
    """Writes a store of smooth random pictures that move."""
    settings = StoreSettings(1.0, NUM_FRAMES, SIZE, "jpeg" if frame_format == "jpeg" else "raw")
    create_store(path, settings)
    rng = np.random.default_rng(0)

    def clip(number: int) -> DecodedClip:
        coarse = Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8))
        picture = np.asarray(coarse.resize((320, 320), Image.Resampling.BICUBIC))
        frames = np.stack([picture[8 * i : 8 * i + SIZE, 8 * i : 8 * i + SIZE] for i in range(NUM_FRAMES)])
        times_s = tuple(float(i) for i in range(NUM_FRAMES))
        return DecodedClip(f"clip{number:06}", f"{number}.mp4", 0.0, Clip(frames, times_s, 25.0, SIZE, SIZE, "none"))

    for first in range(0, num_clips, CLIPS_PER_BLOCK):
        write_block(path, settings, map(clip, range(first, min(first + CLIPS_PER_BLOCK, num_clips))))
    write_manifest(path, settings, complete=True)


def read_once(reader: Reader, path: Path, batch_size: int, is_cold: bool) -> tuple[float, float]:
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


def main(clips: int = 480, batch_size: int = 32, repeats: int = 5, loaders: int = 2) -> None:
    """Prints a table: medians over the turns, and ranges."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    print("| frames | page cache | way | clips/s | of a copy | start, s |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, connect(num_cpus=os.cpu_count()):
        for row in measure_input(Path(folder), clips=clips, batch_size=batch_size, repeats=repeats, loaders=loaders):
            columns = [
                f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
                for values, digits in ((row.clips_per_s, 0), (row.of_copy, 3), (row.start_s, 2))
            ]
            if row.way == "copy":
                columns[-1] = "-"  # it reads what it copies first
            cache = "cold" if row.is_cold else "warm"
            print(f"| {row.frame_format} | {cache} | {row.way} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
