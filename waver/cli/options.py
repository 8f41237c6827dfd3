"""The application, and the options that several commands share."""

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
    help="Text-video retrieval that does not care how a query is written, distributed with Ray.",
)
stdout = Console()
"""For results."""
_stderr = Console(stderr=True, highlight=False, soft_wrap=True)

Config = Annotated[Path, typer.Argument(help="YAML file of the experiment, as in experiments/.", show_default=False)]
Set = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="Overrides a setting, e.g. train.lr=3e-5; again for more."),
]
Workers = Annotated[int | None, typer.Option(min=1, help="Short for --set resources.workers=N.", show_default=False)]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved configuration and do nothing.")]

FREE_IN_EVALUATION = ("data", "ingest", "storage", "resources", "evaluate")
"""Sections that say where things are and how fast they are computed."""

Split = Literal["train", "validation", "test"]
Before = Literal["ingest", "match", "train"]
Stage = Literal["train", "tune", "ingest", "vocabulary", "match", "evaluate", "robustness", "doctor"]


def local_folder(place: str, asked: Mapping[str, Any] | None = None) -> Path:
    """The folder that is named by a path or a URL; its copy is where `asked` has storage.cache."""
    if not is_url(place):
        return Path(place)
    cache = (asked or {}).get("storage.cache")
    return local_copy(check_url(place), Path(cache) if cache else None)


def load_experiment(config: Path, overrides: list[str], workers: int | None) -> ExperimentConfig:
    """Loads a configuration with the overrides of --set and --workers."""
    asked = {} if workers is None else {"resources.workers": workers}
    return load_config(config, asked | parse_overrides(overrides))


def print_resolved_config(experiment: ExperimentConfig) -> None:
    """Prints the configuration as YAML, on standard output."""
    stdout.print(experiment.to_yaml(), end="", markup=False, highlight=False, soft_wrap=True)


def print_protocol(result: Mapping[str, Any]) -> None:
    """Prints the protocol of a result: on which split, chosen how, and what differs from the published one."""
    from waver.evaluation.protocols import Protocol

    for line in Protocol(**result["protocol"]).lines():
        stdout.print(line, markup=False, highlight=False, soft_wrap=True)


class _RichHandler(logging.Handler):
    """Prints records on standard error, beside whatever Rich draws there."""

    def emit(self, record: logging.LogRecord) -> None:
        _stderr.print(self.format(record), markup=False)


def configure_logging() -> None:
    """Shows the notices of waver (level INFO) on standard error; `-v` and `-q` change the level."""
    package = logging.getLogger("waver")
    if not any(isinstance(handler, _RichHandler) for handler in package.handlers):
        package.addHandler(_RichHandler())
    package.setLevel(logging.INFO)
    package.propagate = False


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Registers a command with `app`, with the options --verbose and --quiet besides its own."""

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
    app.command()(with_level)
    return function
