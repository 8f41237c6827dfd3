"""One worker's part of a training run: reads its share of each batch, takes steps, evaluates, and writes checkpoints.

Evaluation, checkpoints and commands communicate between the workers: every worker must call them equally often.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from waver.config import ExperimentConfig
from waver.data.batch import Batch, ReadClips, read_ahead
from waver.data.clip_store import ClipStore
from waver.data.embedded_clips import EmbeddedClips, EmbeddingPaths
from waver.evaluation.evaluate import Evaluation, EvaluationOptions, evaluate
from waver.knowledge.control import Control
from waver.knowledge.soft_targets import FrozenEmbeddings
from waver.knowledge.store import Knowledge
from waver.runs.checkpoint import CheckpointError, restore_training, restore_weights
from waver.runs.checkpoint_saver import CheckpointSaver
from waver.runs.control import Command, Interrupted, NextCommand
from waver.runs.embeddings import RunBlocks, check_embeddings, embed_missing, run_in_process, training_needs
from waver.runs.folder import completed_epochs, newest_checkpoint
from waver.runs.recording import NUM_TOP_ANSWERS, Recording
from waver.runs.soft_targets import FrozenPaths, build_spaces, embed_for_teacher, open_teacher
from waver.tools.memory import peak_rss
from waver.training import parallel
from waver.training.build import Training, build_training
from waver.training.plan import plan_epoch
from waver.training.step import make_batch, train_epoch
from waver.training.zero_shot import zero_shot_config, zero_shot_student


@dataclass(frozen=True)
class TrainingJob:
    """Everything that a worker needs to know about a run, apart from the caption table."""

    config: ExperimentConfig
    rows: np.ndarray
    """Rows of the caption table that are trained on. Chosen once, since an ingest may add clips during the run."""
    store: Path
    knowledge: Path | None
    """Knowledge folder; None to train without."""
    run_folder: Path
    group: str
    """Name shared by runs that differ only in their seed; empty for none."""
    control: Control | None = None
    """Whose phrases clips get; None for their own."""
    embeddings: EmbeddingPaths = field(default_factory=EmbeddingPaths)
    """Folders of the embedding stores to read; by default pixels and words are read."""
    frozen: FrozenPaths | None = None
    """Folders of what frozen backbones make of what is trained on; None if no term of the loss reads them."""
    start_from: Path | None = None
    """Checkpoint from whose weights a new run starts; None for pre-trained or random weights."""

    @property
    def zero_shot(self) -> bool:
        """Whether to evaluate the backbone before the first step: pre-trained, and not in a sweep, whose trials share it."""
        pretrained = self.config.model.weights is not None and self.config.train.start_from is None
        return pretrained and not self.group


def embed_inputs(job: TrainingJob, captions: pa.Table, *, run: RunBlocks = run_in_process) -> TrainingJob:
    """Embeds what a run reads from embedding stores and is not stored yet; returns the job with the folders of the stores.

    Args:
        job: the run.
        captions: its caption table.
        run: processes the blocks of items, by default in this process.
    """
    store = ClipStore(job.store)
    needs = training_needs(job.config, captions, store, job.rows)
    newest = newest_checkpoint(job.run_folder)
    job = replace(job, embeddings=embed_missing(job.config, store, needs, checkpoint=newest, run=run))
    if not job.config.uses_teacher:
        return job
    return replace(job, frozen=embed_for_teacher(job.config, captions, store, job.rows, run=run))


def worker_batches(
    plan: list[np.ndarray],
    captions: pa.Table,
    store: ClipStore | EmbeddedClips,
    config: ExperimentConfig,
    knowledge: Knowledge | None = None,
    teacher: FrozenEmbeddings | None = None,
    *,
    read_clips: ReadClips = read_ahead,
) -> Iterator[Batch]:
    """Yields this worker's share of each global batch.

    Pixels are read ahead. Embeddings are read only when they are needed, since they usually lie in the page cache.

    Args:
        plan: rows of the caption table, for each global batch.
        captions: caption table.
        store: clip store, or embeddings of clips and captions (`EmbeddedClips`).
        config: configuration of the experiment.
        knowledge: phrases of the clips; None for none.
        teacher: the frozen teacher's embeddings; None if no term of the loss reads them.
        read_clips: reads pixels.
    """
    rank, world_size = parallel.rank(), parallel.world_size()
    shares = [rows[parallel.shard(len(rows), rank, world_size)] for rows in plan]
    clip_ids = [captions["clip_id"].take(share).to_pylist() for share in shares]
    embedded = store if isinstance(store, EmbeddedClips) else None
    clips = embedded.read_batches(clip_ids, read_clips) if embedded else read_clips(store, clip_ids)
    for rows, share, frames in zip(plan, shares, clips, strict=True):
        assert len(share) == len(frames[1]), "a batch that is read is a batch of the plan"
        tokens = None
        if embedded and embedded.tokens:
            tokens = embedded.read_tokens(captions["caption"].take(share).to_pylist(), config.text.max_words)
        yield make_batch(captions, share, frames, config, len(rows), knowledge, tokens, teacher)


def train_job(
    job: TrainingJob,
    captions: pa.Table,
    *,
    device: torch.device,
    next_command: NextCommand = lambda: "continue",
    read_clips: ReadClips = read_ahead,
    report: Callable[[dict[str, float]], Any] = lambda metrics: None,
) -> dict[str, float] | Interrupted:
    """Trains from the newest checkpoint to the last epoch, or until a command ends it.

    Args:
        job: the run.
        captions: its caption table.
        device: device of the model.
        next_command: called after each step.
        read_clips: reads the clips of the batches.
        report: called with the validation metrics after each epoch, once its checkpoint is written.

    Returns:
        Fields of result.json that the workers measure: seconds and peak_memory_bytes_of_worker. `Interrupted` if a command
        has ended the run; a checkpoint is written.

    Raises:
        CheckpointError: if the newest checkpoint was trained on other captions or batches.
        EmbeddingError: if embeddings were computed with other weights or settings.
        LockedError: if a checkpoint is due and the process that started the run has lost the lock of the run folder.
    """
    start = time.perf_counter()
    config, store = job.config, ClipStore(job.store)
    knowledge = Knowledge(job.knowledge, job.control) if job.knowledge else None
    plans = [plan_epoch(config, captions, job.rows, epoch=epoch) for epoch in range(config.train.epochs)]
    steps = [batch for plan in plans for batch in plan]
    training = _start_or_resume(job, knowledge, steps, device)
    teacher = _open_teacher(job, captions, store, knowledge, training)
    clips = job.embeddings.open(store)
    check_embeddings(config, training.student.backbone, clips)
    recording = None
    if parallel.rank() == 0:
        recording = Recording(job.run_folder, config, captions, store, knowledge, training, steps, group=job.group)
    batches = worker_batches(steps[training.step :], captions, clips, config, knowledge, teacher, read_clips=read_clips)
    saver = CheckpointSaver(job.run_folder, config, training, knowledge, recording)
    with recording or nullcontext():
        if job.zero_shot and training.step == 0:
            _evaluate_zero_shot(training, captions, clips, config, recording)
        for epoch in range(training.epoch, config.train.epochs):
            end_step = sum(map(len, plans[: epoch + 1]))
            command = _train_until(end_step, training, batches, config, recording, next_command, saver)
            if command in ("stop", "rescale"):
                return Interrupted(command, training.step)
            evaluation = _validate(training, captions, clips, config, knowledge)
            if recording:
                recording.after_epoch(training, evaluation)
            saver.save_epoch()
            report(evaluation.metrics)
    return {
        "seconds": time.perf_counter() - start,  # without the time spent waiting for capacity
        "peak_memory_bytes_of_worker": max(parallel.gather_objects(peak_rss())),
    }


def _open_teacher(
    job: TrainingJob, captions: pa.Table, store: ClipStore, knowledge: Knowledge | None, training: Training
) -> FrozenEmbeddings | None:
    """Opens the frozen teacher's embeddings, and builds the spaces of phrases if a term of the loss reads them."""
    if job.frozen is None:
        return None
    if knowledge and job.config.uses_soft_targets:
        spaces = build_spaces(job.config, captions, job.rows, knowledge, job.frozen, store)
        training.spaces = spaces.to(training.student.logit_scale.device)
    return open_teacher(job.config, job.frozen, store)


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


