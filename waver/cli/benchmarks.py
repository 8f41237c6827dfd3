"""The command that measures waver."""

import dataclasses
import logging
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from waver.cli.options import stdout

logger = logging.getLogger(__name__)

NAMES = "step, match, input, rank, train, epoch, gpu; scaling, search and commands run only if they are named"


def bench(
    only: Annotated[
        str,
        typer.Option(
            metavar="NAME,...", help=f"Benchmarks to run: {NAMES}.", show_default="all but scaling, search and commands"
        ),
    ] = "",
    repeats: Annotated[int, typer.Option(min=1, help="Turns; the table has their median and range.")] = 5,
    output: Annotated[
        Path | None, typer.Option(help="JSON file for the machine and all turns.", show_default=False)
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            help="Python file of the conventional baseline that is measured beside waver.",
            show_default="experiments/benchmarks/conventional.py, if it exists",
        ),
    ] = None,
    captions: Annotated[
        int,
        typer.Option(min=1, help="Captions in the store of `epoch`; 180,000, as MSR-VTT has, take 3.3 GB on the disk."),
    ] = 18_000,
    windows: Annotated[
        int, typer.Option(min=100, help="Windows of `search`; 1,000,000 take 13 GB on the disk.")
    ] = 100_000,
    folder: Annotated[
        Path | None,
        typer.Option(help="Folder for temporary files, 1 GB or more.", show_default="the system's"),
    ] = None,
    commands: Annotated[
        bool,
        typer.Option("--commands", help="Also run the quickstart, a training run and a sweep, which takes minutes."),
    ] = False,
) -> None:
    """Measure waver beside a conventional baseline, with random weights on synthetic data: 10 to 15 minutes on two cores."""
    from waver.benchmarks.context import Context, Sizes
    from waver.benchmarks.conventional import load_conventional
    from waver.benchmarks.machine import describe_machine, machine_line
    from waver.benchmarks.suite import choose_benchmarks, run_benchmarks
    from waver.benchmarks.table import to_json, to_markdown
    from waver.tools.files import write_json

    names = choose_benchmarks(only, commands=commands)
    conventional, why_not = load_conventional(against)
    machine = describe_machine()
    line = machine_line(machine)
    logger.info(line)
    if why_not:
        logger.warning(f"nothing is measured in the conventional way: {why_not}")
    sizes = dataclasses.replace(Sizes(), epoch_captions=captions, search_windows=windows)
    with tempfile.TemporaryDirectory(prefix="waver-bench-", dir=folder) as temporary:
        rows = []
        try:
            for measured in run_benchmarks(names, Context(Path(temporary), repeats, sizes, conventional, why_not)):
                rows += measured
                if output:
                    write_json(output, to_json(machine, rows))
        finally:  # also of what was measured before Ctrl-C
            text = f"{line} Medians of {repeats} turns, and ranges.\n\n{to_markdown(rows)}"
            stdout.print(text, markup=False, highlight=False, soft_wrap=True)
