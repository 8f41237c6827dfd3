"""One worker of Ray Train: connects its part of a training run with the loaders of Ray Data and the control signals."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import ray.train
from ray.train.torch import get_device

from waver.data.batch import ReadClips, read_ahead
from waver.on_ray.cluster.signals import ControlSignals
from waver.on_ray.cluster.workers import Rescale
from waver.on_ray.stages.loader import clip_stream
from waver.runs.control import Interrupted
from waver.runs.train_loop import TrainingJob, train_job


@dataclass(frozen=True)
class WorkerArguments:
    """Arguments of `train_on_ray_worker`, as they are sent to a worker."""

    job: TrainingJob
    captions: ray.ObjectRef
    """Caption table."""
    signals: Any
    """Handle of the run's `SignalActor`, see `waver.on_ray.cluster.signals`."""


def train_on_ray_worker(arguments: WorkerArguments) -> dict[str, float] | Interrupted | Rescale:
    """Runs `train_job` on the device of a Ray Train worker, and reports to Ray Train."""
    device = get_device()
    outcome = train_job(
        arguments.job,
        ray.get(arguments.captions),
        device=device,
        next_command=ControlSignals(arguments.signals, device).next_command,
        read_clips=clip_reader(arguments.job.config.resources.loaders_per_worker),
        report=ray.train.report,
    )
    return Rescale() if isinstance(outcome, Interrupted) and outcome.command == "rescale" else outcome


def clip_reader(loaders: int) -> ReadClips:
    """Returns the function that reads the clips of a worker: with threads of its process, or with loaders of Ray Data.

    Args:
        loaders: number of loader processes; 0 for threads.
    """
    return partial(clip_stream, loaders=loaders) if loaders else read_ahead
