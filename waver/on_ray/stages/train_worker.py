"""One worker's part of a training run: reads its share of each batch, takes the steps, evaluates, writes checkpoints.

Evaluation, checkpoints and control signals communicate between the workers: every worker must call them equally often.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
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
from waver.data.embedded_clips import EmbeddedClips, EmbeddingPaths
from waver.evaluation.evaluate import EvaluationOptions, evaluate
from waver.knowledge.store import Knowledge
from waver.on_ray.cluster.signals import Command, ControlSignals
from waver.on_ray.cluster.workers import Rescale
from waver.on_ray.stages.loader import clip_stream
from waver.runs.checkpoint import CheckpointError, restore_training, save_checkpoint
from waver.runs.embeddings import check_embeddings
from waver.runs.folder import checkpoint_name, keep_checkpoint, newest_checkpoint
from waver.runs.recording import NUM_TOP_ANSWERS, Recording
from waver.tools.lock import check_lock, find_lock
from waver.tools.memory import peak_rss
from waver.training import parallel
from waver.training.build import Training, build_training
from waver.training.plan import plan_epoch
from waver.training.step import make_batch, train_epoch
from waver.training.zero_shot import zero_shot_config, zero_shot_student


@dataclass(frozen=True)
class TrainingJob:
    """Everything that a worker needs to know about a run."""

    config: ExperimentConfig
    captions: ray.ObjectRef
    """Caption table."""
    rows: np.ndarray
    """Rows of the caption table that are trained on. Chosen once, since an ingest may add clips during the run."""
    store: Path
    knowledge: Path | None
    """Knowledge folder; None to train without."""
    run_folder: Path
    group: str
    """Name shared by runs that differ only in their seed; empty for none."""
    signals: Any = None
    """Handle of the run's `SignalActor`, see `waver.on_ray.cluster.signals`; None if nothing can ask the run to stop."""

    embeddings: EmbeddingPaths = EmbeddingPaths()  # noqa: RUF009  frozen
    """What frozen towers made of frames and captions, read in place of these."""

    @property
    def zero_shot(self) -> bool:
        """Whether to evaluate the backbone before the first step: in a sweep, all trials would compute the same."""
        return self.config.model.weights is not None and not self.group


def worker_batches(
    plan: list[np.ndarray],
    captions: pa.Table,
    store: ClipStore | EmbeddedClips,
    config: ExperimentConfig,
    knowledge: Knowledge | None = None,
) -> Iterator[Batch]:
    """Yields this worker's share of each global batch, with pixels that are read ahead from the clip store.

    Embeddings are read when they are needed: they lie in memory, or in the page cache.

    Args:
        plan: rows of the caption table, for each global batch.
        captions: caption table.
        store: clip store, or what frozen towers make of clips and captions.
        config: configuration of the experiment. Ray Data reads if resources.loaders_per_worker > 0, otherwise a thread.
        knowledge: phrases of the clips; None for none.
    """
    rank, world_size = parallel.rank(), parallel.world_size()
    shares = [rows[parallel.shard(len(rows), rank, world_size)] for rows in plan]
    clip_ids = [captions["clip_id"].take(share).to_pylist() for share in shares]
    loaders = config.resources.loaders_per_worker
    embedded = store if isinstance(store, EmbeddedClips) else None
    if embedded and embedded.frames:
        clips = map(embedded.read, clip_ids)
    else:
        pixels = embedded.clips if embedded else store
        clips = clip_stream(pixels, clip_ids, loaders=loaders) if loaders else read_ahead(pixels, clip_ids)
    for rows, share, frames in zip(plan, shares, clips, strict=True):
        assert len(share) == len(frames[1]), "a batch of the stream is a batch of the plan"
        tokens = None
        if embedded and embedded.tokens:
            tokens = embedded.read_tokens(captions["caption"].take(share).to_pylist(), config.text.max_words)
        yield make_batch(captions, share, frames, config, len(rows), knowledge, tokens)


def train_on_ray_worker(job: TrainingJob) -> dict | Rescale:
    """Runs `train_job` on the device of a Ray Train worker, and reports to Ray Train."""
    return train_job(job, device=get_device(), report=ray.train.report)


