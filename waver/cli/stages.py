"""Commands that run the stages of an experiment, the quickstart, and sweeps."""

import logging
import shlex
from pathlib import Path
from typing import Annotated

import typer

from waver.cli.options import (
    Config,
    PrintConfig,
    Set,
    SetOfSweep,
    Workers,
    load_experiment,
    name_experiment,
    print_protocol,
    print_resolved_config,
    stdout,
)
from waver.config import parse_overrides
from waver.tools.commands import config_arguments, to_assignments
from waver.tools.object_store import display_path

logger = logging.getLogger(__name__)


def quickstart(
    output: Annotated[Path, typer.Option(help="Folder for everything that is written.")] = Path("quickstart"),
    workers: Annotated[int, typer.Option(min=1, help="Number of DDP workers of the run with knowledge.")] = 2,
) -> None:
    """Render a small world of videos and run every stage on it, without downloads."""
    from waver.quickstart.pipeline import run_quickstart

    run_quickstart(output, workers=workers, show_table=stdout.print)


def ingest(config: Config, overrides: Set = [], print_config: PrintConfig = False) -> None:  # noqa: B006
    """Decode the videos of an experiment into its clip store; run again, it decodes only what is missing."""
    experiment = load_experiment(config, overrides, None)
    if print_config:
        print_resolved_config(experiment)
        return
    from waver.data.ledger import describe_failures
    from waver.on_ray.stages.ingest import run_ingest

    report = run_ingest(experiment)
    logger.info(
        f"{report.counts.get('ok', 0)} of {sum(report.counts.values())} clips are in {display_path(experiment.clip_store)}; "
        f"{report.num_decoded} were decoded now, in {report.seconds:.1f} s, and {report.num_skipped} before"
    )
    if report.failures:
        logger.info("\n  ".join(["clips that could not be decoded:", *describe_failures(report.failures)]))
    for remark in report.remarks:
        logger.warning(remark)


def embed(config: Config, workers: Workers = None, overrides: Set = [], print_config: PrintConfig = False) -> None:  # noqa: B006
    """Embed frames and captions with frozen towers, once for all runs; run again, it embeds only what is missing."""
    experiment = load_experiment(config, overrides, workers)
    if print_config:
        print_resolved_config(experiment)
        return
    from waver.on_ray.stages.embed import run_embed

    report = run_embed(experiment)
    for number, what, path in (
        (report.num_clips, "clips", report.paths.frames),
        (report.num_captions, "captions", report.paths.tokens),
    ):
        if path:
            logger.info(f"the embeddings of {number} {what} are in {display_path(path)}")
    if report.frozen and experiment.has_other_teacher:
        for path in filter(None, (report.frozen.teacher.frames, report.frozen.teacher.tokens)):
            logger.info(f"the teacher's embeddings of what is trained on are in {display_path(path)}")
    logger.info(f"next: waver train {config_arguments(config, overrides, workers)}")


def vocabulary(config: Config, overrides: Set = [], print_config: PrintConfig = False) -> None:  # noqa: B006
    """Extract the dictionary of phrases from the training captions of an experiment."""
    experiment = load_experiment(config, overrides, None)
    if print_config:
        print_resolved_config(experiment)
        return
    from waver.on_ray.stages.vocabulary import run_vocabulary
    from waver.runs.inputs import LEAKY

    dictionary = run_vocabulary(experiment)
    frequent = ", ".join(dictionary.phrases["phrase"][:5].to_pylist())
    logger.info(
        f"{len(dictionary.phrases)} phrases are in {display_path(experiment.dictionary)}; the most frequent: {frequent}"
    )
    if dictionary.leaky:
        logger.info(LEAKY)
    logger.info(f"next: waver match {config_arguments(config, overrides)}")


def match(config: Config, workers: Workers = None, overrides: Set = [], print_config: PrintConfig = False) -> None:  # noqa: B006
    """Find the phrases that describe each clip, with the frozen teacher; run again, it matches only what is missing."""
    experiment = load_experiment(config, overrides, workers)
    if print_config:
        print_resolved_config(experiment)
        return
    from waver.knowledge.errors import TooFewPhrasesError
    from waver.on_ray.stages.match import run_match
    from waver.runs.inputs import LEAKY, check_top_k

    knowledge = run_match(experiment)
    logger.info(
        f"{len(knowledge.matches)} clips are matched with {knowledge.manifest['num_matches']} of {knowledge.num_phrases} "
        f"phrases each, in {display_path(knowledge.path)}"
    )
    if knowledge.leaky:
        logger.info(LEAKY)
    try:
        check_top_k(experiment, knowledge)
    except TooFewPhrasesError as error:  # training would refuse to start
        logger.warning(str(error))
        return
    logger.info(f"next: waver train {config_arguments(config, overrides, workers)}")


def train(config: Config, workers: Workers = None, overrides: Set = [], print_config: PrintConfig = False) -> None:  # noqa: B006
    """Train the student on ingested videos; run again, it continues from the last checkpoint."""
    experiment = load_experiment(config, overrides, workers)
    if print_config:
        print_resolved_config(experiment)
        return
    from waver.evaluation.tables import metrics_table
    from waver.on_ray.stages.train import run_training

    result = run_training(experiment)
    num_clips = None
    if "protocol" in result:  # absent in runs that an older version finished
        print_protocol(result)
        num_clips = result["protocol"]["gallery_size"]
    title = f"{experiment.name}, {result['best_checkpoint']}, validation split"
    stdout.print(metrics_table(title, {"": result["validation"]}, num_clips=num_clips))
    if before := result.get("zero_shot"):
        logger.info(
            f"zero-shot t2v R@1 {before['t2v/R@1']:.1f}, v2t R@1 {before['v2t/R@1']:.1f}: the backbone before training, on "
            "the same split"
        )
    for rival in result.get("rivals", ()):
        logger.info(rival)
    folder = experiment.run_folder
    logger.info(f"next: waver evaluate {shlex.quote(display_path(folder))}")
    logger.info(f"curves: waver board {shlex.quote(display_path(folder.parent))}")


def tune(
    sweep: Annotated[
        Path, typer.Argument(help="YAML file of the sweep, as in experiments/sweeps/.", show_default=False)
    ],
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="List trials, concurrency, memory, GPU-hours and existing results; run nothing."
        ),
    ] = False,
    overrides: SetOfSweep = [],  # noqa: B006
) -> None:
    """Search any settings of an experiment with Ray Tune; run again, it continues, and adds trials if num_samples grew."""
    from waver.on_ray.tuning.describe import describe_plan
    from waver.on_ray.tuning.plan import plan_sweep
    from waver.on_ray.tuning.tune import run_sweep

    plan = plan_sweep(sweep, parse_overrides(overrides))
    name_experiment(config_arguments(plan.sweep.base, to_assignments(plan.changes)))
    if dry_run:
        describe_plan(plan)
        return
    run_sweep(plan, print_table=stdout.print)
