"""Trains an experiment: with one worker in this process, with several as the DDP workers of Ray Train."""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from waver.config import ExperimentConfig
from waver.on_ray.cluster.connection import runs_in_process
from waver.on_ray.stages.start import open_inputs
from waver.runs.control import Interrupted, stop_after
from waver.runs.folder import read_result
from waver.runs.inputs import LEAKY
from waver.runs.train import Launch, train
from waver.runs.train_loop import TrainingJob, embed_inputs, train_job
from waver.tools.lock import hold_lock
from waver.tools.progress import follow_run
from waver.tools.termination import sigterm_event
from waver.training.build import local_device

if TYPE_CHECKING:
    from ray.train import UserCallback

logger = logging.getLogger(__name__)


def run_training(
    config: ExperimentConfig, *, folder: Path | None = None, group: str = "", launch: Launch | None = None
) -> dict:
    """Trains an experiment whose videos are ingested, or resumes it; returns the result, as written to result.json.

    Trains in this process if that is possible, see `trains_in_process`. Otherwise it joins the Ray cluster of RAY_ADDRESS,
    or starts Ray on this machine. Holds the lock of the run folder.

    Args:
        config: configuration of the experiment.
        folder: run folder; by default config.run_folder.
        group: name shared by runs that differ only in their seed: one group in TensorBoard's HParams. Empty for none.
        launch: trains the run in another way, see `waver.runs.train.Launch`.

    Raises:
        StartError: with everything that prevents the training, before Ray starts.
        LockedError: if another process trains the run.
        WorkerError: if training on Ray fails for good; the newest checkpoint is kept.
        Terminated: if this process gets SIGTERM; a checkpoint was written, from which the same command resumes.
        WaverError: see `waver.runs.train.train`.
    """
    folder = folder or config.run_folder
    inputs = open_inputs(config, "train", run_folder=folder)
    assert inputs.captions is not None, "training cannot start without captions"
    assert inputs.store is not None, "training cannot start without clip store"
    if inputs.knowledge and inputs.knowledge.leaky:
        logger.info(LEAKY)
    launch = launch or (train_in_process if trains_in_process(config) else train_on_workers)
    with _hold_run(folder):
        return train(config, inputs.captions, inputs.store, inputs.knowledge, launch=launch, folder=folder, group=group)


def trains_in_process(config: ExperimentConfig) -> bool:
    """Returns whether a run needs no Ray: its one worker may run in this process, and has no loader processes."""
    return runs_in_process(config.resources) and config.resources.loaders_per_worker == 0


def train_in_process(job: TrainingJob, captions: pa.Table, num_steps: int) -> dict[str, float] | Interrupted:
    """Trains a run with one worker in this process; SIGTERM stops it after the current step."""
    job = embed_inputs(job, captions)
    with follow_run(job.run_folder, num_steps=num_steps), sigterm_event() as stop:
        return train_job(job, captions, device=local_device(job.config), next_command=stop_after(stop))


def train_on_workers(
    job: TrainingJob, captions: pa.Table, num_steps: int, *, callbacks: Sequence["UserCallback"] = ()
) -> dict[str, float] | Interrupted:
    """Trains a run on workers of Ray Train; SIGTERM to this process asks them to stop.

    Joins the Ray cluster of RAY_ADDRESS, or starts Ray on this machine.

    Args:
        job: the run.
        captions: its caption table.
        num_steps: optimizer steps of the whole run.
        callbacks: callbacks of Ray Train, called at each report.
    """
    import ray  # imported here, since a run in this process needs none of these modules

    from waver.on_ray.cluster.capacity import CPUS_PER_LOADER, local_cpus
    from waver.on_ray.cluster.connection import connect
    from waver.on_ray.cluster.signals import signal_actor, stop_on_sigterm
    from waver.on_ray.cluster.workers import run_on_workers
    from waver.on_ray.stages.embed import run_on_actors
    from waver.on_ray.stages.train_worker import WorkerArguments, train_on_ray_worker

    resources = job.config.resources
    with connect(num_cpus=local_cpus(job.config)) as description:
        logger.info(description)
        job = embed_inputs(job, captions, run=partial(run_on_actors, job.config))
        with follow_run(job.run_folder, num_steps=num_steps), signal_actor() as actor, stop_on_sigterm(actor):
            return run_on_workers(
                train_on_ray_worker,
                WorkerArguments(job, ray.put(captions), actor),
                resources,
                signals=actor,
                rescales=True,
                extra_cpus=resources.loaders_per_worker * CPUS_PER_LOADER,
                callbacks=callbacks,
            )


def _hold_run(folder: Path) -> AbstractContextManager[None]:
    """Holds the lock of a run folder, unless the run is finished and nothing is to be written."""
    if read_result(folder):
        return nullcontext()
    return hold_lock(folder, "training", instead="train under another name (--set name=...)")
