"""train_worker."""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.train
import torch
from ray.train.torch import get_device

from waver.config import ExperimentConfig
from waver.data.batch import Batch, read_ahead
from waver.data.clip_store import ClipStore
from waver.evaluation.evaluate import EvaluationOptions, evaluate
from waver.knowledge.store import Knowledge
from waver.on_ray.cluster.signals import ControlSignals
from waver.on_ray.cluster.workers import Rescale
from waver.on_ray.stages.loader import clip_stream
from waver.runs.checkpoint import CheckpointError, restore_training, save_checkpoint
from waver.runs.folder import checkpoint_name, keep_checkpoint, newest_checkpoint
from waver.runs.recording import NUM_TOP_ANSWERS, Recording
from waver.tools.memory import peak_rss
from waver.training import parallel
from waver.training.build import Training, build_training
from waver.training.plan import plan_epoch
from waver.training.step import make_batch, train_epoch


@dataclass(frozen=True)
class Job:
    """What a worker is handed."""

    config: ExperimentConfig
    captions: ray.ObjectRef
    """Caption table."""
    rows: np.ndarray
    """Of the captions that are trained on: found once, since an ingest may be at work."""
    store: Path
    knowledge: Path | None
    run_folder: Path
    group: str
    """Runs of one group differ in their seed alone; empty for none."""
    signals: Any = None
    """Actor through which workers hear that they are to stop, see `waver.on_ray.cluster.signals`; None where
    nobody would say."""


def worker_batches(
    plan: list[np.ndarray],
    captions: pa.Table,
    store: ClipStore,
    config: ExperimentConfig,
    knowledge: Knowledge | None = None,
) -> Iterator[Batch]:
    """This worker's share of each global batch, read from the clip store by Ray Data and joined with the captions."""
    rank, world_size = parallel.rank(), parallel.world_size()
    shares = [rows[parallel.shard(len(rows), rank, world_size)] for rows in plan]
    clip_ids = [captions["clip_id"].take(share).to_pylist() for share in shares]
    loaders = config.resources.loaders_per_worker
    clips = clip_stream(store, clip_ids, loaders=loaders) if loaders else read_ahead(store, clip_ids)
    for rows, share, frames in zip(plan, shares, clips, strict=True):
        assert len(share) == len(frames[1]), "a batch of the stream is a batch of the plan"
        yield make_batch(captions, share, frames, config, num_pairs=len(rows), knowledge=knowledge)


def _train_worker(job: Job) -> dict | Rescale:
    """Runs on every worker, from the last checkpoint to the last epoch."""
    return train_job(job, device=get_device(), report=ray.train.report)


def train_job(job: Job, *, device: torch.device, report: Callable[[dict[str, float]], Any]) -> dict | Rescale:
    """This worker's part of a run, from its newest checkpoint to the last epoch, or until it is to stop.

    Args:
        job: the run.
        device: of the model.
        report: is handed the validation metrics after each epoch, when its checkpoint is written.

    Returns:
        What result.json says of the workers; where the run is not finished, `stopped_at`, the step, or `Rescale`.

    Raises:
        CheckpointError: the newest checkpoint does not belong to this plan.
    """
    start = time.perf_counter()
    config, captions, store = job.config, ray.get(job.captions), ClipStore(job.store)
    knowledge = Knowledge(job.knowledge) if job.knowledge else None
    plans = [plan_epoch(config, captions, job.rows, epoch=epoch) for epoch in range(config.train.epochs)]
    steps = [batch for plan in plans for batch in plan]
    training = _begin_or_go_on(job, knowledge, steps, device)
    recording = None
    if parallel.rank() == 0:
        recording = Recording(job.run_folder, config, captions, store, knowledge, training, steps, group=job.group)
    batches = worker_batches(steps[training.step :], captions, store, config, knowledge)
    control = ControlSignals(job.signals, device) if job.signals else None
    with recording or nullcontext():
        for epoch in range(training.epoch, config.train.epochs):
            ends_at = sum(map(len, plans[: epoch + 1]))
            left = ends_at - training.step
            coming = islice(batches, left)
            for logs in train_epoch(training, recording.trace(coming, training, left) if recording else coming, config):
                if recording:
                    recording.after_step(training, logs)
                command = control.next_command() if control else "continue"
                every = config.checkpoint.every_steps
                # Who asks to stop while the epoch is evaluated may not wait for its end: the epoch is kept before.
                ends = control and training.step == ends_at
                if command != "continue" or ends or (every and training.step % every == 0):
                    _save(job, training, knowledge, checkpoint_name(epoch, training.step), recording)
                if command == "stop":
                    return {"stopped_at": training.step}
                if command == "rescale":
                    return Rescale()
            evaluation = evaluate(
                training.student,
                captions,
                store,
                config,
                split="validation",
                knowledge=knowledge,
                options=EvaluationOptions(
                    top_k=NUM_TOP_ANSWERS if config.tracking.images else 0, keep_video=config.tracking.images
                ),
            )
            if recording:
                recording.after_epoch(training, evaluation)
            _save(job, training, knowledge, checkpoint_name(training.epoch), recording)
            report(evaluation.metrics)
    return {
        "seconds": time.perf_counter() - start,  # without what was waited for room
        "peak_memory_bytes_of_worker": max(parallel.gather_objects(peak_rss())),
    }


def _begin_or_go_on(job: Job, knowledge: Knowledge | None, steps: list[np.ndarray], device: torch.device) -> Training:
    """Model and optimizer as the newest checkpoint that is whole left them, or as a run begins."""
    # The first worker looks, for all: on a network disk others may not see the newest yet.
    checkpoint = parallel.broadcast_object(newest_checkpoint(job.run_folder))
    training = build_training(
        job.config,
        num_steps=len(steps),
        device=device,
        phrases=knowledge.phrase_embeddings() if knowledge else None,
        pretrained=checkpoint is None,
    )
    if checkpoint:
        restore_training(checkpoint, training)
        planned = sum(map(len, steps[: training.step]))
        if training.rows != planned:
            raise CheckpointError(
                f"{checkpoint} has seen {training.rows} captions in {training.step} steps, and by this plan it would be "
                f"{planned}: it was trained on other captions, or in other batches; choose another name (--set name=...)"
            )
    return training


def _save(job: Job, training: Training, knowledge: Knowledge | None, name: str, recording: Recording | None) -> None:
    """Writes a checkpoint, with what was logged up to it. Every worker must call it; the first one writes."""
    part = job.run_folder / ".checkpoint.part"
    if recording:
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        recording.flush()  # a run that goes on from here finds its log complete up to here
    save_checkpoint(part, training, job.config, knowledge)
    if recording:
        keep_checkpoint(job.run_folder, part, name)
