"""The command line."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from waver.config import ConfigError, ExperimentConfig, load_config, load_robustness, parse_overrides
from waver.errors import raised_by_waver
from waver.objects import check_url, is_url, local_copy, shown

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Text-video retrieval that does not care how a query is written, distributed with Ray.",
)
# Figures go to standard output; what is going on goes to standard error.
_figures, _talk = Console(), Console(stderr=True, highlight=False, soft_wrap=True)

Config = Annotated[Path, typer.Argument(help="YAML file of the experiment, as in experiments/.", show_default=False)]
Set = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Overrides a setting, e.g. train.lr=3e-5; again for more."),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Short for --set resources.workers=N.", show_default=False)]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved configuration and do nothing.")]
_FREE_IN_EVALUATION = ("data", "ingest", "storage", "resources", "evaluate")
"""Sections that say where things are and how fast they are computed."""
Split = Literal["train", "validation", "test"]
Before = Literal["ingest", "match", "train"]
Stage = Literal["train", "tune", "ingest", "vocabulary", "match", "evaluate", "robustness", "doctor"]


@app.command()
def quickstart(
    output: Annotated[Path, typer.Option(help="Folder that receives everything.")] = Path("quickstart"),
    workers: Annotated[int, typer.Option(min=1, help="DDP workers.")] = 2,
) -> None:
    """Render a small world of videos, then decode, train and evaluate it: everything waver does, without downloads."""
    from waver.quickstart.pipeline import run_quickstart

    run_quickstart(output, workers=workers, say=_say, show=_figures.print)


@app.command()
def ingest(config: Config, overrides: Set = [], print_config: PrintConfig = False) -> None:  # noqa: B006 (typer's way)
    """Decode the videos of an experiment into its clip store; run again, it finishes what is missing."""
    experiment = _load(config, overrides, None)
    if print_config:
        _print_config(experiment)
        return
    from waver.on_ray.experiment import run_ingest
    from waver.on_ray.ingest import describe_failures

    report = run_ingest(experiment, say=_say)
    _say(
        f"{report.counts.get('ok', 0)} of {sum(report.counts.values())} clips are in {shown(experiment.clip_store)}; "
        f"this run decoded {report.num_decoded} in {report.seconds:.1f} s, {report.num_skipped} were there"
    )
    if report.reasons:
        _say(f"without frames:\n{describe_failures(report)}")


@app.command()
def vocabulary(config: Config, overrides: Set = [], print_config: PrintConfig = False) -> None:  # noqa: B006
    """Make the dictionary of phrases from an experiment's captions."""
    experiment = _load(config, overrides, None)
    if print_config:
        _print_config(experiment)
        return
    from waver.on_ray.experiment import LEAKY, run_vocabulary

    dictionary = run_vocabulary(experiment, say=_say)
    commonest = ", ".join(dictionary.phrases["phrase"][:5].to_pylist())
    _say(f"{len(dictionary.phrases)} phrases are in {shown(experiment.dictionary)}; the commonest: {commonest}")
    if dictionary.leaky:
        _say(LEAKY)
    _say(f"next: waver match {config}")


@app.command()
def match(config: Config, workers: Workers = None, overrides: Set = [], print_config: PrintConfig = False) -> None:  # noqa: B006
    """Find the phrases that describe each clip, with the frozen teacher; run again, it finishes what is missing."""
    experiment = _load(config, overrides, workers)
    if print_config:
        _print_config(experiment)
        return
    from waver.on_ray.experiment import LEAKY, run_match

    knowledge = run_match(experiment, say=_say)
    _say(
        f"{len(knowledge.matches)} clips know their best {knowledge.manifest['num_matches']} of {knowledge.num_phrases} "
        f"phrases, in {shown(knowledge.path)}"
    )
    if knowledge.leaky:
        _say(LEAKY)
    _say(f"next: waver train {config}")


@app.command()
def train(config: Config, workers: Workers = None, overrides: Set = [], print_config: PrintConfig = False) -> None:  # noqa: B006
    """Train an experiment whose videos are ingested; run again, it continues after the last checkpoint."""
    experiment = _load(config, overrides, workers)
    if print_config:
        _print_config(experiment)
        return
    from waver.on_ray.experiment import run_training
    from waver.report import metrics_table

    result = run_training(experiment, say=_say)
    if "protocol" in result:  # a run that an older version finished has none
        _print_protocol(result)
    _figures.print(
        metrics_table(f"{experiment.name}, {result['best_checkpoint']}, validation split", {"": result["validation"]})
    )
    folder = experiment.run_folder
    _say(f"next: waver evaluate {shown(folder)}    look: waver board {shown(folder.parent)}")


