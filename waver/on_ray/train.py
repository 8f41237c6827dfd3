"""Training with Ray Train: DDP workers fed by Ray Data, checkpoints, resuming."""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
import ray.train
import torch
from ray.train import UserCallback
from ray.train.torch import get_device

from waver import parallel
from waver.annotations import validation_source
from waver.batch import Batch
from waver.checkpoint import CheckpointError, learned_from, restore_training, save_checkpoint
from waver.clip_store import ClipStore
from waver.config import ExperimentConfig
from waver.engine import Training, build_student, build_training, make_batch, train_epoch
from waver.epochs import epoch_batches
from waver.evaluation import evaluate, gallery, read_ahead
from waver.files import write_json
from waver.knowledge import Knowledge
from waver.objects import shown
from waver.on_ray.evaluate import protocol_of_table
from waver.on_ray.progress import follow
from waver.on_ray.signals import Orders, Terminated, signals, stop_on_sigterm
from waver.on_ray.stream import CPUS_PER_LOADER, clip_stream
from waver.on_ray.workers import Regroup, run_on_workers
from waver.protocols import Protocol
from waver.recording import LOOKED_AT, Recording, peak_memory
from waver.run import (
    best_checkpoint,
    checkpoint_name,
    describe_checkpoint,
    finished,
    keep_checkpoint,
    newest_checkpoint,
    open_run,
)


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
    """Actor through which workers hear that they are to stop, see `waver.on_ray.signals`; None where nobody would say."""


def train(
    config: ExperimentConfig,
    captions: pa.Table,
    store: ClipStore,
    knowledge: Knowledge | None = None,
    *,
    say: Callable[[str], None],
    folder: Path | None = None,
    group: str = "",
    callbacks: Sequence[UserCallback] = (),
    here: Callable[[Job], dict] | None = None,
) -> dict:
    """Trains an experiment, or continues it where its last checkpoint was, on the connected Ray cluster.

    Args:
        config: of the experiment.
        captions: its caption table.
        store: its clips.
        knowledge: of the clips, where config.uses_knowledge.
        say: is told, in sentences, what is going on.
        folder: of the run; by default that of the configuration.
        group: runs of one group differ in their seed alone, and are one line in TensorBoard's HParams.
        callbacks: of Ray Train, told of each report.
        here: trains in this process, in place of workers that are started for it.

    Returns:
        What the run came to, as in its result.json.

    Raises:
        WorkerError: the run cannot go on; its last checkpoint is kept.
        Terminated: this process got SIGTERM; the run has written a checkpoint and goes on with the same command.
        ValueError: what was asked cannot be run at all.
    """
    folder = folder or config.run_folder
    for split in ("train", "validation"):  # rather now than after the first epoch
        check_split(captions, store, split)
    rows = training_rows(captions, store)
    steps_per_epoch = len(plan_epoch(config, captions, rows, epoch=0))
    data = describe_data(captions.take(rows))
    open_run(folder, config, data)
    if result := finished(folder):
        say(f"{shown(folder)} is finished ({result['epochs']} epochs). Evaluate it, or train again under another name")
        return result
    if not here:
        build_student(config)  # what cannot be built is said here, not by the workers
    newest = newest_checkpoint(folder)
    if newest and knowledge:
        knowledge.check_taught(newest, learned_from(newest))
    what = f"continuing {config.name} after {describe_checkpoint(newest)}" if newest else f"training {config.name}"
    say(
        f"{what}: {config.train.epochs} epochs of {steps_per_epoch} steps, {_describe_workers(config)}; "
        f"everything goes to {shown(folder)}"
    )
    job = Job(config, ray.put(captions), rows, store.path, knowledge.path if knowledge else None, folder, group)
    if here:
        outcome = here(job)
    else:
        num_steps = config.train.epochs * steps_per_epoch
        with follow(folder, num_steps=num_steps, say=say), signals() as actor, stop_on_sigterm(actor):
            outcome = run_on_workers(
                _train_worker,
                replace(job, signals=actor),
                config.resources,
                signals=actor,
                say=say,
                regroups=True,
                extra_cpus=config.resources.loaders_per_worker * CPUS_PER_LOADER,
                callbacks=callbacks,
            )
    if "stopped_at" in outcome:
        raise Terminated(
            f"stopped, as asked, after step {outcome['stopped_at']}; a checkpoint is in {shown(folder)}. Run the same "
            "command again to go on from there"
        )
    checkpoint, metrics = best_checkpoint(folder)
    leaky = bool(knowledge and knowledge.leaky)
    result = {
        "protocol": _protocol_of_validation(config, captions, store, leaky=leaky).as_json(),
        "epochs": config.train.epochs,
        "steps": config.train.epochs * steps_per_epoch,
        "best_checkpoint": checkpoint.name,
        "validation": metrics,
        "validation_split": validation_source(captions),
        "data": data,
        "knowledge": {
            "at_inference": config.informed_at_inference,
            "learned_from": knowledge.summary() if knowledge else None,
        },
        "leaky": leaky,
        "config": config.digest(),
        **outcome,
    }
    write_json(folder / "result.json", result)
    return result


