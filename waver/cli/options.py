"""The application, and the options that several commands share."""

from collections.abc import Mapping
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
    from waver.evaluation.protocols import Protocol

    for line in Protocol(**result["protocol"]).lines():
        _figures.print(line, markup=False, highlight=False, soft_wrap=True)


def _say(text: str) -> None:
    _talk.print(text, markup=False)
