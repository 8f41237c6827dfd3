"""The typer application, and the options and functions that several commands share."""

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from waver.config import ExperimentConfig, load_config, parse_overrides
from waver.tools.object_store import check_url, is_url, local_copy

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Text-video retrieval that does not depend on the writing style of the query, distributed with Ray.",
)
stdout = Console()
"""Receives results; messages go to standard error through `logging`."""
_stderr = Console(stderr=True, highlight=False, soft_wrap=True)

Config = Annotated[Path, typer.Argument(help="YAML file of the experiment, as in experiments/.", show_default=False)]
Set = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, e.g. train.lr=3e-5; repeatable."),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Short for --set resources.workers=N.", show_default=False)]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved configuration and exit.")]

EVALUATION_SECTIONS = ("data", "ingest", "storage", "resources", "evaluate")
"""Sections of the configuration that `--set` may change for a trained model: the others define the model."""

Split = Literal["train", "validation", "test"]
JobStage = Literal["train", "tune", "ingest", "vocabulary", "match", "evaluate", "robustness", "doctor"]


def local_folder(path_or_url: str, overrides: Mapping[str, Any] | None = None) -> Path:
    """Returns the local path of a folder; for a URL, that of its local copy, below `storage.cache` of the overrides."""
    if not is_url(path_or_url):
        return Path(path_or_url)
    cache = (overrides or {}).get("storage.cache")
    return local_copy(check_url(path_or_url), Path(cache) if cache else None)


def load_experiment(config: Path, overrides: list[str], workers: int | None) -> ExperimentConfig:
    """Loads a configuration with the overrides of --set and --workers."""
    return load_config(config, merge_overrides(overrides, workers))


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

    def emit(self, record: logging.LogRecord) -> None:
        _stderr.print(self.format(record), markup=False)


def configure_logging() -> None:
    """Prints log records of waver from level INFO on standard error; `-v` and `-q` change the level."""
    package = logging.getLogger("waver")
    if not any(isinstance(handler, _RichHandler) for handler in package.handlers):
        package.addHandler(_RichHandler())
    package.setLevel(logging.INFO)
    package.propagate = False


def with_verbosity(function: Callable[..., None]) -> Callable[..., None]:
    """Returns the command with the additional options --verbose and --quiet, which set the log level of waver."""

    @functools.wraps(function)
    def with_level(*, verbose: bool, quiet: bool, **arguments: Any) -> None:
        logging.getLogger("waver").setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
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
