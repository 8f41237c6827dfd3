"""Commands that run a stage of an experiment, and sweeps."""

import logging
from pathlib import Path
from typing import Annotated

import typer

from waver.cli.options import (
    Config,
    PrintConfig,
    Set,
    Workers,
    command,
    load_experiment,
    print_protocol,
    print_resolved_config,
    stdout,
)
from waver.config import parse_overrides
from waver.tools.object_store import display_path

logger = logging.getLogger(__name__)


@command
def quickstart(
    output: Annotated[Path, typer.Option(help="Folder that receives everything.")] = Path("quickstart"),
    workers: Annotated[int, typer.Option(min=1, help="DDP workers.")] = 2,
) -> None:
    """Render a small world of videos, then decode, train and evaluate it: everything waver does, without downloads."""
    from waver.quickstart.pipeline import run_quickstart

    run_quickstart(output, workers=workers, show=stdout.print)


@command
def ingest(config: Config, overrides: Set = [], print_config: PrintConfig = False) -> None:  # noqa: B006 (typer's way)
    """Decode the videos of an experiment into its clip store; run again, it finishes what is missing."""
    experiment = load_experiment(config, overrides, None)
    if print_config:
        print_resolved_config(experiment)
        return
    from waver.on_ray.stages.ingest import describe_failures, run_ingest

    report = run_ingest(experiment)
    logger.info(
        f"{report.counts.get('ok', 0)} of {sum(report.counts.values())} clips are in {display_path(experiment.clip_store)}; "
        f"this run decoded {report.num_decoded} in {report.seconds:.1f} s, {report.num_skipped} were there"
    )
    if report.reasons:
        logger.info(f"without frames:\n{describe_failures(report)}")


@command
def vocabulary(config: Config, overrides: Set = [], print_config: PrintConfig = False) -> None:  # noqa: B006
    """Make the dictionary of phrases from an experiment's captions."""
    experiment = load_experiment(config, overrides, None)
    if print_config:
        print_resolved_config(experiment)
        return
    from waver.on_ray.stages.vocabulary import run_vocabulary
    from waver.runs.inputs import LEAKY

    dictionary = run_vocabulary(experiment)
    commonest = ", ".join(dictionary.phrases["phrase"][:5].to_pylist())
    logger.info(
        f"{len(dictionary.phrases)} phrases are in {display_path(experiment.dictionary)}; the commonest: {commonest}"
    )
    if dictionary.leaky:
        logger.info(LEAKY)
    logger.info(f"next: waver match {config}")


@command
def match(config: Config, workers: Workers = None, overrides: Set = [], print_config: PrintConfig = False) -> None:  # noqa: B006
    """Find the phrases that describe each clip, with the frozen teacher; run again, it finishes what is missing."""
    experiment = load_experiment(config, overrides, workers)
    if print_config:
        print_resolved_config(experiment)
        return
    from waver.on_ray.stages.match import run_match
    from waver.runs.inputs import LEAKY

    knowledge = run_match(experiment)
    logger.info(
        f"{len(knowledge.matches)} clips know their best {knowledge.manifest['num_matches']} of {knowledge.num_phrases} "
        f"phrases, in {display_path(knowledge.path)}"
    )
    if knowledge.leaky:
        logger.info(LEAKY)
    logger.info(f"next: waver train {config}")


@command
def train(config: Config, workers: Workers = None, overrides: Set = [], print_config: PrintConfig = False) -> None:  # noqa: B006
    """Train an experiment whose videos are ingested; run again, it continues after the last checkpoint."""
    experiment = load_experiment(config, overrides, workers)
    if print_config:
        print_resolved_config(experiment)
        return
    from waver.evaluation.tables import metrics_table
    from waver.on_ray.stages.train import run_training

    result = run_training(experiment)
    if "protocol" in result:  # a run that an older version finished has none
        print_protocol(result)
    stdout.print(
        metrics_table(f"{experiment.name}, {result['best_checkpoint']}, validation split", {"": result["validation"]})
    )
    folder = experiment.run_folder
    logger.info(f"next: waver evaluate {display_path(folder)}    look: waver board {display_path(folder.parent)}")


@command
def tune(
    sweep: Annotated[
        Path, typer.Argument(help="YAML file of the sweep, as in experiments/sweeps/.", show_default=False)
    ],
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would be tried, how many at a time, and what is there; run nothing."),
    ] = False,
    overrides: Set = [],  # noqa: B006
) -> None:
    """Search any settings of an experiment with Ray Tune; run again, it goes on where it was."""
    from waver.on_ray.tuning.plan import describe_plan, plan_sweep
    from waver.on_ray.tuning.tune import run_sweep

    plan = plan_sweep(sweep, parse_overrides(overrides))
    if dry_run:
        describe_plan(plan)
        return
    run_sweep(plan, print_table=stdout.print)
