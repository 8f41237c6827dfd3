"""The typer application, and the options and functions that several commands share."""

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from waver.config import ExperimentConfig, config_error, load_draft, parse_overrides
from waver.runs.places import names_experiment
from waver.tools.commands import complete_commands, config_arguments
from waver.tools.object_store import check_url, is_url, local_copy

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Text-video retrieval that does not depend on the writing style of the query, distributed with Ray.",
)
stdout = Console(markup=False, emoji=False)
"""Receives results; messages go to standard error through `logging`. Names and sentences of users are shown as they are: the
brackets of `film [1080p].mp4` are no markup."""
_stderr = Console(stderr=True, highlight=False, soft_wrap=True)

Config = Annotated[Path, typer.Argument(help="YAML file of the experiment, as in experiments/.", show_default=False)]
Set = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. train.lr=3e-5; repeatable."),
]
SetOfSweep = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the sweep, e.g. num_samples=6, or else a setting of the experiment for all trials, e.g. "
        "train.epochs=2; repeatable. `seed`, which both have, is sweep.seed or set.seed.",
    ),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Short for --set resources.workers=N.", show_default=False)]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved configuration and exit.")]

EVALUATION_SECTIONS = ("data", "ingest", "embeddings", "storage", "resources", "evaluate")
"""Sections of the configuration that `--set` may change for a trained model: the others define the model."""

Split = Literal["train", "validation", "test"]
JobStage = Literal["train", "tune", "ingest", "embed", "vocabulary", "match", "evaluate", "robustness", "doctor"]


def local_folder(path_or_url: str, overrides: Mapping[str, Any] | None = None) -> Path:
    """Returns the local path of a folder; for a URL, that of its local copy, below `storage.cache` of the overrides."""
    if not is_url(path_or_url):
        return Path(path_or_url)
    cache = (overrides or {}).get("storage.cache")
    return local_copy(check_url(path_or_url), Path(cache) if cache else None)


def load_experiment(config: Path, overrides: list[str], workers: int | None) -> ExperimentConfig:
    """Loads a configuration with the overrides of --set and --workers.

    Raises:
        ConfigError: with every mistake in them and, if there is one, every error in what the configuration names.
    """
    draft = load_draft(config, merge_overrides(overrides, workers))
    if draft.mistakes:
        from waver.doctor.drafts import check_draft
        from waver.doctor.findings import describe_finding

        found = [describe_finding(finding).replace("\n", "\n  ") for finding in check_draft(draft)]
        raise config_error(config, [*draft.mistakes, *found])
    return draft.config


def merge_overrides(overrides: list[str], workers: int | None) -> dict[str, Any]:
    """Returns the values of --set and --workers by dotted key; --set resources.workers takes precedence."""
    from_workers = {} if workers is None else {"resources.workers": workers}
    return from_workers | parse_overrides(overrides)


def print_resolved_config(experiment: ExperimentConfig) -> None:
    """Prints the configuration as YAML on standard output."""
    stdout.print(experiment.to_yaml(), end="", markup=False, highlight=False, soft_wrap=True)


def print_protocol(result: Mapping[str, Any]) -> None:
    """Prints the protocol of a result: split, choice of the checkpoint, differences from published protocols."""
    from waver.evaluation.protocols import Protocol

    for line in Protocol(**result["protocol"]).lines():
        stdout.print(line, markup=False, highlight=False, soft_wrap=True)


class _RichHandler(logging.Handler):
    """Prints log records on standard error with Rich, so that they do not break its progress bars."""

    experiment = ""
    """Arguments that name the experiment of this command; they replace CONFIG in the commands that a message names."""

    def emit(self, record: logging.LogRecord) -> None:
        _stderr.print(complete_commands(self.format(record), self.experiment), markup=False)


def configure_logging() -> None:
    """Prints log records of waver from level INFO on standard error; `-v` and `-q` change the level."""
    package = logging.getLogger("waver")
    if not any(isinstance(handler, _RichHandler) for handler in package.handlers):
        package.addHandler(_RichHandler())
    package.setLevel(logging.INFO)
    package.propagate = False


def arguments_of_experiment(parameters: Mapping[str, Any]) -> str:
    """Returns the arguments that name the experiment of a command: the file it was given, or the one that its run kept.

    Args:
        parameters: name -> value of the parameters of the command.

    Returns:
        As `config_arguments`; an empty string if the command has no experiment, or several.
    """
    overrides = parameters.get("overrides", ())
    runs = parameters.get("runs") or [parameters.get("run_or_config")]
    if isinstance(runs, list) and len(runs) == 1 and runs[0]:
        if "run_or_config" in parameters and names_experiment(runs[0]):
            return config_arguments(runs[0], overrides, parameters.get("workers"))
        folder = local_copy(runs[0]) if is_url(runs[0]) else Path(runs[0])
        config = folder / "config.yaml"
        return config_arguments(config, overrides) if config.is_file() else ""
    if "runs" in parameters or not isinstance(parameters.get("config"), Path):
        return ""
    return config_arguments(parameters["config"], overrides, parameters.get("workers"))


def name_experiment(arguments: str) -> None:
    """Sets the arguments that replace CONFIG in the commands that messages name."""
    for handler in logging.getLogger("waver").handlers:
        if isinstance(handler, _RichHandler):
            handler.experiment = arguments


def with_verbosity(function: Callable[..., None]) -> Callable[..., None]:
    """Returns the command with the additional options --verbose and --quiet, which set the log level of waver."""

    @functools.wraps(function)
    def with_level(*, verbose: bool, quiet: bool, **arguments: Any) -> None:
        logging.getLogger("waver").setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
        name_experiment(arguments_of_experiment(arguments))
        function(**arguments)

    added = {
        "verbose": Annotated[bool, typer.Option("--verbose", "-v", help="Also print details.")],
        "quiet": Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings and results only.")],
    }
    # Typer reads the options of a command from its signature.
    signature = inspect.signature(function)
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in added.items()
    ]
    with_level.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *options])
    with_level.__annotations__ = function.__annotations__ | added
    return with_level
