"""Compares training input from the clip store with a conventional loader that opens the video for every caption.

    python experiments/benchmarks/loading.py VIDEO... [--clips 320] [--batch-size 32] [--repeats 5]

The clip store is read with `worker_batches`, the function that training workers iterate: by threads, or by processes of Ray
Data with `--loaders 2`, joined with captions and tokenised. The conventional loader is that of conventional.py: it opens
each video with decord, decodes the sampled frames and resizes them with PIL, in one process. Both deliver the same clips in
the same order, alternately; results are medians. The start-up time of the stream, which occurs once per run, is reported
separately: the second epoch is timed. `waver bench --only input` does the same with rendered videos.
"""

import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import typer

from waver.benchmarks.conventional import load_conventional
from waver.config import load_config
from waver.data.annotations import CAPTIONS_SCHEMA
from waver.data.clip_store import ClipStore
from waver.on_ray.cluster.connection import connect
from waver.on_ray.stages.ingest import ingest
from waver.runs.inputs import store_settings
from waver.runs.train_loop import worker_batches

EXPERIMENT = """
name: loading
data: {format: table, annotations: none.jsonl, videos: none}
model: {weights: null}
"""


def main(
    videos: Annotated[list[Path], typer.Argument(help="Files that decord reads.")],
    clips: int = 320,
    batch_size: int = 32,
    repeats: int = 5,
    loaders: int = 0,
) -> None:
    """Prints clips per second of both loaders, and their ratio, for raw and for JPEG frames."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    for frame_format in ("raw", "jpeg"):
        with tempfile.TemporaryDirectory() as folder, connect(num_cpus=4):
            measure(videos, clips, batch_size, repeats, loaders, frame_format, Path(folder))


def measure(
    videos: list[Path], clips: int, batch_size: int, repeats: int, loaders: int, frame_format: str, folder: Path
) -> None:
    """Measures and prints both loaders for one frame format."""
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    overrides = {"ingest.frame_format": frame_format, "resources.loaders_per_worker": loaders}
    config = load_config(folder / "experiment.yaml", overrides)
    captions = table(videos, clips)
    ingest(captions, folder / "store", store_settings(config), config.ingest, progress=False)
    store = ClipStore(folder / "store")
    size = sum(path.stat().st_size for path in (folder / "store" / "clips").iterdir()) / clips
    plan = np.array_split(np.random.default_rng(0).permutation(clips), clips // batch_size)
    paths = captions["path"].to_pylist()
    conventional, _ = load_conventional(Path(__file__).with_name("conventional.py"))
    video = config.video

    starts, speeds, ratios = [], [], []
    for _ in range(repeats):
        sample = [paths[row] for row in plan[0]]
        before = time.perf_counter()
        for path in sample:
            conventional.load_clip(path, video.frames_per_second, video.max_frames, config.preprocessing.size)
        conventional_speed = len(sample) / (time.perf_counter() - before)

        # Two epochs in one stream, as in training; the second is timed from its first batch to its last.
        before = time.perf_counter()
        for number, _ in enumerate(worker_batches(plan * 2, captions, store, config)):
            if number == 0:
                starts.append(time.perf_counter() - before)
            if number == len(plan) - 1:
                before = time.perf_counter()
        speeds.append(clips / (time.perf_counter() - before))
        ratios.append(speeds[-1] / conventional_speed)
        print(f"  {speeds[-1]:.0f} clips/s, conventional {conventional_speed:.1f}: {ratios[-1]:.0f} x", flush=True)
    print(
        f"{frame_format}: {size / 2**20:.2f} MiB a clip, {statistics.median(speeds):.0f} clips/s, "
        f"{statistics.median(ratios):.0f} x a conventional loader; the stream starts in {statistics.median(starts):.2f} s, "
        "once in a run",
        flush=True,
    )


def table(videos: list[Path], clips: int) -> pa.Table:
    """Makes a caption table of `clips` clips, repeating the videos."""
    rows = [
        {
            "video_id": f"clip{number}",
            "clip_id": f"clip{number}",
            "path": str(videos[number % len(videos)].absolute()),
            "caption": f"caption number {number} of a video",
            "caption_index": 0,
            "split": "train",
        }
        for number in range(clips)
    ]
    return pa.Table.from_pylist(rows, schema=CAPTIONS_SCHEMA)


if __name__ == "__main__":
    typer.run(main)
