"""Reads and writes the folder of a sweep.

sweep.yaml          configuration of the sweep
base.yaml           resolved configuration of the experiment that the sweep varies
samples.json        num_samples each time that it grew; only if it grew
shared.json         clip stores and knowledge that the trials read, and whether the sweep made or found them
trials/0007/        one folder per trial:
  trial.json          number and point of the trial
  progress.json       epochs trained, objective so far, seconds; rewritten after each epoch
  failure.json        error of the last failed attempt, if the process of the trial could write it
  outcome.json        written when the trial ends: finished, stopped (by the scheduler) or failed
  seed_0/             run folder, as `waver train` writes it; one per seed
then/trials/0007/   the same files of a trial that was fine-tuned after the search, see `waver.sweeps.then`
tune*/              state of Ray Tune, with which a search by Optuna resumes
results.csv, results.parquet, best.yaml, report.html, events/
writer-*.json       the lock of the process that runs the sweep, see `waver.tools.lock`

The state of a sweep is always read from these files, so that it is known after any process was killed.
"""

import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean
from typing import Any, Literal

from waver.runs.folder import best_epoch, read_result
from waver.runs.tracking import read_metrics
from waver.tools.errors import WaverError
from waver.tools.files import read_json, write_json

TrialStatus = Literal["running", "finished", "stopped", "failed", "interrupted"]


class SweepError(WaverError):
    """Raised if a sweep cannot run with its configuration, its folder or this cluster."""


@dataclass(frozen=True)
class SeedRun:
    """The training run of one seed of a trial."""

    seed: int
    folder: Path
    epochs: int
    metrics: dict[str, float]
    """Validation metrics of the best checkpoint so far; empty before the end of the first epoch."""
    finished: bool
    gallery: tuple[int, int] | None = None
    """Number of clips and of captions that the metrics are of; None before the first epoch, and in runs of an earlier
    version of waver."""


@dataclass(frozen=True)
class TrialState:
    """State of one trial, as its files give it."""

    number: int
    folder: Path
    point: dict[str, Any]
    status: TrialStatus
    """stopped: by the scheduler. interrupted: not ended, in a sweep that does not run now, see `read_trials`."""
    error: str = ""
    epochs: int = 0
    """Epochs trained, summed over seeds."""
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    ended_s: float = 0.0
    """Unix time at the end of its last epoch."""
    runs: list[SeedRun] = field(default_factory=list[SeedRun])

    def values(self, metric: str) -> list[float]:
        """Returns a validation metric of each seed that has ended an epoch."""
        return [run.metrics[metric] for run in self.runs if run.metrics]

    @property
    def gallery(self) -> tuple[int, int] | None:
        """Number of clips and of captions that the metrics are of; None if it is unknown."""
        return next((run.gallery for run in self.runs if run.gallery), None)


def sweep_folder(storage: Path, name: str) -> Path:
    """Returns the folder of a sweep."""
    return storage / "sweeps" / name


def trial_folder(folder: Path, number: int) -> Path:
    """Returns the folder of a trial."""
    return folder / "trials" / f"{number:04d}"


def run_folder(trial: Path, seed: int) -> Path:
    """Returns the run folder of one seed of a trial."""
    return trial / f"seed_{seed}"


def begin_trial(folder: Path, number: int, point: dict[str, Any]) -> Path:
    """Creates the folder of a trial and writes its number and point.

    An existing folder of another point is deleted: Optuna had drawn that point in a process that was killed before Tune
    saved the draw.
    """
    trial, content = trial_folder(folder, number), {"number": number, "point": point}
    if trial.exists() and read_if_written(trial / "trial.json") != content:
        shutil.rmtree(trial)
    trial.mkdir(parents=True, exist_ok=True)
    write_json(trial / "trial.json", content)
    return trial


def read_trials(folder: Path, *, runs: bool = True) -> list[TrialState]:
    """Reads all trials that have begun, sorted by number.

    Args:
        folder: folder of the sweep.
        runs: whether the sweep runs now; if not, trials that have not ended are `interrupted` instead of `running`.
    """
    states = [read_trial(path.parent) for path in sorted(folder.glob("trials/*/trial.json"))]
    if runs:
        return states
    return [replace(state, status="interrupted") if state.status == "running" else state for state in states]


def read_trial(folder: Path) -> TrialState:
    """Reads the files of one trial."""
    trial = read_json(folder / "trial.json")
    outcome, progress = read_if_written(folder / "outcome.json"), read_if_written(folder / "progress.json")
    runs = [_read_run(path) for path in sorted(folder.glob("seed_*"), key=lambda path: int(path.name[5:]))]
    return TrialState(
        number=trial["number"],
        folder=folder,
        point=trial["point"],
        status=outcome.get("status", "running"),
        error=outcome.get("error", ""),
        epochs=sum(run.epochs for run in runs),
        seconds=progress.get("seconds", 0.0),
        gpu_seconds=progress.get("gpu_seconds", 0.0),
        ended_s=progress.get("time_s", 0.0),
        runs=runs,
    )


def objective_history(state: TrialState, metric: str) -> list[tuple[int, float]]:
    """Returns what a trial has reported after each epoch: epochs summed over seeds, and the mean objective of the seeds."""
    history: list[tuple[int, float]] = []
    epochs = 0
    earlier: list[float] = []
    for run in state.runs:
        rows = [row for row in read_metrics(run.folder) if row.get("split") == "validation"]
        for number, row in enumerate(rows, 1):
            history.append((epochs + row["epoch"], mean([*earlier, best_epoch(rows[:number])[1][metric]])))
        if rows:
            epochs, earlier = epochs + run.epochs, [*earlier, run.metrics[metric]]
    return history


def drop_checkpoints(trial: Path) -> None:
    """Removes the checkpoints of all runs of a trial, and keeps their metrics."""
    for checkpoint in trial.glob("seed_*/checkpoint_*"):
        if checkpoint.is_dir():
            shutil.rmtree(checkpoint, ignore_errors=True)  # a worker that is being stopped may still write into it


def _read_run(folder: Path) -> SeedRun:
    rows = [row for row in read_metrics(folder) if row.get("split") == "validation"]
    return SeedRun(
        seed=int(folder.name[5:]),
        folder=folder,
        epochs=max((row["epoch"] for row in rows), default=0),
        metrics=best_epoch(rows)[1] if rows else {},
        finished=read_result(folder) is not None,
        gallery=(rows[-1]["gallery_size"], rows[-1]["num_queries"]) if rows and "gallery_size" in rows[-1] else None,
    )


def read_if_written(path: Path) -> Any:
    """Reads a JSON file of a sweep folder; returns an empty mapping if the file does not exist yet."""
    return read_json(path) if path.exists() else {}
