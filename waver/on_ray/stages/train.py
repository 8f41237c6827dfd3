"""Trains an experiment with Ray Train: DDP workers fed by Ray Data, with checkpoints from which a run resumes."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.train
from ray.train import UserCallback

from waver.config import ExperimentConfig
from waver.data.annotations import validation_source
from waver.data.clip_store import ClipStore
from waver.evaluation.confidence import find_small_validation
from waver.evaluation.gallery import build_gallery
from waver.evaluation.protocols import Protocol, identify_protocol
from waver.knowledge.store import Knowledge
from waver.model.pretrained.weights import weights_text
from waver.model.tokenizer import Truncation
from waver.on_ray.cluster.capacity import CPUS_PER_LOADER, local_cpus
from waver.on_ray.cluster.connection import connect
from waver.on_ray.cluster.signals import Terminated, signal_actor, stop_on_sigterm
from waver.on_ray.cluster.workers import run_on_workers
from waver.on_ray.stages.start import open_inputs
from waver.on_ray.stages.train_worker import TrainingJob, train_on_ray_worker
from waver.runs.checkpoint import checkpoint_knowledge, stored_activation
from waver.runs.folder import (
    best_checkpoint,
    changed_data,
    describe_checkpoint,
    newest_checkpoint,
    open_run,
    read_result,
    rivals_of_best,
    zero_shot_metrics,
)
from waver.runs.inputs import LEAKY
from waver.runs.results import evaluated_split
from waver.runs.tracking import read_metrics
from waver.tools.files import write_json
from waver.tools.lock import hold_lock
from waver.tools.names import counted
from waver.tools.object_store import display_path
from waver.tools.progress import follow_run
from waver.training.plan import (
    batch_size_of,
    check_split,
    describe_data,
    describe_lowered_batch,
    measure_truncations,
    plan_epoch,
    training_rows,
)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _RunPlan:
    """Training data and number of optimizer steps of a run."""

    rows: np.ndarray
    """Rows of the caption table that are trained on."""
    batch_size: int
    """Largest number of pairs in a batch; less than configured if there are fewer clips."""
    steps_per_epoch: int
    num_steps: int
    data: dict[str, Any]
    """Counts and hashes of the data, see `describe_data`."""
    truncations: dict[str, Truncation]
    """Split -> captions that are longer than the model reads, of train and validation."""


def train(
    config: ExperimentConfig,
    captions: pa.Table,
    store: ClipStore,
    knowledge: Knowledge | None = None,
    *,
    folder: Path | None = None,
    group: str = "",
    callbacks: Sequence[UserCallback] = (),
    local_worker: Callable[[TrainingJob], dict] | None = None,
) -> dict:
    """Trains an experiment on the connected Ray cluster, or resumes it from its newest checkpoint.

    Args:
        config: configuration of the experiment.
        captions: its caption table.
        store: its clip store.
        knowledge: phrases of the clips, required if config.uses_knowledge.
        folder: run folder; by default config.run_folder.
        group: name shared by runs that differ only in their seed: one group in TensorBoard's HParams. Empty for none.
        callbacks: callbacks of Ray Train, called at each report.
        local_worker: trains in this process, instead of workers started by Ray Train.

    Returns:
        The result of the run, as written to result.json.

    Raises:
        WorkerError: if training fails for good; the newest checkpoint is kept.
        Terminated: if this process gets SIGTERM; a checkpoint was written, from which the same command resumes.
        WaverError: if the experiment cannot be trained as configured.
    """
    folder = folder or config.run_folder
    plan = _plan_run(config, captions, store)
    open_run(folder, config, plan.data)
    if result := read_result(folder):
        _log_finished(folder, result, plan)
        return result
    _log_warnings(config, captions, plan)
    newest = newest_checkpoint(folder)
    if newest and knowledge:
        knowledge.check_same_dictionary(newest, checkpoint_knowledge(newest))
    logger.info(_start_text(config, folder, plan, newest))
    if newest:
        logger.info(f"the activation of the backbone is {stored_activation(newest)}")
    elif config.model.weights:
        logger.info(weights_text(config.model.backbone, config.model.weights))
    knowledge_path = knowledge.path if knowledge else None
    job = TrainingJob(config, ray.put(captions), plan.rows, store.path, knowledge_path, folder, group)
    outcome = local_worker(job) if local_worker else _train_on_workers(job, plan.num_steps, callbacks)
    if "stopped_at" in outcome:
        raise Terminated(
            f"stopped on request after step {outcome['stopped_at']}; a checkpoint is in {display_path(folder)}. "
            "Run the same command again to resume from it"
        )
    result = _run_result(config, captions, store, knowledge, folder, plan) | outcome
    write_json(folder / "result.json", result)
    return result


def _log_warnings(config: ExperimentConfig, captions: pa.Table, plan: _RunPlan) -> None:
    """Warns of a small validation split, a lowered batch and cut captions."""
    if small := find_small_validation(captions):
        logger.warning("; ".join(small))
    if lowered := describe_lowered_batch(config, plan.data["num_train_clips"]):
        logger.warning(lowered)
    for split, truncation in plan.truncations.items():
        if truncation.num_cut:
            logger.warning(f"{split}: {truncation.describe(config.text.max_words)}")


def _plan_run(config: ExperimentConfig, captions: pa.Table, store: ClipStore) -> _RunPlan:
    """Checks the splits and plans the steps of a run.

    Raises:
        SplitError: if train or validation cannot be used.
        BatchSizeError: if there are too few training clips for a batch or for the workers.
    """
    for split in ("train", "validation"):  # a missing validation split must not first show after an epoch
        check_split(captions, store, split)
    rows = training_rows(captions, store)
    data = describe_data(captions, rows, store)
    batch_size = batch_size_of(config, data["num_train_clips"])
    steps_per_epoch = len(plan_epoch(config, captions, rows, epoch=0))
    return _RunPlan(
        rows,
        batch_size,
        steps_per_epoch,
        config.train.epochs * steps_per_epoch,
        data,
        measure_truncations(config, captions, ("train", "validation")),
    )


def _log_finished(folder: Path, result: dict[str, Any], plan: _RunPlan) -> None:
    """Says that a run is finished, and whether its data has changed since."""
    logger.info(
        f"{display_path(folder)} is finished ({result['epochs']} epochs). Evaluate it, or train again under another name"
    )
    if changes := changed_data(folder, plan.data):
        logger.warning(
            f"captions or videos have changed since {display_path(folder)} was trained ({changes}): its model and metrics "
            "are of the old ones. To train on the new ones, choose another name (--set name=...)"
        )


def _start_text(config: ExperimentConfig, folder: Path, plan: _RunPlan, newest: Path | None) -> str:
    what = f"continuing {config.name} after {describe_checkpoint(newest)}" if newest else f"training {config.name}"
    least, most = config.resources.min_workers, config.resources.max_workers
    workers = counted(most, "worker") if least == most else f"{least} to {most} workers"
    epochs, steps = counted(config.train.epochs, "epoch"), counted(plan.steps_per_epoch, "step")
    return f"{what}: {epochs} of {steps}, {workers}; the run folder is {display_path(folder)}"


def _train_on_workers(job: TrainingJob, num_steps: int, callbacks: Sequence[UserCallback]) -> dict:
    """Trains on Ray Train workers, which SIGTERM asks to stop; returns the outcome of `train_job`."""
    resources = job.config.resources
    with follow_run(job.run_folder, num_steps=num_steps), signal_actor() as actor, stop_on_sigterm(actor):
        return run_on_workers(
            train_on_ray_worker,
            replace(job, signals=actor),
            resources,
            signals=actor,
            rescales=True,
            extra_cpus=resources.loaders_per_worker * CPUS_PER_LOADER,
            callbacks=callbacks,
        )


def _run_result(
    config: ExperimentConfig,
    captions: pa.Table,
    store: ClipStore,
    knowledge: Knowledge | None,
    folder: Path,
    plan: _RunPlan,
) -> dict[str, Any]:
    """Returns the content of result.json, without what the workers measured."""
    checkpoint, metrics = best_checkpoint(folder)
    leaky = bool(knowledge and knowledge.leaky)
    return {
        "protocol": _validation_protocol(config, captions, store, leaky=leaky).as_json(),
        "epochs": config.train.epochs,
        "steps": plan.num_steps,
        "global_batch_size": plan.batch_size,
        "best_checkpoint": checkpoint.name,
        "validation": metrics,
        "zero_shot": zero_shot_metrics(folder),
        "rivals": rivals_of_best([row for row in read_metrics(folder) if row.get("split") == "validation"]),
        "validation_split": validation_source(captions),
        "data": plan.data,
        "cut_captions": {split: asdict(truncation) for split, truncation in plan.truncations.items()},
        "knowledge": {
            "at_inference": config.informed_at_inference,
            "learned_from": knowledge.summary() if knowledge else None,
        },
        "leaky": leaky,
        "config": config.digest(),
    }


def _validation_protocol(config: ExperimentConfig, captions: pa.Table, store: ClipStore, *, leaky: bool) -> Protocol:
    """Identifies the protocol of the validation metrics by which the best checkpoint was chosen."""
    validation = build_gallery(captions, "validation")
    evaluated = evaluated_split(
        config,
        captions,
        "validation",
        captions_per_clip=validation.clip_of_text.bincount().tolist(),
        num_missing_clips=len(set(validation.clip_ids) - set(store.ok_clip_ids())),
        chosen_on="validation",
        leaky=leaky,
    )
    return identify_protocol(evaluated)


def run_training(config: ExperimentConfig, **options: Any) -> dict:
    """Trains an experiment whose videos are ingested, or resumes it; returns the result, as written to result.json.

    Joins the Ray cluster of RAY_ADDRESS, or starts Ray on this machine. Holds the lock of the run folder.

    Args:
        config: configuration of the experiment.
        options: keyword arguments of `train`.

    Raises:
        StartError: with everything that prevents the training, before Ray starts.
        LockedError: if another process trains the run.
        WaverError: see `train`.
    """
    folder = options.get("folder") or config.run_folder
    inputs = open_inputs(config, "train", run_folder=folder)
    assert inputs.captions is not None, "training cannot start without captions"
    assert inputs.store is not None, "training cannot start without clip store"
    if inputs.knowledge and inputs.knowledge.leaky:
        logger.info(LEAKY)
    with _hold_run(folder), connect(num_cpus=local_cpus(config)) as description:
        logger.info(description)
        return train(config, inputs.captions, inputs.store, inputs.knowledge, **options)


def _hold_run(folder: Path) -> AbstractContextManager[None]:
    """Holds the lock of a run folder, unless the run is finished and nothing is to be written."""
    if read_result(folder):
        return nullcontext()
    return hold_lock(folder, "training", instead="train under another name (--set name=...)")
