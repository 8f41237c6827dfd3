"""Commands for the models of runs: `waver import`, `evaluate`, `robustness`, `board` and `compare`."""

import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from waver.cli.options import (
    EVALUATION_SECTIONS,
    Set,
    Split,
    Workers,
    load_experiment,
    local_folder,
    print_protocol,
    stdout,
)
from waver.config import ConfigError, load_robustness, parse_overrides
from waver.runs.places import names_experiment
from waver.tools.object_store import display_path, exists

logger = logging.getLogger(__name__)


def import_(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            help="Checkpoint of the code of WAVER, DRL or CLIP4Clip, such as pytorch_model.bin.4.", show_default=False
        ),
    ],
    name: Annotated[str, typer.Option("--as", metavar="NAME", help="Name of the run.", show_default=False)],
    config: Annotated[
        Path | None,
        typer.Option(
            help="YAML file of an experiment: its data, video and text sections; the model is read from the checkpoint.",
            show_default="the settings of the original code",
        ),
    ] = None,
    overrides: Set = [],  # noqa: B006
) -> None:
    """Make a run of a checkpoint of WAVER, DRL or CLIP4Clip, which is evaluated and compared like any run."""
    from waver.runs.importing import import_checkpoint

    folder, origin = import_checkpoint(checkpoint, name, config, parse_overrides(overrides))
    run = shlex.quote(display_path(folder.parent))
    logger.info(origin.describe())
    for note in origin.notes:
        logger.info(f"  {note}")
    if config is None:
        logger.info("without --config the run does not know your data: name it, as in the next command")
    data = "" if config else " --set data.annotations=captions.jsonl --set data.videos=videos"
    logger.info(f"next: waver evaluate {run}{data}")


def evaluate(
    run_or_config: Annotated[
        str,
        typer.Argument(
            help="Folder or URL of a run (its best checkpoint is evaluated) or of a checkpoint; or the YAML file of an "
            "experiment, whose pre-trained backbone is evaluated zero-shot."
        ),
    ],
    split: Annotated[Split, typer.Option(help="Split to evaluate on.")] = "test",
    workers: Workers = None,
    output: Annotated[
        Path | None, typer.Option(help="JSON file for the result.", show_default="in the run's folder")
    ] = None,
    export: Annotated[
        tuple[str, Path] | None,
        typer.Option(
            metavar="trec DIR",
            help="Also write the rankings to a folder, as TREC run and qrels files.",
            show_default=False,
        ),
    ] = None,
    export_depth: Annotated[
        int, typer.Option(min=1, help="Maximum number of answers per query in exported rankings.")
    ] = 1000,
    overrides: Set = [],  # noqa: B006
) -> None:
    """Compute exact retrieval metrics of a checkpoint, or of a backbone before any training, in both directions."""
    from waver.data.duplicates import describe_counts
    from waver.runs.origin import kind_of

    if export and export[0] != "trec":
        raise ConfigError(f"--export {export[0]}: the only format is trec, as in --export trec rankings/")
    files = {"output": output, "trec": export[1] if export else None, "trec_depth": export_depth}
    if names_experiment(run_or_config):
        name, result = _evaluate_zero_shot(Path(run_or_config), split, workers, overrides, files)
    else:
        name, result = _evaluate_run(run_or_config, split, workers, overrides, files)
    print_protocol(result)
    label = "" if kind_of(result) == "trained" else f" ({kind_of(result)})"
    title = f"{name}{label}, {result['checkpoint'].rpartition('/')[2]}, {split} split"
    _print_metrics(title, name, result)
    if result["num_missing_clips"]:
        logger.info(f"{result['num_missing_clips']} clips of the gallery could not be decoded and count as misses")
    for note in result["origin"]["notes"] if result["origin"] else ():
        logger.info(note)
    if lines := describe_counts(result["duplicates"]):
        logger.info(
            "duplicates in the split (listed in duplicates_*.json; the `excused` metrics do not count them as wrong):"
        )
        logger.info("\n".join(lines))


