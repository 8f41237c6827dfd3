"""Compares ways to read training input from a clip store, raw and JPEG, page cache warm and cold, with a bare copy.

    python experiments/benchmarks/input.py [--clips 480] [--batch-size 32] [--repeats 5] [--loaders 2]

`waver bench --only input` measures raw frames in the page cache alone, beside a conventional loader. The ways are described
in `waver.benchmarks.training_input`.
"""

import logging
import statistics
import tempfile
from pathlib import Path

import typer

from waver.benchmarks.training_input import COPY, measure_input


def main(clips: int = 480, batch_size: int = 32, repeats: int = 5, loaders: int = 2) -> None:
    """Prints a table: medians over the turns, and ranges."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    print("| frames | page cache | way | clips/s | of a copy | start, s |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for row in measure_input(
            Path(folder), num_clips=clips, batch_size=batch_size, repeats=repeats, loaders=loaders
        ):
            columns = [
                f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
                for values, digits in ((row.clips_per_s, 0), (row.of_copy, 3), (row.start_s, 2))
            ]
            if row.way == COPY:
                columns[-1] = "-"  # it reads what it copies first
            cache = "cold" if row.is_cold else "warm"
            print(f"| {row.frame_format} | {cache} | {row.way} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    typer.run(main)
