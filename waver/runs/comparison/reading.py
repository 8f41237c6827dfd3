"""Reads the files of a run for a comparison; a missing or damaged file becomes a problem in words, not an error."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from waver.config import ConfigError, ExperimentConfig, load_config
from waver.runs.folder import SELECTION_METRIC, ZERO_SHOT_SPLIT, best_epoch
from waver.runs.origin import kind_of
from waver.runs.places import describe_place
from waver.runs.tracking import read_metrics
from waver.tools.errors import WaverError
from waver.tools.files import read_json
from waver.tools.object_store import ObjectStoreError, display_path, exists, list_names


class ComparisonError(WaverError):
    """Raised if a folder is not a run, or if both are the same run."""


@dataclass(frozen=True)
class ReadRun:
    """Content of a run folder."""

    folder: Path
    config: ExperimentConfig | None
    data: Mapping[str, Any]
    environment: Mapping[str, Any]
    result: Mapping[str, Any]
    """Empty if the run has not finished."""
    steps: list[dict[str, Any]]
    """Rows of metrics.jsonl, one per optimizer step."""
    validation: list[dict[str, Any]]
    """Rows of metrics.jsonl, one per validation."""
    zero_shot: Mapping[str, Any]
    """Row of metrics.jsonl for epoch 0, the backbone before training; empty if there is none."""
    evaluations: Mapping[str, Mapping[str, Any]]
    """Name of each evaluation file, without suffix -> its content."""
    problems: list[str] = field(default_factory=list)
    """A sentence for each file, or part of one, that could not be read."""

    @property
    def best(self) -> tuple[int, dict[str, float]] | None:
        """(epoch, metrics) of the best validation so far; None before the first."""
        return best_epoch(self.validation) if self.validation else None

    @property
    def gallery(self) -> tuple[int, int] | None:
        """Number of clips and of captions of validation; None before the first, and in runs of an earlier version."""
        last = self.validation[-1] if self.validation else {}
        return (last["gallery_size"], last["num_queries"]) if "gallery_size" in last else None

    @property
    def kind(self) -> str:
        """Whether its model is `trained`, `zero-shot` or `imported`."""
        return kind_of(self.result)

    @property
    def progress(self) -> str:
        """Whether the run has finished, or its last step and epoch, in words."""
        if self.kind != "trained":
            return f"{self.kind}, not trained here"
        if self.result:
            return "finished"
        if not self.steps:
            return "not finished: no step yet"
        of = f" of {self.config.train.epochs}" if self.config else ""
        return f"not finished: step {self.steps[-1]['step']}, epoch {self.steps[-1].get('epoch', '?')}{of}"

    def median(self, scalar: str) -> float | None:
        """Returns the median of a scalar over all steps but the first, which includes the start of all processes."""
        values = [row[scalar] for row in self.steps[1:] if scalar in row]
        return median(values) if values else None


def read_run(folder: Path) -> ReadRun:
    """Reads a run.

    Raises:
        ComparisonError: if the folder is not a run folder; says what it is instead, if known.
    """
    _check(folder)
    problems: list[str] = []
    config = None
    try:
        config = load_config(folder / "config.yaml", stored=True)
    except ConfigError as error:
        problems.append(f"its configuration cannot be read: {error}")
    rows = []
    try:
        rows = list(read_metrics(folder))
    except (OSError, ValueError) as error:
        problems.append(f"{folder / 'metrics.jsonl'} is damaged ({error}): its metrics are left out")
    valid = [row for row in rows if isinstance(row, dict) and "step" in row]
    if len(valid) < len(rows):
        problems.append(
            f"{folder / 'metrics.jsonl'} has {len(rows) - len(valid)} lines without a step: they are left out"
        )
    return ReadRun(
        folder=folder,
        config=config,
        data=_read(folder / "data.json", problems),
        environment=_read(folder / "environment.json", problems),
        result=_read(folder / "result.json", problems, optional=True),
        steps=[row for row in valid if "split" not in row],
        validation=[row for row in valid if row.get("split") == "validation" and SELECTION_METRIC in row],
        zero_shot=next((row for row in valid if row.get("split") == ZERO_SHOT_SPLIT), {}),
        evaluations=_evaluations(folder, problems),
        problems=problems,
    )


def _check(folder: Path) -> None:
    if exists(folder / "model.safetensors"):
        raise ComparisonError(f"{display_path(folder)} is a checkpoint: name its run, {display_path(folder.parent)}")
    if exists(folder / "config.yaml"):
        return
    raise ComparisonError(describe_place(folder))


def _read(path: Path, problems: list[str], *, optional: bool = False) -> Mapping[str, Any]:
    """Reads a JSON object; returns an empty one and adds a problem if the file is missing or damaged."""
    try:
        content = read_json(path)
    except ObjectStoreError:
        raise
    except FileNotFoundError:
        if not optional:
            problems.append(f"{path} is missing: its content is left out")
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{path} is damaged ({error}): its content is left out")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path} holds a {type(content).__name__} instead of an object: its content is left out")
        return {}
    return content


def _evaluations(folder: Path, problems: list[str]) -> dict[str, Mapping[str, Any]]:
    found = {}
    for path in (folder / name for name in list_names(folder, "evaluation_*.json")):
        before = len(problems)
        content = _read(path, problems)
        metrics = content.get("metrics")
        if isinstance(metrics, dict) and all(isinstance(value, int | float) for value in metrics.values()):
            found[path.stem] = content
        elif len(problems) == before:
            problems.append(f"{path} holds no metrics: it is left out")
    return found