def train_job(job: TrainingJob, *, device: torch.device, report: Callable[[dict[str, float]], Any]) -> dict | Rescale:
    """Trains from the newest checkpoint to the last epoch, or until a control signal ends it.

    Args:
        job: the run.
        device: device of the model.
        report: called with the validation metrics after each epoch, once its checkpoint is written.

    Returns:
        Fields of result.json that the workers measure: seconds and peak_memory_bytes_of_worker. If the run is asked to stop,
        `{"stopped_at": step}`; if it is asked to change the number of workers, `Rescale`. Both leave a checkpoint.

    Raises:
        CheckpointError: if the newest checkpoint was trained on other captions or batches.
        LockedError: if the process that started the run has lost the lock of the run folder, at the next checkpoint.
    """
    start = time.perf_counter()
    config, captions, store = job.config, ray.get(job.captions), ClipStore(job.store)
    knowledge = Knowledge(job.knowledge) if job.knowledge else None
    plans = [plan_epoch(config, captions, job.rows, epoch=epoch) for epoch in range(config.train.epochs)]
    steps = [batch for plan in plans for batch in plan]
    training = _start_or_resume(job, knowledge, steps, device)
    clips = job.embeddings.open(store)
    check_embeddings(config, training.student.backbone, clips)
    recording, lock = None, None
    if parallel.rank() == 0:
        lock = find_lock(job.run_folder)
        recording = Recording(job.run_folder, config, captions, store, knowledge, training, steps, group=job.group)
    batches = worker_batches(steps[training.step :], captions, clips, config, knowledge)
    control = ControlSignals(job.signals, device) if job.signals else None
    save = partial(_save, job, training, knowledge, recording, lock)
    with recording or nullcontext():
        if job.zero_shot and training.step == 0:
            _evaluate_zero_shot(training, captions, clips, config, recording)
        for epoch in range(training.epoch, config.train.epochs):
            end_step = sum(map(len, plans[: epoch + 1]))
            command = _train_until(end_step, training, batches, config, recording, control, save)
            if command == "stop":
                return {"stopped_at": training.step}
            if command == "rescale":
                return Rescale()
            images = config.tracking.images
            evaluation = evaluate(
                training.student,
                captions,
                clips,
                config,
                split="validation",
                knowledge=knowledge,
                options=EvaluationOptions(top_k=NUM_TOP_ANSWERS if images else 0, keep_video=images),
            )
            if recording:
                recording.after_epoch(training, evaluation)
            save(checkpoint_name(training.epoch))
            report(evaluation.metrics)
    return {
        "seconds": time.perf_counter() - start,  # without the time spent waiting for capacity
        "peak_memory_bytes_of_worker": max(parallel.gather_objects(peak_rss())),
    }


def _evaluate_zero_shot(
    training: Training,
    captions: pa.Table,
    store: ClipStore | EmbeddedClips,
    config: ExperimentConfig,
    recording: Recording | None,
) -> None:
    """Evaluates the backbone before training, unless an earlier attempt has done so. Every worker must call it."""
    if parallel.broadcast_object(recording is not None and recording.has_zero_shot):
        return
    # The same backbone object: the evaluation needs no second copy of the weights, and draws no random number.
    student = zero_shot_student(training.student)
    evaluation = evaluate(student, captions, store, zero_shot_config(config), split="validation")
    if recording:
        recording.before_training(evaluation)


def _train_until(
    end_step: int,
    training: Training,
    batches: Iterator[Batch],
    config: ExperimentConfig,
    recording: Recording | None,
    control: ControlSignals | None,
    save: Callable[[str], None],
) -> Command:
    """Trains to the end of an epoch, or until a control signal ends it. Saves a checkpoint wherever one is due.

    Args:
        end_step: optimizer step at which the epoch ends.
        training: state of the run.
        batches: batches of the remaining steps of the run.
        config: configuration of the experiment.
        recording: of rank 0; None on other workers.
        control: None if nothing can end the run early.
        save: writes a checkpoint of the given name.

    Returns:
        "stop" or "rescale" if requested, otherwise "continue".
    """
    num_left = end_step - training.step
    epoch_batches = islice(batches, num_left)
    if recording:
        epoch_batches = recording.trace(epoch_batches, training, num_left)
    every = config.checkpoint.every_steps
    for logs in train_epoch(training, epoch_batches, config):
        if recording:
            recording.after_step(training, logs)
        command = control.next_command() if control else "continue"
        # Save before the evaluation: a request to stop that comes during it may not leave the time to finish it.
        ends = control and training.step == end_step
        if command != "continue" or ends or (every and training.step % every == 0):
            save(checkpoint_name(training.epoch, training.step))
        if command in ("stop", "rescale"):
            return command
    return "continue"


def _start_or_resume(
    job: TrainingJob, knowledge: Knowledge | None, steps: list[np.ndarray], device: torch.device
) -> Training:
    """Builds model and optimizer, and restores them from the newest complete checkpoint, if there is one."""
    # Rank 0 chooses the checkpoint for all: on a network disk, other workers may not see the newest one yet.
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
                f"{checkpoint} was trained on {training.rows} captions in {training.step} steps, but the plan of this run "
                f"has {planned}: captions or batches have changed. Choose another name (--set name=...)"
            )
    return training


def _save(
    job: TrainingJob,
    training: Training,
    knowledge: Knowledge | None,
    recording: Recording | None,
    lock: Path | None,
    name: str,
) -> None:
    """Writes a checkpoint, and the logs up to its step. Every worker must call it; rank 0 writes."""
    if lock:
        check_lock(lock)
    part = job.run_folder / ".checkpoint.part"
    if recording:
        shutil.rmtree(part, ignore_errors=True)  # left by a process that was killed
        recording.flush()  # a run that resumes from this checkpoint needs the logs up to its step
    save_checkpoint(part, training, job.config, knowledge)
    if recording:
        keep_checkpoint(job.run_folder, part, name)
