"""What the files of a run say, as far as they are there and whole; a sentence for each that is not."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from waver.config import ConfigError, ExperimentConfig, load_config
from waver.runs.folder import SELECTION_METRIC, best_epoch
from waver.runs.tracking import read_metrics
from waver.tools.errors import WaverError
from waver.tools.files import read_json
from waver.tools.object_store import ObjectStoreError, display_path, exists, list_names


class ComparisonError(WaverError):
    """What was named cannot be compared."""


@dataclass(frozen=True)
class ReadRun:
    """One run."""

    folder: Path
    config: ExperimentConfig | None
    data: Mapping[str, Any]
    environment: Mapping[str, Any]
    result: Mapping[str, Any]
    """Empty while the run is not finished."""
    steps: list[dict]
    """Rows of metrics.jsonl, one a step."""
    validation: list[dict]
    """Rows of metrics.jsonl, one an evaluation."""
    evaluations: Mapping[str, Mapping[str, Any]]
    """Name of the file, without its ending -> what it holds."""
    problems: list[str] = field(default_factory=list)
    """What could not be read."""

    @property
    def best(self) -> tuple[int, dict[str, float]] | None:
        """(epoch, validation metrics) of the best evaluation so far; None before the first."""
        return best_epoch(self.validation) if self.validation else None

    @property
    def progress(self) -> str:
        """How far it is."""
        if self.result:
            return "finished"
        if not self.steps:
            return "not finished: no step yet"
        of = f" of {self.config.train.epochs}" if self.config else ""
        return f"not finished: step {self.steps[-1]['step']}, epoch {self.steps[-1].get('epoch', '?')}{of}"

    def median(self, scalar: str) -> float | None:
        """Of a scalar that stands at every step. The first one waits for everything to start, and is left out."""
        values = [row[scalar] for row in self.steps[1:] if scalar in row]
        return median(values) if values else None


def read_run(folder: Path) -> ReadRun:
    """Reads a run.

    Raises:
        ComparisonError: where the folder is none of a run; says what it is, as far as that can be seen.
    """
    _check(folder)
    problems: list[str] = []
    config = None
    try:
        config = load_config(folder / "config.yaml")
    except ConfigError as error:
        problems.append(f"its configuration cannot be read: {error}")
    rows = []
    try:
        rows = list(read_metrics(folder))
    except (OSError, ValueError) as error:
        problems.append(f"{folder / 'metrics.jsonl'} is damaged ({error}): its curves are left out")
    whole = [row for row in rows if isinstance(row, dict) and "step" in row]
    if len(whole) < len(rows):
        problems.append(
            f"{folder / 'metrics.jsonl'} has {len(rows) - len(whole)} lines without a step: they are left out"
        )
    return ReadRun(
        folder=folder,
        config=config,
        data=_read(folder / "data.json", problems),
        environment=_read(folder / "environment.json", problems),
        result=_read(folder / "result.json", problems, optional=True),
        steps=[row for row in whole if "split" not in row],
        validation=[row for row in whole if row.get("split") == "validation" and SELECTION_METRIC in row],
        evaluations=_evaluations(folder, problems),
        problems=problems,
    )


def _check(folder: Path) -> None:
    if folder.is_file() or not exists(folder):
        raise ComparisonError(
            f"{display_path(folder)} {'is a file' if folder.exists() else 'is not there'}: name the folder of a run"
        )
    if exists(folder / "model.safetensors"):
        raise ComparisonError(f"{display_path(folder)} is a checkpoint: name its run, {display_path(folder.parent)}")
    if exists(folder / "config.yaml"):
        return
    inside = [folder / name for name in list_names(folder) if exists(folder / name / "config.yaml")]
    inside += [path.parent for path in sorted(folder.glob("trials/*/*/config.yaml"))]
    hint = f": name one in it, such as {display_path(inside[0])}" if inside else ": train one with `waver train CONFIG`"
    raise ComparisonError(f"{display_path(folder)} is no run, it has no config.yaml{hint}")


def _read(path: Path, problems: list[str], *, optional: bool = False) -> Mapping[str, Any]:
    """The object in a JSON file; empty where it is missing or damaged, which is noted."""
    try:
        content = read_json(path)
    except ObjectStoreError:
        raise
    except FileNotFoundError:
        if not optional:
            problems.append(f"{path} is missing: what it says is left out")
        return {}
    except (OSError, ValueError) as error:
        problems.append(f"{path} is damaged ({error}): what it says is left out")
        return {}
    if not isinstance(content, dict):
        problems.append(f"{path} holds no object but a {type(content).__name__}: what it says is left out")
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
