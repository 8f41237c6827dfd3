"""What runs in a trial of a sweep: the training of an experiment, once for each seed, told to Ray Tune after each epoch.

A trial of one worker trains in the process that Tune gives it, and the next trial takes over that process: nothing is
started for it. A trial of several workers is a run of Ray Train.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import ray
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from waver.config import ExperimentConfig, SweepConfig, load_config
from waver.on_ray.cluster.failures import permanent_message
from waver.on_ray.stages.train import run_training
from waver.on_ray.stages.train_worker import Job, train_job
from waver.sweeps.folder import begin_trial, read_if_written, read_trial, run_folder
from waver.sweeps.space import Point
from waver.tools.errors import WaverError
from waver.tools.files import write_json


class TrialError(WaverError):
    """A trial failed in a way that would come again; it says so each time Tune tries."""


@dataclass(frozen=True)
class SweepJob:
    """What every trial is handed."""

    sweep: SweepConfig
    folder: Path
    """Of the sweep."""
    points: tuple[Point, ...] | None
    """By number; None where Optuna draws them."""
    gpus: float
    """That a trial takes, with all its workers."""

    def point(self, config: dict[str, Any]) -> Point:
        """The point of a trial, from what Tune calls its config."""
        if self.points is None:
            return {key: config[key] for key in self.sweep.space if key in config}
        return self.points[config["number"]]


@dataclass(frozen=True)
class TrialProgress:
    """What is told of a trial, after each epoch."""

    trial: Path
    metric: str
    gpus: float
    started_s: float
    """Unix time at which this process took up the trial."""
    seconds_before: float
    """That earlier processes spent on it."""
    num_epochs: int
    """Of all its seeds."""

    def after_epoch(self) -> dict[str, float] | None:
        """Measures; returns what Tune is told now. It is told of the last epoch when the trial is finished."""
        told = self.measure()
        return told if told["epoch"] < self.num_epochs else None

    def measure(self) -> dict[str, float]:
        """Writes progress.json; returns the epochs of all seeds, and the mean of the objective over seeds."""
        state, now = read_trial(self.trial), time.time()
        seconds = self.seconds_before + now - self.started_s
        told = {"epoch": state.epochs, "objective": mean(state.values(self.metric))}
        write_json(
            self.trial / "progress.json",
            told | {"seconds": seconds, "gpu_seconds": seconds * self.gpus, "time_s": now},
        )
        return told


class _ReportToTune(TuneReportCallback):
    """Tells Tune what Ray Train is told."""

    def __init__(self, progress: TrialProgress):
        super().__init__()
        self._progress = progress

    def after_report(self, run_context: Any, metrics: list[dict], checkpoint: Any) -> None:
        if told := self._progress.after_epoch():
            super().after_report(run_context, [told], None)


def run_trial(config: dict[str, Any], job: SweepJob) -> None:
    """Trains a point with all its seeds; goes on where an earlier process left it.

    Args:
        config: what Tune hands out: the number of the trial and, from Optuna, its point.
        job: the sweep.

    Raises:
        TrialError: it failed before, and would again.
        WaverError: if the settings of the trial cannot be run.
    """
    point = job.point(config)
    trial = begin_trial(job.folder, config["number"], point)
    failure = trial / "failure.json"
    if (earlier := read_if_written(failure)).get("comes_again"):
        raise TrialError(earlier["error"])
    start, before = time.time(), read_if_written(trial / "progress.json").get("seconds", 0.0)
    try:
        configs = [_config(job, trial, point, repeat) for repeat in range(job.sweep.repeats)]
        num_epochs = sum(config.train.epochs for config in configs)
        progress = TrialProgress(trial, job.sweep.objective.metric, job.gpus, start, before, num_epochs)
        for config in configs:
            _train(config, trial, progress, group=f"{job.sweep.name}/{trial.name}")
        tune.report(progress.measure())
    except Exception as error:
        lasting = permanent_message(error)
        text = lasting or str(error) or type(error).__name__
        write_json(failure, {"error": text, "comes_again": lasting is not None})
        raise


def _config(job: SweepJob, trial: Path, point: Point, repeat: int) -> ExperimentConfig:
    base = job.folder / "base.yaml"
    seed = load_config(base).seed + repeat
    return load_config(base, point | {"name": f"{job.sweep.name}-{trial.name}-seed{seed}", "seed": seed})


def _train(config: ExperimentConfig, trial: Path, progress: TrialProgress, *, group: str) -> None:
    how: dict[str, Any] = {"folder": run_folder(trial, config.seed), "group": group}
    if config.resources.max_workers == 1:
        how["here"] = lambda job: _train_here(job, progress)
    else:
        how["callbacks"] = [_ReportToTune(progress)]
    run_training(config, **how)


def _train_here(job: Job, progress: TrialProgress) -> dict:
    """Trains a run of one worker in this process, from its last checkpoint."""

    def report(metrics: dict[str, float]) -> None:
        if told := progress.after_epoch():
            tune.report(told)

    return train_job(job, device=torch.device("cuda" if ray.get_gpu_ids() else "cpu"), report=report)