def _evaluate_run(
    run: str, split: Split, workers: int | None, overrides: list[str], files: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Evaluates a run or a checkpoint; returns the name of its experiment and the result."""
    from waver.on_ray.stages.evaluate import run_evaluation
    from waver.runs.checkpoint import checkpoint_config
    from waver.runs.folder import find_checkpoint

    changed = parse_overrides(overrides)
    if fixed := sorted(key for key in changed if key.partition(".")[0] not in EVALUATION_SECTIONS):
        raise ConfigError(
            f"--set {', '.join(fixed)}: a checkpoint is evaluated as it was trained; only settings of these sections can "
            f"be changed: {', '.join(EVALUATION_SECTIONS)}"
        )
    folder = local_folder(run, changed)
    checkpoint = find_checkpoint(folder)
    # One process by default, since metrics do not depend on the number of workers.
    experiment = checkpoint_config(checkpoint, {"resources.workers": workers or 1} | changed)
    return experiment.name, run_evaluation(folder, experiment, split=split, **files)


def _evaluate_zero_shot(
    config: Path, split: Split, workers: int | None, overrides: list[str], files: Mapping[str, Any]
) -> tuple[str, dict[str, Any]]:
    """Evaluates the pre-trained backbone of an experiment; returns the name of its zero-shot run and the result."""
    from waver.on_ray.stages.evaluate import run_zero_shot
    from waver.runs.untrained import zero_shot_experiment

    trained = load_experiment(config, overrides, workers or 1)
    experiment = zero_shot_experiment(trained)
    if exists(trained.run_folder / "config.yaml"):
        run = shlex.quote(display_path(trained.run_folder))
        logger.info(f"zero-shot, without the training of {run}: `waver evaluate {run}` evaluates that")
    result = run_zero_shot(experiment, split=split, **files)
    folder = shlex.quote(display_path(experiment.run_folder))
    logger.info(f"the zero-shot run is {folder}; beside another run: waver compare {folder} RUN")
    return experiment.name, result


def _print_metrics(title: str, name: str, result: Mapping[str, Any]) -> None:
    from waver.evaluation.tables import metrics_table, rows_of, styles_table

    num_clips = result["gallery_size"]
    stdout.print(metrics_table(title, rows_of(result), num_clips=num_clips))
    if result["styles"]:
        of_run, train_styles = {name: result["styles"]}, result["train_styles"] or ()
        table = styles_table("by style of the caption", of_run, num_clips=num_clips, train_styles=train_styles)
        stdout.print(table)


def robustness(
    runs: Annotated[
        list[str],
        typer.Argument(help="Folders or URLs of runs or checkpoints; the others are compared with the first."),
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
    """Measure how much retrieval depends on the wording of the query: by style, and for the worst style."""
    from waver.evaluation.robustness.tables import families_table, headline_table, styles_table
    from waver.on_ray.stages.robustness import run_robustness

    changed = parse_overrides(overrides)
    of_runs = {key: value for key, value in changed.items() if key.partition(".")[0] in EVALUATION_SECTIONS}
    settings = load_robustness(config, {key: value for key, value in changed.items() if key not in of_runs})
    if workers is not None:
        of_runs["resources.workers"] = workers
    folders = [local_folder(run, of_runs) for run in runs]
    report, folder = run_robustness(folders, settings, of_runs, output=output)
    stdout.print(headline_table(report))
    stdout.print(families_table(report))
    stdout.print(styles_table(report))
    logger.info(f"report with all metrics and their definitions: {display_path(folder / 'report.html')}")


def board(
    runs: Annotated[
        str, typer.Argument(help="Folder or URL of a run, of several runs, or of a sweep.", show_default=False)
    ],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on the loopback interface; 0 takes any free one.")
    ] = 6006,
) -> None:
    """Show runs in TensorBoard until Ctrl-C."""
    from waver.runs.board import BoardError, show_board
    from waver.runs.places import describe_place

    folder = local_folder(runs)
    if not exists(folder) or folder.is_file():
        raise BoardError(describe_place(folder))
    show_board(folder, port=port)


def compare(
    run_a: Annotated[
        str, typer.Argument(help="Folder or URL of a run; each seed of a trial is a run too.", show_default=False)
    ],
    run_b: Annotated[str, typer.Argument(help="Folder or URL of the other run.", show_default=False)],
    all_rows: Annotated[bool, typer.Option("--all", help="Also list what is equal.")] = False,
) -> None:
    """List the differences of two runs: settings, data, environment, metrics."""
    from waver.runs.comparison import compare_runs
    from waver.runs.comparison.tables import comparison_tables

    for part in comparison_tables(compare_runs(local_folder(run_a), local_folder(run_b)), all_rows=all_rows):
        stdout.print(part)