def _describe_workers(config: ExperimentConfig) -> str:
    least, most = config.resources.min_workers, config.resources.max_workers
    return f"{least} workers" if least == most else f"{least} to {most} workers"


def _protocol_of_validation(config: ExperimentConfig, captions: pa.Table, store: ClipStore, *, leaky: bool) -> Protocol:
    """Of the figures by which the best checkpoint was found."""
    validation = gallery(captions, "validation")
    return protocol_of_table(
        config,
        captions,
        "validation",
        captions_per_clip=validation.clip_of_text.bincount().tolist(),
        num_missing_clips=len(set(validation.clip_ids) - set(store.ok_clip_ids())),
        chosen_on="validation",
        leaky=leaky,
    )


def training_rows(captions: pa.Table, store: ClipStore) -> np.ndarray:
    """Rows of the caption table that can be trained on: of the train split, with frames; captions of a clip adjacent."""
    train = pc.equal(captions["split"], "train")
    decoded = pc.is_in(captions["clip_id"], value_set=pa.array(store.ok_clip_ids(), pa.string()))
    rows = np.flatnonzero(pc.and_(train, decoded).to_numpy())
    clip_ids = captions["clip_id"].take(rows).to_numpy()
    return rows[np.argsort(clip_ids, kind="stable")]


def describe_data(captions: pa.Table) -> dict[str, Any]:
    """What is trained on: counts, and a hash of clips and captions in their order, on which the plan of a run rests."""
    columns = (captions["clip_id"].to_pylist(), captions["caption"].to_pylist())
    return {
        "num_train_clips": len(set(columns[0])),
        "num_train_captions": len(captions),
        "digest": hashlib.sha256(json.dumps(columns).encode()).hexdigest()[:16],
    }


def check_split(captions: pa.Table, store: ClipStore, split: str) -> None:
    """Raises ValueError where nothing could be learned from a split, or nothing chosen by it."""
    clips = pc.unique(captions["clip_id"].filter(pc.equal(captions["split"], split)))
    if len(clips) == 0:
        raise ValueError(f"the {split} split has no captions")
    if not pc.any(pc.is_in(clips, value_set=pa.array(store.ok_clip_ids(), pa.string()))).as_py():
        raise ValueError(
            f"none of the {len(clips)} clips of the {split} split has frames: see the ledger in {shown(store.path)}"
        )


def plan_epoch(config: ExperimentConfig, captions: pa.Table, rows: np.ndarray, *, epoch: int) -> list[np.ndarray]:
    """Rows of the caption table for each global batch of an epoch."""
    _, clip_of_caption = np.unique(captions["clip_id"].take(rows).to_numpy(), return_inverse=True)
    batches = epoch_batches(
        clip_of_caption,
        epoch=epoch,
        seed=config.seed,
        global_batch_size=config.train.global_batch_size,
        captions_per_clip=config.train.captions_per_clip,
    )
    return [rows[batch] for batch in batches]


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


def _train_worker(job: Job) -> dict | Regroup:
    """Runs on every worker, from the last checkpoint to the last epoch."""
    return train_job(job, device=get_device(), report=ray.train.report)


def train_job(job: Job, *, device: torch.device, report: Callable[[dict[str, float]], Any]) -> dict | Regroup:
    """This worker's part of a run, from its newest checkpoint to the last epoch, or until it is to stop.

    Args:
        job: the run.
        device: of the model.
        report: is handed the validation metrics after each epoch, when its checkpoint is written.

    Returns:
        What result.json says of the workers; where the run is not finished, `stopped_at`, the step, or `Regroup`.

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
    orders = Orders(job.signals, device) if job.signals else None
    with recording or nullcontext():
        for epoch in range(training.epoch, config.train.epochs):
            ends_at = sum(map(len, plans[: epoch + 1]))
            left = ends_at - training.step
            coming = islice(batches, left)
            for logs in train_epoch(training, recording.watch(coming, training, left) if recording else coming, config):
                if recording:
                    recording.after_step(training, logs)
                order = orders.next() if orders else "go on"
                every = config.checkpoint.every_steps
                # Who asks to stop while the epoch is evaluated may not wait for its end: the epoch is kept before.
                ends = orders and training.step == ends_at
                if order != "go on" or ends or (every and training.step % every == 0):
                    _save(job, training, knowledge, checkpoint_name(epoch, training.step), recording)
                if order == "stop":
                    return {"stopped_at": training.step}
                if order == "regroup":
                    return Regroup()
            evaluation = evaluate(
                training.student,
                captions,
                store,
                config,
                split="validation",
                knowledge=knowledge,
                top_k=LOOKED_AT if config.tracking.images else 0,
                keep_video=config.tracking.images,
            )
            if recording:
                recording.after_epoch(training, evaluation)
            _save(job, training, knowledge, checkpoint_name(training.epoch), recording)
            report(evaluation.metrics)
    return {
        "seconds": time.perf_counter() - start,  # without what was waited for room
        "peak_memory_bytes_of_worker": max(parallel.gather_objects(peak_memory())),
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
