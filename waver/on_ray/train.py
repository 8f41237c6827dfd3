"""Training with Ray Train: DDP workers fed by Ray Data, checkpoints, resuming."""

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
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
from waver.checkpoint import learned_from, restore_training, save_checkpoint
from waver.clip_store import ClipStore
from waver.config import ExperimentConfig
from waver.engine import Training, build_student, build_training, make_batch, train_epoch
from waver.epochs import epoch_batches
from waver.evaluation import evaluate, gallery, read_ahead
from waver.files import write_json
from waver.knowledge import Knowledge
from waver.on_ray.evaluate import protocol_of_table
from waver.on_ray.progress import follow
from waver.on_ray.stream import CPUS_PER_LOADER, clip_stream
from waver.on_ray.workers import run_on_workers
from waver.protocols import Protocol
from waver.recording import LOOKED_AT, Recording, peak_memory
from waver.run import (
    SELECTION_METRIC,
    best_checkpoint,
    checkpoint_name,
    checkpoints,
    finished,
    open_run,
)

Report = Callable[[Training, dict[str, float]], None]
"""Is handed what was learned, and the validation metrics, after each epoch."""


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
        say(f"{folder} is finished ({result['epochs']} epochs). Evaluate it, or train again under another name")
        return result
    if not here:
        build_student(config)  # what cannot be built is said here, not by the workers
    done, newest = max(checkpoints(folder).items(), default=(0, None))
    if newest and knowledge:
        knowledge.check_taught(newest, learned_from(newest))
    what = f"continuing {config.name} after epoch {done}" if done else f"training {config.name}"
    say(
        f"{what}: {config.train.epochs} epochs of {steps_per_epoch} steps, {config.resources.workers} workers; "
        f"everything goes to {folder}"
    )
    start = time.perf_counter()
    job = Job(config, ray.put(captions), rows, store.path, knowledge.path if knowledge else None, folder, group)
    if here:
        outcome = here(job)
    else:
        with follow(folder, num_steps=config.train.epochs * steps_per_epoch, say=say):
            outcome = run_on_workers(
                _train_worker,
                job,
                config.resources,
                name=folder.name,
                storage=folder.parent,
                extra_cpus=config.resources.loaders_per_worker * CPUS_PER_LOADER,
                selection_metric=SELECTION_METRIC,
                callbacks=callbacks,
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
        "seconds": time.perf_counter() - start,
        **outcome,
    }
    write_json(folder / "result.json", result)
    return result


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
            f"none of the {len(clips)} clips of the {split} split has frames: see the ledger in {store.path}"
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
    loaders, labels = config.resources.loaders_per_worker, config.resources.node_labels
    clips = clip_stream(store, clip_ids, loaders=loaders, labels=labels) if loaders else read_ahead(store, clip_ids)
    for rows, share, frames in zip(plan, shares, clips, strict=True):
        assert len(share) == len(frames[1]), "a batch of the stream is a batch of the plan"
        yield make_batch(captions, share, frames, config, num_pairs=len(rows), knowledge=knowledge)


def _train_worker(job: Job) -> dict:
    """Runs on every worker, from the last checkpoint to the last epoch."""
    knowledge = Knowledge(job.knowledge) if job.knowledge else None

    def report(training: Training, metrics: dict[str, float]) -> None:
        _report(training, job.config, knowledge, metrics)

    return train_job(job, device=get_device(), report=report)


def train_job(job: Job, *, device: torch.device, report: Report) -> dict:
    """This worker's part of a run, from its newest checkpoint to the last epoch.

    Args:
        job: the run.
        device: of the model.
        report: is called after each epoch.

    Returns:
        What result.json says of the workers.
    """
    config, captions, rows, store = job.config, ray.get(job.captions), job.rows, ClipStore(job.store)
    knowledge = Knowledge(job.knowledge) if job.knowledge else None
    plans = [plan_epoch(config, captions, rows, epoch=epoch) for epoch in range(config.train.epochs)]
    # The newest that is whole, rather than what Ray's own notes say: a disk that filled up may have damaged both.
    checkpoint = parallel.broadcast_object(max(checkpoints(job.run_folder).items(), default=(0, None)))[1]
    training = build_training(
        config,
        num_steps=sum(map(len, plans)),
        device=device,
        phrases=knowledge.phrase_embeddings() if knowledge else None,
        pretrained=checkpoint is None,
    )
    if checkpoint:
        restore_training(checkpoint, training)
    recording = None
    if parallel.rank() == 0:
        steps = [batch for plan in plans for batch in plan]
        recording = Recording(job.run_folder, config, captions, store, knowledge, training, steps, group=job.group)
    plans = plans[training.epoch :]
    batches = worker_batches([batch for plan in plans for batch in plan], captions, store, config, knowledge)
    with recording or nullcontext():
        for plan in plans:
            coming = islice(batches, len(plan))
            for logs in train_epoch(
                training, recording.watch(coming, training, len(plan)) if recording else coming, config
            ):
                if recording:
                    recording.after_step(training, logs)
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
            report(training, evaluation.metrics)
    return {
        "peak_memory_bytes_of_worker": max(parallel.gather_objects(peak_memory())),
    }


def _report(
    training: Training, config: ExperimentConfig, knowledge: Knowledge | None, metrics: dict[str, float]
) -> None:
    """Hands a checkpoint to Ray Train, which copies it to the run's folder and drops those no longer needed."""
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), training, config, knowledge)
        ray.train.report(
            metrics,
            checkpoint=ray.train.Checkpoint.from_directory(folder) if parallel.rank() == 0 else None,
            checkpoint_dir_name=checkpoint_name(training.epoch),
        )
