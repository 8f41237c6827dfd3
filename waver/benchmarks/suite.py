"""All benchmarks by name, and running some of them in turn."""

import dataclasses
import gc
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from waver.benchmarks.commands import measure_commands
from waver.benchmarks.context import Context
from waver.benchmarks.epoch import measure_epoch
from waver.benchmarks.frozen_step import measure_frozen_step
from waver.benchmarks.gpu import measure_gpu
from waver.benchmarks.matching import measure_matching
from waver.benchmarks.ranking import measure_ranking
from waver.benchmarks.scaling import measure_scaling
from waver.benchmarks.search import measure_search
from waver.benchmarks.table import Row
from waver.benchmarks.trained_step import measure_trained_step
from waver.benchmarks.training_input import measure_training_input
from waver.tools.errors import WaverError

logger = logging.getLogger(__name__)


class UnknownBenchmarkError(WaverError):
    """There is no benchmark of a name."""


@dataclass(frozen=True)
class Benchmark:
    """One row of `BENCHMARKS`."""

    measure: Callable[[Context], list[Row]]
    about: str
    is_usual: bool = True
    """Whether it runs if no name is given."""


BENCHMARKS: Mapping[str, Benchmark] = {
    "step": Benchmark(measure_frozen_step, "step with a frozen backbone: pixels, stored frames, stored captions too"),
    "match": Benchmark(measure_matching, "matching clips with 100,000 phrases"),
    "input": Benchmark(measure_training_input, "training input of later epochs, and its start"),
    "rank": Benchmark(measure_ranking, "wti of 1,000 captions and clips, and ranks both ways"),
    "train": Benchmark(
        measure_trained_step, "step that trains the backbone, fp32 and bf16, and the limit of the processor"
    ),
    "epoch": Benchmark(measure_epoch, "epoch of a synthetic MSR-VTT with a frozen backbone, and what its stores take"),
    "gpu": Benchmark(measure_gpu, "step on a GPU, compiled and not: clips/s, MFU, peak memory"),
    "scaling": Benchmark(measure_scaling, "how cost grows with clips, phrases and workers", is_usual=False),
    "search": Benchmark(measure_search, "search among many windows: candidates and exact", is_usual=False),
    "commands": Benchmark(measure_commands, "whole commands: quickstart, train, tune", is_usual=False),
}
"""Name -> benchmark, in the order in which they run."""


def choose_benchmarks(only: str, *, commands: bool) -> list[str]:
    """Returns the names of the benchmarks to run, in their order.

    Args:
        only: names, separated by commas; empty for the usual ones.
        commands: whether to add the whole commands.

    Raises:
        UnknownBenchmarkError: if there is no benchmark of a name.
    """
    asked = {name.strip() for name in only.split(",") if name.strip()}
    if unknown := sorted(asked - BENCHMARKS.keys()):
        raise UnknownBenchmarkError(f"--only {only}: {', '.join(unknown)} is none of {', '.join(BENCHMARKS)}")
    chosen = asked or {name for name, benchmark in BENCHMARKS.items() if benchmark.is_usual}
    return [name for name in BENCHMARKS if name in chosen or (commands and name == "commands")]


def run_benchmarks(names: Sequence[str], context: Context) -> Iterator[list[Row]]:
    """Runs benchmarks one after the other, each in a folder of its own below that of the context; yields their rows.

    Args:
        names: names of `BENCHMARKS`.
        context: sizes, turns, folder and baseline.
    """
    for number, name in enumerate(names, 1):
        logger.info(f"{number} of {len(names)}, {name}: {BENCHMARKS[name].about}")
        folder, started = context.folder / name, time.perf_counter()
        folder.mkdir()
        rows = BENCHMARKS[name].measure(dataclasses.replace(context, folder=folder))
        gc.collect()  # a student and its optimizer take gigabytes
        logger.info(f"{name}: measured in {time.perf_counter() - started:.0f} s")
        yield rows
