"""Measures how long `waver serve` takes for a query over synthetic windows, through HTTP, with a random ViT-B/32.

    pip install -e '.[serve]'
    python experiments/benchmarks/serve.py [--windows 10000] [--queries 200]

Every query is another sentence, so nothing is cached. The time is that of the whole request: the text tower, the comparison
with every window, and the answer.
"""

import re
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from waver.benchmarks.films import WINDOWS_PER_FILM, World
from waver.config import ExperimentConfig
from waver.data.embedding_store import EmbeddingSettings, create_embeddings, write_items
from waver.runs.checkpoint import save_checkpoint
from waver.runs.inputs import store_settings
from waver.search.index import IndexSettings, checkpoint_digest, create_index, window_id, write_windows
from waver.search.windows import Windows
from waver.training.build import build_training

WINDOWS = Windows(10.0, 5.0)
WORDS = (
    "man",
    "woman",
    "dog",
    "red",
    "blue",
    "folds",
    "rides",
    "throws",
    "slowly",
    "a",
    "paper",
    "plane",
    "ball",
    "river",
)


def make_index(folder: Path, num_windows: int) -> Path:
    """Writes a checkpoint with random weights and an index of windows of a synthetic world."""
    config = ExperimentConfig.model_validate(
        {
            "name": "random",
            "data": {"format": "table", "annotations": "captions.jsonl", "videos": "videos"},
            "model": {"backbone": "ViT-B-32-quickgelu", "weights": None},
            "similarity": {"kind": "wti"},
        }
    )
    checkpoint, index = folder / "random" / "checkpoint_epoch_0001", folder / "films.index"
    torch.manual_seed(0)
    save_checkpoint(checkpoint, build_training(config, num_steps=1, device=torch.device("cpu")), config)
    world = World()
    digest = checkpoint_digest(checkpoint)
    embeddings = EmbeddingSettings("windows", world.width, "fp32", digest, store_settings(config).key)
    create_index(index, IndexSettings(str(checkpoint), digest, WINDOWS, embeddings))
    create_embeddings(index / "embeddings", embeddings)
    rows = []
    for film, values in enumerate(world.films(num_windows)):
        of_film = [_row(film, number) for number in range(len(values))]
        items = [(row["window_id"], row["source"], frames) for row, frames in zip(of_film, values, strict=True)]
        write_items(index / "embeddings", embeddings, items)
        rows += of_film
    write_windows(index, rows)
    return index


def _row(film: int, number: int) -> dict:
    start_s, name = number * WINDOWS.stride_s, f"films/{film:04}.mp4"
    end_s, video_s = start_s + 10.0, WINDOWS_PER_FILM * WINDOWS.stride_s + 5
    times = {"start_s": start_s, "end_s": end_s, "video_s": video_s, "status": "ok", "error": None}
    return {"window_id": window_id(name, start_s, end_s), "video_id": name, "path": f"/{name}", "source": name, **times}


def measure(url: str, num_queries: int) -> np.ndarray:
    """Returns the seconds of each query, one after the other; the first ten do not count."""
    random, seconds = np.random.default_rng(0), []
    for _ in range(num_queries + 10):
        query = urllib.parse.urlencode({"query": " ".join(random.choice(WORDS, 8))})
        start = time.perf_counter()
        with urllib.request.urlopen(f"{url}api/search?{query}") as response:
            response.read()
        seconds.append(time.perf_counter() - start)
    return np.array(seconds[10:])


def main(
    windows: Annotated[int, typer.Option(help="Number of windows.")] = 10_000,
    queries: Annotated[int, typer.Option(help="Number of queries.")] = 200,
) -> None:
    """Prints the median, the 95th percentile and the maximum."""
    with tempfile.TemporaryDirectory() as folder:
        index = make_index(Path(folder), windows)
        command = [sys.executable, "-m", "waver", "serve", str(index), "--port", "0"]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
            try:
                printed = iter(server.stderr or ())
                url = next(match[1] for line in printed if (match := re.search(r"ready at (\S+)", line)))
                median, late, most = np.quantile(measure(url, queries), [0.5, 0.95, 1]) * 1000
            finally:
                server.terminate()
    print(f"{windows:,} windows: median {median:.0f} ms, p95 {late:.0f} ms, maximum {most:.0f} ms of {queries} queries")


if __name__ == "__main__":
    typer.run(main)
