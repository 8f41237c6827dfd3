"""The folder of a sweep: what is in it, and what its files say of each trial.

sweep.yaml          the sweep
base.yaml           the experiment that it varies, resolved
shared.json         clip stores and knowledge: which trials use them, made now or found
trials/0007/        a folder a trial:
  trial.json          its number and its point
  progress.json       epochs trained, objective so far, seconds; rewritten after each epoch
  failure.json        why it failed last, where it could say so itself
  outcome.json        once it has ended: finished, stopped (by the scheduler) or failed
  seed_0/             a run, as `waver train` makes it; one for each seed
tune/               what Ray Tune needs to go on with the sweep
results.csv, results.parquet, best.yaml, report.html, events/

The files are the truth: whoever was killed, the table so far is read from them.
"""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from waver.config import SweepConfig
from waver.runs.folder import best_epoch, finished
from waver.runs.tracking import read_metrics
from waver.tools.errors import WaverError
from waver.tools.files import read_json, write_json


class SweepError(WaverError):
    """The sweep cannot be run as asked."""


@dataclass(frozen=True)
class SeedRun:
    """One seed of a trial."""

    seed: int
    folder: Path
    epochs: int
    metrics: dict[str, float]
    """Validation metrics of the best checkpoint so far; empty before the first epoch has ended."""
    finished: bool


@dataclass(frozen=True)
class TrialState:
    """What is known of one trial."""

    number: int
    folder: Path
    point: dict[str, Any]
    status: str
    """running, finished, stopped or failed; of a sweep that was interrupted, running ones have not ended."""
    error: str = ""
    epochs: int = 0
    """Of all its seeds."""
    seconds: float = 0.0
    gpu_seconds: float = 0.0
    ended_s: float = 0.0
    """Unix time of its last epoch."""
    runs: list[SeedRun] = field(default_factory=list)

    def values(self, metric: str) -> list[float]:
        """A figure of each seed that has one."""
        return [run.metrics[metric] for run in self.runs if run.metrics]


def sweep_folder(storage: Path, name: str) -> Path:
    """Where a sweep keeps everything."""
    return storage / "sweeps" / name


def trial_folder(folder: Path, number: int) -> Path:
    """Of a trial, by its number."""
    return folder / "trials" / f"{number:04d}"


def run_folder(trial: Path, seed: int) -> Path:
    """Of one seed of a trial."""
    return trial / f"seed_{seed}"


def open_sweep(folder: Path, sweep: SweepConfig, base_yaml: str) -> None:
    """Makes the folder of a new sweep, or checks that the one in it is the same.

    Raises:
        SweepError: where the folder holds another sweep.
    """
    # Where the base lies does not matter: what it says stands in base.yaml.
    files = {"sweep.yaml": sweep.model_copy(update={"base": Path("base.yaml")}).to_yaml(), "base.yaml": base_yaml}
    begun = (folder / "trials").exists()
    for name, text in files.items():
        path = folder / name
        if begun and path.read_text(encoding="utf-8") != text:
            there = set(path.read_text(encoding="utf-8").splitlines())
            new = [line.strip() for line in text.splitlines() if line not in there]
            raise SweepError(
                f"{folder} holds a sweep whose {name} differs (asked now: {'; '.join(new[:5]) or 'less'}): choose another "
                "name, or delete the folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")


def begin_trial(folder: Path, number: int, point: dict[str, Any]) -> Path:
    """Makes the folder of a trial, and says in it what the trial tries.

    What is there of another point goes: Optuna had drawn it for a sweep that was killed before it was noted.
    """
    trial, content = trial_folder(folder, number), {"number": number, "point": point}
    if trial.exists() and read_if_written(trial / "trial.json") != content:
        shutil.rmtree(trial)
    trial.mkdir(parents=True, exist_ok=True)
    write_json(trial / "trial.json", content)
    return trial


def read_trials(folder: Path) -> list[TrialState]:
    """All trials that have begun, by their number."""
    return [read_trial(path.parent) for path in sorted(folder.glob("trials/*/trial.json"))]


def read_trial(folder: Path) -> TrialState:
    """What the files of one trial say."""
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


def drop_checkpoints(trial: Path) -> None:
    """Removes the checkpoints of all runs of a trial; its figures stay."""
    for checkpoint in trial.glob("seed_*/checkpoint_*"):
        if checkpoint.is_dir():
            shutil.rmtree(checkpoint, ignore_errors=True)  # a worker that is being ended may still write there


def _read_run(folder: Path) -> SeedRun:
    rows = [row for row in read_metrics(folder) if row.get("split") == "validation"]
    return SeedRun(
        seed=int(folder.name[5:]),
        folder=folder,
        epochs=max((row["epoch"] for row in rows), default=0),
        metrics=best_epoch(rows)[1] if rows else {},
        finished=finished(folder) is not None,
    )


def read_if_written(path: Path) -> Any:
    """Reads a JSON file of a sweep folder; returns an empty mapping if the file does not exist yet."""
    return read_json(path) if path.exists() else {}
