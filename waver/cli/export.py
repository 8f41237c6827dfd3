"""The command `waver export`."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from waver.cli.options import Set, Split
from waver.cli.search import model_of
from waver.config import ConfigError
from waver.tools.names import counted
from waver.tools.object_store import display_path

if TYPE_CHECKING:
    from waver.search.export import Format

logger = logging.getLogger(__name__)


def export(
    run_or_config: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_INDEX",
            help="Folder or URL of a run (its best checkpoint is used) or of a checkpoint; the YAML file of an experiment, "
            "for its pre-trained backbone; or the folder of an index.",
            show_default=False,
        ),
    ],
    to: Annotated[
        Path,
        typer.Option(
            help="Folder for the files: new, empty, or an earlier export by the same command, which is replaced.",
            show_default=False,
        ),
    ],
    format: Annotated[Literal["npz", "parquet", "safetensors"], typer.Option(help="Format of the files.")] = "npz",
    split: Annotated[Split | None, typer.Option(help="Split of a run.", show_default="test")] = None,
    overrides: Set = [],  # noqa: B006
) -> None:
    """Write the embeddings of a split or of an index for other programs, with a README that says how to use them."""
    if (Path(run_or_config) / "windows.parquet").exists():
        _export_index(Path(run_or_config), to, format, split, overrides)
    else:
        _export_run(run_or_config, to, format, split or "test", overrides)
    logger.info(
        f"next: {display_path(to / 'README.md')} describes the files, and has Python code that computes scores from them"
    )


def _export_index(index: Path, to: Path, format: "Format", split: Split | None, overrides: list[str]) -> None:
    from waver.search.export import export_index

    if split or overrides:
        raise ConfigError("an index has neither splits nor settings: leave out --split and --set, or name a run")
    number = export_index(index, to, format)
    logger.info(f"{counted(number, 'window')} are in {display_path(to)}")


def _export_run(run: str, to: Path, format: "Format", split: Split, overrides: list[str]) -> None:
    from waver.on_ray.stages.export import export_run

    checkpoint, experiment = model_of(run, overrides, 1)
    of_run = checkpoint.name != Path(run).name
    exported = export_run(checkpoint, experiment, to, format, split=split, of_run=of_run)
    evaluation = exported.evaluation
    num_missing = len(evaluation.missing_clips)
    logger.info(
        f"{counted(evaluation.num_queries, 'caption')} and {counted(evaluation.gallery_size - num_missing, 'clip')} are in "
        f"{display_path(to)}; t2v R@1 of the model is {evaluation.metrics['t2v/R@1']:.1f}"
    )
    if num_missing:
        logger.info(f"{counted(num_missing, 'clip')} of the gallery could not be decoded, and count as misses")