@app.command()
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
    from waver.checkpoint import checkpoint_config
    from waver.duplicates import describe_counts
    from waver.on_ray.experiment import run_evaluation
    from waver.report import metrics_table, rows_of, styles_table
    from waver.run import find_checkpoint

    asked = parse_overrides(overrides)
    if learned := sorted(key for key in asked if key.partition(".")[0] not in _FREE_IN_EVALUATION):
        raise ConfigError(
            f"--set {', '.join(learned)}: a checkpoint is evaluated as it was trained; what may be set is in "
            f"{', '.join(_FREE_IN_EVALUATION)}"
        )
    if export and export[0] != "trec":
        raise ConfigError(f"--export {export[0]}: the format is trec, as in --export trec rankings/")
    folder = _folder(run_or_checkpoint, asked)
    checkpoint = find_checkpoint(folder)
    # One process evaluates unless more are asked for: however many the run was trained with, the figures are the same.
    experiment = checkpoint_config(checkpoint, {"resources.workers": workers or 1} | asked)
    result = run_evaluation(
        folder,
        experiment,
        split=split,
        say=_say,
        output=output,
        trec=export[1] if export else None,
        trec_depth=export_depth,
    )
    _print_protocol(result)
    _figures.print(metrics_table(f"{experiment.name}, {checkpoint.name}, {split} split", rows_of(result)))
    if result["styles"]:
        _figures.print(styles_table("by style of the caption", {experiment.name: result["styles"]}))
    if result["num_missing_clips"]:
        _say(f"{result['num_missing_clips']} clips of the gallery could not be decoded and count as misses")
    if lines := describe_counts(result["duplicates"]):
        _say("what stands twice (listed in duplicates_*.json; in the figures `excused`, it is not counted as wrong):")
        _say("\n".join(lines))


@app.command()
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
    from waver.on_ray.robustness import run_robustness
    from waver.robustness.tables import headline_table, styles_table

    asked = parse_overrides(overrides)
    places = {key: value for key, value in asked.items() if key.partition(".")[0] in _FREE_IN_EVALUATION}
    settings = load_robustness(config, {key: value for key, value in asked.items() if key not in places})
    if workers is not None:
        places["resources.workers"] = workers
    folders = [_folder(run, places) for run in runs]
    report, folder = run_robustness(folders, settings, places, say=_say, output=output)
    _figures.print(headline_table(report))
    _figures.print(styles_table(report))
    _say(f"all figures, and what they mean: {shown(folder / 'report.html')}")


@app.command()
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
    from waver.on_ray.plan import describe_plan, plan_sweep
    from waver.on_ray.tune import run_sweep

    plan = plan_sweep(sweep, parse_overrides(overrides))
    if dry_run:
        describe_plan(plan, say=_say)
        return
    run_sweep(plan, say=_say, show=_figures.print)


@app.command()
def submit(
    config: Annotated[
        str,
        typer.Argument(
            help="What the stage is given: an experiment; for tune a sweep; for evaluate and robustness a run.",
            show_default=False,
        ),
    ],
    stage: Annotated[Stage, typer.Argument(help="What the job does.")] = "train",
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="[-- ARGUMENTS]", help="More for the stage, such as -- --split test.")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(help="Dashboard of the cluster, http://HEAD:8265.", show_default="RAY_API_SERVER_ADDRESS"),
    ] = None,
    follow: Annotated[bool, typer.Option(help="Show what the job prints, and end as it ends.")] = True,
    workers: Workers = None,
    overrides: Set = [],  # noqa: B006
    working_dir: Annotated[
        Path | None,
        typer.Option(help="Folder that is uploaded.", show_default="the git clone, else the current folder"),
    ] = None,
    exclude: Annotated[
        list[str], typer.Option(metavar="PATTERN", help="Not uploaded, as in .gitignore; again for more.")
    ] = [],  # noqa: B006
    env: Annotated[
        list[str], typer.Option(metavar="NAME=VALUE", help="Environment variable of the job; again for more.")
    ] = [],  # noqa: B006
) -> None:
    """Run a stage on a cluster, as a job that goes on without this machine; submit again, it continues."""
    from waver.on_ray.jobs import follow_job, send_job
    from waver.submission import dashboard_address, default_working_dir, plan_submission

    given = [config, *(arguments or [])]
    given += [] if workers is None else ["--workers", str(workers)]
    given += [part for override in overrides for part in ("--set", override)]
    # The stage's own command reads them here, so that a mistake costs no job.
    parsed = typer.main.get_command(app).commands[stage].make_context(f"waver {stage}", list(given)).params
    asked = {"resources.workers": parsed["workers"]} if parsed.get("workers") else {}
    cluster, here = dashboard_address(address, os.environ), Path.cwd()
    submission = plan_submission(
        stage,
        given,
        parsed,
        folder=here,
        working_dir=working_dir or default_working_dir(here),
        address=cluster,
        overrides=asked | parse_overrides(parsed["overrides"]),
        excludes=exclude,
        variables=env,
        environ=os.environ,
    )
    job = send_job(submission, cluster, say=_say)
    if not follow:
        print(job)
        return
    raise typer.Exit(follow_job(job, cluster, say=_say, write=lambda text: print(text, end="", flush=True)))


