"""Training with Ray Train: DDP workers fed by Ray Data, checkpoints, resuming."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.train
from ray.train import UserCallback

from waver.config import ExperimentConfig
from waver.data.annotations import validation_source
from waver.data.clip_store import ClipStore
from waver.evaluation.gallery import build_gallery
from waver.evaluation.protocols import Protocol
from waver.knowledge.store import Knowledge
from waver.on_ray.cluster.capacity import CPUS_PER_LOADER, local_cpus
from waver.on_ray.cluster.connection import connect
from waver.on_ray.cluster.signals import Terminated, signal_actor, stop_on_sigterm
from waver.on_ray.cluster.workers import run_on_workers
from waver.on_ray.stages.train_worker import Job, _train_worker
from waver.runs.checkpoint import checkpoint_knowledge
from waver.runs.folder import best_checkpoint, describe_checkpoint, newest_checkpoint, open_run, read_result
from waver.runs.inputs import LEAKY, load_captions, open_store, training_knowledge
from waver.runs.results import protocol_of_table
from waver.tools.files import write_json
from waver.tools.object_store import display_path
from waver.tools.progress import follow_run
from waver.training.build import build_student
from waver.training.plan import check_split, describe_data, plan_epoch, training_rows

logger = logging.getLogger(__name__)


def train(
    config: ExperimentConfig,
    captions: pa.Table,
    store: ClipStore,
    knowledge: Knowledge | None = None,
    *,
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
        folder: of the run; by default that of the configuration.
        group: runs of one group differ in their seed alone, and are one line in TensorBoard's HParams.
        callbacks: of Ray Train, told of each report.
        here: trains in this process, in place of workers that are started for it.

    Returns:
        What the run came to, as in its result.json.

    Raises:
        WorkerError: the run cannot go on; its last checkpoint is kept.
        Terminated: this process got SIGTERM; the run has written a checkpoint and goes on with the same command.
        WaverError: if the experiment cannot be trained as configured.
    """
    folder = folder or config.run_folder
    for split in ("train", "validation"):  # rather now than after the first epoch
        check_split(captions, store, split)
    rows = training_rows(captions, store)
    steps_per_epoch = len(plan_epoch(config, captions, rows, epoch=0))
    data = describe_data(captions.take(rows))
    open_run(folder, config, data)
    if result := read_result(folder):
        logger.info(
            f"{display_path(folder)} is finished ({result['epochs']} epochs). Evaluate it, or train again under another name"
        )
        return result
    if not here:
        build_student(config)  # what cannot be built is said here, not by the workers
    newest = newest_checkpoint(folder)
    if newest and knowledge:
        knowledge.check_same_dictionary(newest, checkpoint_knowledge(newest))
    what = f"continuing {config.name} after {describe_checkpoint(newest)}" if newest else f"training {config.name}"
    logger.info(
        f"{what}: {config.train.epochs} epochs of {steps_per_epoch} steps, {_describe_workers(config)}; "
        f"everything goes to {display_path(folder)}"
    )
    job = Job(config, ray.put(captions), rows, store.path, knowledge.path if knowledge else None, folder, group)
    if here:
        outcome = here(job)
    else:
        num_steps = config.train.epochs * steps_per_epoch
        with follow_run(folder, num_steps=num_steps), signal_actor() as actor, stop_on_sigterm(actor):
            outcome = run_on_workers(
                _train_worker,
                replace(job, signals=actor),
                config.resources,
                signals=actor,
                rescales=True,
                extra_cpus=config.resources.loaders_per_worker * CPUS_PER_LOADER,
                callbacks=callbacks,
            )
    if "stopped_at" in outcome:
        raise Terminated(
            f"stopped on request after step {outcome['stopped_at']}; a checkpoint is in {display_path(folder)}. "
            f"Run the same "
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
    validation = build_gallery(captions, "validation")
    return protocol_of_table(
        config,
        captions,
        "validation",
        captions_per_clip=validation.clip_of_text.bincount().tolist(),
        num_missing_clips=len(set(validation.clip_ids) - set(store.ok_clip_ids())),
        chosen_on="validation",
        leaky=leaky,
    )


def run_training(config: ExperimentConfig, **how: Any) -> dict:
    """Trains an experiment whose videos are ingested, or continues it. Returns what stands in its result.json.

    Args:
        config: of the experiment.
        how: other arguments of `train`.
    """
    captions = load_captions(config)
    store = open_store(config, captions)
    knowledge = training_knowledge(config, captions, store)
    if knowledge and knowledge.leaky:
        logger.info(LEAKY)
    with connect(num_cpus=local_cpus(config)) as where:
        logger.info(where)
        return train(config, captions, store, knowledge, **how)