def _validate(
    training: Training,
    captions: pa.Table,
    clips: ClipStore | EmbeddedClips,
    config: ExperimentConfig,
    knowledge: Knowledge | None,
) -> Evaluation:
    """Evaluates the student on the validation split; also finds what the images of the run show, if there are any."""
    shown = EvaluationOptions(top_k=NUM_TOP_ANSWERS, keep_video=True) if config.tracking.images else EvaluationOptions()
    return evaluate(training.student, captions, clips, config, split="validation", knowledge=knowledge, options=shown)


def _train_until(
    end_step: int,
    training: Training,
    batches: Iterator[Batch],
    config: ExperimentConfig,
    recording: Recording | None,
    next_command: NextCommand,
    saver: CheckpointSaver,
) -> Command:
    """Trains to the end of an epoch, or until a command ends it. Saves a checkpoint wherever one is due.

    Args:
        end_step: optimizer step at which the epoch ends.
        training: state of the run.
        batches: batches of the remaining steps of the run.
        config: configuration of the experiment.
        recording: of rank 0; None on other workers.
        next_command: called after each step.
        saver: writes checkpoints.

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
        command = next_command()
        # Save before the evaluation: a request to stop that comes during it may not leave the time to finish it.
        ends = training.step == end_step
        if command != "continue" or ends or (every and training.step % every == 0):
            saver.save_step()
        if command in ("stop", "rescale"):
            return command
    return "continue"


def _start_or_resume(
    job: TrainingJob, knowledge: Knowledge | None, steps: list[np.ndarray], device: torch.device
) -> Training:
    """Builds model and optimizer, and restores them from the newest complete checkpoint, if there is one.

    A new run restores the weights alone, from the checkpoint that it starts from, if there is one.
    """
    # Rank 0 chooses the checkpoint for all: on a network disk, other workers may not see the newest one yet.
    checkpoint = parallel.broadcast_object(newest_checkpoint(job.run_folder))
    training = build_training(
        job.config,
        num_steps=len(steps),
        device=device,
        phrases=knowledge.phrase_embeddings() if knowledge else None,
        pretrained=checkpoint is None and job.start_from is None,
    )
    if checkpoint is None and job.start_from:
        restore_weights(job.start_from, training.student)
    if checkpoint:
        restore_training(checkpoint, training)
        training.epoch = completed_epochs(checkpoint)
        planned = sum(map(len, steps[: training.step]))
        if training.rows != planned:
            raise CheckpointError(
                f"{checkpoint} was trained on {training.rows} captions in {training.step} steps, but the plan of this run "
                f"has {planned}: captions or batches have changed. Choose another name (--set name=...)"
            )
    return training