@app.command()
def doctor(
    config: Config,
    before: Annotated[Before, typer.Option(help="The stage that is to start.")] = "train",
    address: Annotated[
        str | None,
        typer.Option(help="Of the Ray cluster whose nodes are tried as well.", show_default="RAY_ADDRESS, else none"),
    ] = None,
    workers: Workers = None,
    output: Annotated[
        Path | None, typer.Option(help="JSON file for the report.", show_default="below the storage")
    ] = None,
    overrides: Set = [],  # noqa: B006
) -> None:
    """Look for all that could go wrong before anything runs; 0 only if the stage can start."""
    from waver.doctor.findings import can_start, findings_text
    from waver.on_ray.doctor import run_doctor

    asked = {} if workers is None else {"resources.workers": workers}
    if address is not None:
        os.environ["RAY_ADDRESS"] = address
    findings = run_doctor(
        config,
        lambda: asked | parse_overrides(overrides),
        before=before,
        say=_say,
        output=output,
        show=lambda found: _figures.print(findings_text(found), end="", soft_wrap=True),
    )
    raise typer.Exit(0 if can_start(findings) else 1)


@app.command()
def board(
    runs: Annotated[str, typer.Argument(help="Folder or URL of a run, of many, or of a sweep.", show_default=False)],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where it listens, on this machine alone; 0: any.")
    ] = 6006,
) -> None:
    """Show runs in TensorBoard, until Ctrl-C."""
    from waver.board import show_board

    show_board(_folder(runs), port=port, say=_say)


@app.command()
def compare(
    run_a: Annotated[
        str, typer.Argument(help="Folder or URL of a run; a trial's seed is one too.", show_default=False)
    ],
    run_b: Annotated[str, typer.Argument(help="Folder or URL of another.", show_default=False)],
    all_rows: Annotated[bool, typer.Option("--all", help="Also show what is equal.")] = False,
) -> None:
    """Say in what two runs differ: settings, data, environment, and what came of it."""
    from waver.comparison import compare_runs
    from waver.comparison.tables import comparison_tables

    for part in comparison_tables(compare_runs(_folder(run_a), _folder(run_b)), all_rows=all_rows):
        _figures.print(part)


def _folder(place: str, asked: Mapping[str, Any] | None = None) -> Path:
    """The folder that is named by a path or a URL; its copy is where `asked` has storage.cache."""
    if not is_url(place):
        return Path(place)
    cache = (asked or {}).get("storage.cache")
    return local_copy(check_url(place), Path(cache) if cache else None)


def _load(config: Path, overrides: list[str], workers: int | None) -> ExperimentConfig:
    asked = {} if workers is None else {"resources.workers": workers}
    return load_config(config, asked | parse_overrides(overrides))


def _print_config(experiment: ExperimentConfig) -> None:
    _figures.print(experiment.to_yaml(), end="", markup=False, highlight=False, soft_wrap=True)


def _print_protocol(result: Mapping[str, Any]) -> None:
    from waver.protocols import Protocol

    for line in Protocol(**result["protocol"]).lines():
        _figures.print(line, markup=False, highlight=False, soft_wrap=True)


def _say(text: str) -> None:
    _talk.print(text, markup=False)


def main() -> None:
    """Entry point: mistakes of the user end in a sentence, not in a traceback."""
    try:
        app()
    except SystemExit as ended:
        # typer makes an exit of Ctrl-C; what was said with it is further down.
        if ended.code == 130:
            _say(_interrupt(ended) or "stopped; run the same command again to go on from what is kept")
        elif message := getattr(ended, "message", ""):
            _say(message)
        raise
    except ConfigError as error:
        _say(str(error))
        sys.exit(2)
    except OSError as error:  # the machine refused: a full disk, no permission
        _say(f"error: {error}")
        sys.exit(1)
    except ValueError as error:
        if not raised_by_waver(error):
            raise
        _say(f"error: {error}")
        sys.exit(1)


def _interrupt(error: BaseException | None) -> str:
    """The message of the KeyboardInterrupt that led to an exception."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return str(error or "")


if __name__ == "__main__":
    main()
