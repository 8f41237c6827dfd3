"""Compares ingest with bare decoding (decord's `get_batch` alone) of the same frames in the same number of processes.

    python experiments/benchmarks/ingest.py VIDEO... [--clips 200] [--processes 2] [--repeats 5]

The videos are repeated until there are enough clips. Both methods run alternately, so that other work of the machine affects
both; the ratio is the median over the repeats. The start-up time (actors, imports) is measured by an ingest of one clip per
process and subtracted, because it does not grow with the data. Peak memory is the sum over this process and its descendants,
which include Ray, with shared pages counted once (PSS).
"""

import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import typer

from waver.config.video import IngestConfig
from waver.data.clip_store import StoreSettings
from waver.data.video.timeline import sample_positions
from waver.on_ray.cluster.connection import connect
from waver.on_ray.stages.ingest import ingest

SETTINGS = StoreSettings(frames_per_second=1.0, max_frames=12, size=224)


def main(
    videos: Annotated[list[Path], typer.Argument(help="Files that decord reads.")],
    clips: int = 200,
    processes: int = 2,
    repeats: int = 5,
    frame_format: str = "raw",
) -> None:
    """Prints clips per second, ratios and peak memory."""
    paths = [str(videos[i % len(videos)].absolute()) for i in range(clips)]
    settings = StoreSettings(**{**SETTINGS.key, "frame_format": frame_format})
    # Ray runs its workers with this niceness: on a busy machine any other would bias the comparison.
    bare = multiprocessing.get_context("spawn").Pool(processes, initializer=os.nice, initargs=(15,))
    with bare as pool, connect(num_cpus=processes) as where:
        print(where)
        pool.map(decode, paths[: 4 * processes])
        start_s = statistics.median(_ingest_s(paths[:processes], processes, settings) for _ in range(3))
        ratios = []
        for _ in range(repeats):
            started = time.perf_counter()
            for _ in pool.imap_unordered(decode, paths):
                pass
            bare_s = time.perf_counter() - started
            with PeakMemory() as memory:
                ingest_s = _ingest_s(paths, processes, settings) - start_s
            ratios.append(ingest_s / bare_s)
            print(
                f"bare {clips / bare_s:.1f} clips/s, ingest {clips / ingest_s:.1f} clips/s (and {start_s:.1f} s to start): "
                f"{ratios[-1]:.2f} x the time; peak {memory.peak_mib:.0f} MiB",
                flush=True,
            )
    print(f"ingest takes {statistics.median(ratios):.2f} x the time of bare decoding (median of {repeats})")


def decode(path: str) -> int:
    """Decodes the sampled frames of a video, the least that every loader does."""
    import decord

    reader = decord.VideoReader(path, num_threads=1)
    positions = sample_positions(len(reader), reader.get_avg_fps(), SETTINGS.frames_per_second, SETTINGS.max_frames)
    return len(reader.get_batch(positions).asnumpy())


def _ingest_s(paths: list[str], processes: int, settings: StoreSettings) -> float:
    none = pa.nulls(len(paths), pa.float64())
    captions = pa.table(
        {"clip_id": [f"clip{i}" for i in range(len(paths))], "path": paths, "start_s": none, "end_s": none}
    )
    with tempfile.TemporaryDirectory() as folder:
        return ingest(captions, Path(folder), settings, IngestConfig(decoders=processes), progress=False).seconds


class PeakMemory:
    """Measures the peak of the memory (PSS) of this process and its descendants."""

    def __enter__(self) -> "PeakMemory":
        self.peak_mib, self._stop = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        import psutil

        while not self._stop.wait(1.0):
            total = 0
            for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:  # it ended in the meantime
                    continue
            self.peak_mib = max(self.peak_mib, total / 2**20)


if __name__ == "__main__":
    typer.run(main)
