"""Runs one trial of a sweep: trains an experiment once per seed and reports to Ray Tune after each epoch.

A trial with one worker trains in the process that Tune started, which the next trial reuses. A trial with several workers is
a run of Ray Train.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import pyarrow as pa
import ray
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from waver.config import ExperimentConfig, SweepConfig, load_config
from waver.on_ray.cluster.failures import permanent_message
from waver.on_ray.stages.train import run_training, train_on_workers
from waver.runs.control import Interrupted
from waver.runs.train_loop import TrainingJob, embed_inputs, train_job
from waver.sweeps.folder import begin_trial, read_if_written, read_trial, run_folder
from waver.sweeps.space import Point
from waver.sweeps.then import fine_tuned_config
from waver.tools.errors import WaverError
from waver.tools.files import write_json
from waver.tools.lock import LockedError


class TrialError(WaverError):
    """Raised at once if an earlier attempt of the trial failed with a permanent error."""


@dataclass(frozen=True)
class SweepJob:
    """Parameters of all trials of a sweep."""

    sweep: SweepConfig
    folder: Path
    """Folder of the sweep."""
    points: Mapping[int, Point] | None
    """Points by trial number; None if Optuna draws them."""
    gpus: float
    """GPUs of all workers of a trial together."""
    searched: Path | None = None
    """Of fine-tunings, the folder of the sweep, with the searched trials; `folder` is that of the fine-tunings."""

    @property
    def sweep_folder(self) -> Path:
        """Folder of the sweep, also of its fine-tunings."""
        return self.searched or self.folder

    def point(self, config: dict[str, Any]) -> Point:
        """Returns the point of a trial from the config that Tune gives it."""
        if self.points is None:
            return {key: config[key] for key in self.sweep.space if key in config}
        return self.points[config["number"]]


@dataclass(frozen=True)
class TrialProgress:
    """Measures a trial after each epoch."""

    trial: Path
    metric: str
    gpus: float
    started_s: float
    """Unix time at which this process started the trial."""
    seconds_before: float
    """Seconds that earlier processes spent on the trial."""
    num_epochs: int
    """Epochs of all seeds together."""

    def after_epoch(self) -> dict[str, float] | None:
        """Measures the trial; returns the report for Tune, or None after the last epoch, which `run_trial` reports."""
        report = self.measure()
        return report if report["epoch"] < self.num_epochs else None

    def measure(self) -> dict[str, float]:
        """Writes progress.json; returns epochs summed over seeds, and the objective as mean over seeds."""
        state, now = read_trial(self.trial), time.time()
        seconds = self.seconds_before + now - self.started_s
        report = {"epoch": state.epochs, "objective": mean(state.values(self.metric))}
        write_json(
            self.trial / "progress.json",
            report | {"seconds": seconds, "gpu_seconds": seconds * self.gpus, "time_s": now},
        )
        return report


class _ReportToTune(TuneReportCallback):
    """Reports to Tune when workers report to Ray Train."""

    def __init__(self, progress: TrialProgress):
        super().__init__()
        self._progress = progress

    def after_report(self, run_context: Any, metrics: list[dict], checkpoint: Any) -> None:
        if report := self._progress.after_epoch():
            super().after_report(run_context, [report], None)


def run_trial(config: dict[str, Any], job: SweepJob) -> None:
    """Trains a point with all its seeds; resumes from the checkpoints of an earlier attempt.

    Args:
        config: what Tune gives the trial: its `number` and, if Optuna draws the points, its point.
        job: parameters of all trials.

    Raises:
        TrialError: if an earlier attempt failed with a permanent error.
        WaverError: if the experiment of the trial cannot run.
    """
    point = job.point(config)
    trial = begin_trial(job.folder, config["number"], point)
    failure = trial / "failure.json"
    if (earlier_failure := read_if_written(failure)).get("comes_again"):
        raise TrialError(earlier_failure["error"])
    start, seconds_before = time.time(), read_if_written(trial / "progress.json").get("seconds", 0.0)
    try:
        configs = [_config(job, trial, point, repeat) for repeat in range(job.sweep.repeats)]
        num_epochs = sum(experiment.train.epochs for experiment in configs)
        progress = TrialProgress(trial, job.sweep.objective.metric, job.gpus, start, seconds_before, num_epochs)
        for experiment in configs:
            group = f"{job.sweep.name}/{'then/' if job.searched else ''}{trial.name}"
            _train(experiment, trial, progress, group=group)
        tune.report(progress.measure())
    except Exception as error:
        # An earlier attempt may still hold the lock, on a node that was lost, until it ends too.
        permanent = None if isinstance(error, LockedError) else permanent_message(error)
        message = permanent or str(error) or type(error).__name__
        write_json(failure, {"error": message, "comes_again": permanent is not None})
        raise


def _config(job: SweepJob, trial: Path, point: Point, repeat: int) -> ExperimentConfig:
    base = job.sweep_folder / "base.yaml"
    seed = load_config(base, stored=True).seed + repeat
    if job.searched:
        return fine_tuned_config(job.searched, job.sweep, read_trial(job.searched / "trials" / trial.name), seed)
    return load_config(base, point | {"name": f"{job.sweep.name}-{trial.name}-seed{seed}", "seed": seed}, stored=True)


def _train(config: ExperimentConfig, trial: Path, progress: TrialProgress, *, group: str) -> None:
    def train_in_trial(job: TrainingJob, captions: pa.Table, num_steps: int) -> dict[str, float] | Interrupted:
        if config.resources.max_workers > 1:
            return train_on_workers(job, captions, num_steps, callbacks=[_ReportToTune(progress)])
        job = embed_inputs(job, captions)
        device = torch.device("cuda" if ray.get_gpu_ids() else "cpu")
        return train_job(job, captions, device=device, report=lambda metrics: _report_epoch(progress))

    run_training(config, folder=run_folder(trial, config.seed), group=group, launch=train_in_trial)


def _report_epoch(progress: TrialProgress) -> None:
    if measured := progress.after_epoch():
        tune.report(measured)
