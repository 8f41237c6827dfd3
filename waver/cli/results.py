"""Commands that look at what a run came to."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from waver.cli.options import (
    FREE_IN_EVALUATION,
    Set,
    Split,
    Workers,
    command,
    local_folder,
    print_protocol,
    stdout,
)
from waver.config import ConfigError, load_robustness, parse_overrides
from waver.tools.object_store import display_path

logger = logging.getLogger(__name__)


@command
def evaluate(
    run_or_checkpoint: Annotated[
        str, typer.Argument(help="Folder or URL of a run (its best checkpoint is taken) or of a checkpoint.")
    ],
    split: Annotated[Split, typer.Option(help="What to evaluate on.")] = "test",
    workers: Workers = None,
    output: Annotated[
        Path | None, typer.Option(help="JSON file for the result.", show_default="in the run's folder")
    ] = None,
    export: Annotated[
        tuple[str, Path] | None,
        typer.Option(
            metavar="trec DIR", help="Also write the rankings to a folder: run and qrels files.", show_default=False
        ),
    ] = None,
    export_depth: Annotated[
        int, typer.Option(min=1, help="Answers of each query in exported rankings, at most.")
    ] = 1000,
    overrides: Set = [],  # noqa: B006
) -> None:
    """Compute exact retrieval metrics of a checkpoint, in both directions."""
    from waver.data.duplicates import describe_counts
    from waver.evaluation.tables import metrics_table, rows_of, styles_table
    from waver.on_ray.stages.evaluate import run_evaluation
    from waver.runs.checkpoint import checkpoint_config
    from waver.runs.folder import find_checkpoint

    asked = parse_overrides(overrides)
    if learned := sorted(key for key in asked if key.partition(".")[0] not in FREE_IN_EVALUATION):
        raise ConfigError(
            f"--set {', '.join(learned)}: a checkpoint is evaluated as it was trained; what may be set is in "
            f"{', '.join(FREE_IN_EVALUATION)}"
        )
    if export and export[0] != "trec":
        raise ConfigError(f"--export {export[0]}: the format is trec, as in --export trec rankings/")
    folder = local_folder(run_or_checkpoint, asked)
    checkpoint = find_checkpoint(folder)
    # One process evaluates unless more are asked for: however many the run was trained with, the figures are the same.
    experiment = checkpoint_config(checkpoint, {"resources.workers": workers or 1} | asked)
    result = run_evaluation(
        folder,
        experiment,
        split=split,
        output=output,
        trec=export[1] if export else None,
        trec_depth=export_depth,
    )
    print_protocol(result)
    stdout.print(metrics_table(f"{experiment.name}, {checkpoint.name}, {split} split", rows_of(result)))
    if result["styles"]:
        stdout.print(styles_table("by style of the caption", {experiment.name: result["styles"]}))
    if result["num_missing_clips"]:
        logger.info(f"{result['num_missing_clips']} clips of the gallery could not be decoded and count as misses")
    if lines := describe_counts(result["duplicates"]):
        logger.info(
            "what stands twice (listed in duplicates_*.json; in the figures `excused`, it is not counted as wrong):"
        )
        logger.info("\n".join(lines))


@command
def robustness(
    runs: Annotated[
        list[str], typer.Argument(help="Runs, or checkpoints; all but the first are compared with the first.")
    ],
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file with the settings of the report.", show_default="all tracks and rules"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the report.", show_default="in the run's folder")
    ] = None,
    workers: Workers = None,
    overrides: Set = [],  # noqa: B006
) -> None:
    """Report how much retrieval depends on how the query is written: style by style, and at worst."""
    from waver.evaluation.robustness.tables import headline_table, styles_table
    from waver.on_ray.stages.robustness import run_robustness

    asked = parse_overrides(overrides)
    places = {key: value for key, value in asked.items() if key.partition(".")[0] in FREE_IN_EVALUATION}
    settings = load_robustness(config, {key: value for key, value in asked.items() if key not in places})
    if workers is not None:
        places["resources.workers"] = workers
    folders = [local_folder(run, places) for run in runs]
    report, folder = run_robustness(folders, settings, places, output=output)
    stdout.print(headline_table(report))
    stdout.print(styles_table(report))
    logger.info(f"all figures, and what they mean: {display_path(folder / 'report.html')}")


@command
def board(
    runs: Annotated[str, typer.Argument(help="Folder or URL of a run, of many, or of a sweep.", show_default=False)],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where it listens, on this machine alone; 0: any.")
    ] = 6006,
) -> None:
    """Show runs in TensorBoard, until Ctrl-C."""
    from waver.runs.board import show_board

    show_board(local_folder(runs), port=port)


@command
def compare(
    run_a: Annotated[
        str, typer.Argument(help="Folder or URL of a run; a trial's seed is one too.", show_default=False)
    ],
    run_b: Annotated[str, typer.Argument(help="Folder or URL of another.", show_default=False)],
    all_rows: Annotated[bool, typer.Option("--all", help="Also show what is equal.")] = False,
) -> None:
    """Say in what two runs differ: settings, data, environment, and what came of it."""
    from waver.runs.comparison import compare_runs
    from waver.runs.comparison.tables import comparison_tables

    for part in comparison_tables(compare_runs(local_folder(run_a), local_folder(run_b)), all_rows=all_rows):
        stdout.print(part)
