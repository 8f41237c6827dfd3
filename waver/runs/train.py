"""One training run: plans it, launches it from its newest checkpoint, and writes its result."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from waver.config import ExperimentConfig
from waver.data.annotations import validation_source
from waver.data.annotations.captions import describe_left_out
from waver.data.clip_store import ClipStore
from waver.evaluation.confidence import find_small_validation
from waver.evaluation.gallery import build_gallery
from waver.evaluation.protocols import Protocol, identify_protocol
from waver.knowledge.store import Knowledge
from waver.model.pretrained.weights import weights_text
from waver.model.tokenizer import Truncation
from waver.runs.checkpoint import checkpoint_knowledge, stored_activation
from waver.runs.control import Interrupted
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
from waver.runs.results import evaluated_split
from waver.runs.start import find_start, read_start, record_start
from waver.runs.tracking import read_metrics
from waver.runs.train_loop import TrainingJob
from waver.tools.files import write_json
from waver.tools.names import counted
from waver.tools.object_store import display_path
from waver.tools.termination import Terminated
from waver.training.plan import (
    batch_size_of,
    captions_of_clips,
    check_split,
    count_shared_captions,
    describe_data,
    describe_lowered_batch,
    describe_shared_captions,
    measure_truncations,
    plan_epoch,
    training_rows,
)

logger = logging.getLogger(__name__)


Launch = Callable[[TrainingJob, pa.Table, int], dict[str, float] | Interrupted]
"""Trains a run, in this process or on workers: (job, caption table, optimizer steps of the whole run) -> what
`waver.runs.train_loop.train_job` returns."""


@dataclass(frozen=True)
class RunPlan:
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
    num_shared_captions: int
    """Training captions that stand on more than one clip."""


def train(
    config: ExperimentConfig,
    captions: pa.Table,
    store: ClipStore,
    knowledge: Knowledge | None = None,
    *,
    launch: Launch,
    folder: Path | None = None,
    group: str = "",
) -> dict:
    """Trains an experiment, or resumes it from its newest checkpoint.

    Args:
        config: configuration of the experiment.
        captions: its caption table.
        store: its clip store.
        knowledge: phrases of the clips, required if config.uses_knowledge.
        launch: trains the run.
        folder: run folder; by default config.run_folder.
        group: name shared by runs that differ only in their seed: one group in TensorBoard's HParams. Empty for none.

    Returns:
        The result of the run, as written to result.json.

    Raises:
        Terminated: if the run was asked to stop; a checkpoint was written, from which it resumes.
        WaverError: if the experiment cannot be trained as configured.
    """
    folder = folder or config.run_folder
    plan = plan_run(config, captions, store)
    open_run(folder, config, plan.data)
    if result := read_result(folder):
        _log_finished(folder, result, plan)
        return result
    _log_warnings(config, captions, plan)
    newest = newest_checkpoint(folder)
    if newest and knowledge:
        knowledge.check_same_dictionary(newest, checkpoint_knowledge(newest))
    start = None if newest else find_start(config, knowledge)
    logger.info(_start_text(config, folder, plan, newest))
    if newest:
        logger.info(f"the activation of the backbone is {stored_activation(newest)}")
    elif start:
        record_start(folder, start)
    elif config.model.weights:
        logger.info(weights_text(config.model.backbone, config.model.weights))
    knowledge_path, control = (knowledge.path, knowledge.control) if knowledge else (None, None)
    job = TrainingJob(config, plan.rows, store.path, knowledge_path, folder, group, control, start_from=start)
    outcome = launch(job, captions, plan.num_steps)
    if isinstance(outcome, Interrupted):
        raise Terminated(
            f"stopped on request after step {outcome.step}; a checkpoint is in {display_path(folder)}. "
            "Run the same command again to resume from it"
        )
    result = _run_result(config, captions, store, knowledge, folder, plan) | outcome
    write_json(folder / "result.json", result)
    return result


def _log_warnings(config: ExperimentConfig, captions: pa.Table, plan: RunPlan) -> None:
    """Warns of a small validation split, a lowered batch and cut captions.

    Counts captions that several clips share, and says which clips are left out by style.
    """
    if left_out := describe_left_out(captions):
        logger.info(left_out)
    if small := find_small_validation(captions):
        logger.warning("; ".join(small))
    if lowered := describe_lowered_batch(config, captions_of_clips(captions, plan.rows)):
        logger.warning(lowered)
    for split, truncation in plan.truncations.items():
        if truncation.num_cut:
            logger.warning(f"{split}: {truncation.describe(config.text.max_words)}")
    if shared := describe_shared_captions(config, plan.num_shared_captions, plan.data["num_train_captions"]):
        logger.info(shared)


def plan_run(config: ExperimentConfig, captions: pa.Table, store: ClipStore) -> RunPlan:
    """Checks the splits and plans the steps of a run.

    Raises:
        SplitError: if train or validation cannot be used.
        BatchSizeError: if there are too few training clips for a batch or for the workers.
    """
    for split in ("train", "validation"):  # a missing validation split must not first show after an epoch
        check_split(captions, store, split)
    rows = training_rows(captions, store)
    data = describe_data(captions, rows, store)
    batch_size = batch_size_of(config, captions_of_clips(captions, rows))
    steps_per_epoch = len(plan_epoch(config, captions, rows, epoch=0))
    return RunPlan(
        rows,
        batch_size,
        steps_per_epoch,
        config.train.epochs * steps_per_epoch,
        data,
        measure_truncations(config, captions, ("train", "validation")),
        count_shared_captions(config, captions, rows),
    )


def _log_finished(folder: Path, result: dict[str, Any], plan: RunPlan) -> None:
    """Says that a run is finished, and whether its data has changed since."""
    logger.info(
        f"{display_path(folder)} is finished ({result['epochs']} epochs). Evaluate it, or train again under another name"
    )
    if changes := changed_data(folder, plan.data):
        logger.warning(
            f"captions or videos have changed since {display_path(folder)} was trained ({changes}): its model and metrics "
            "belong to the old data. To train on the new data, choose another name (--set name=...)"
        )


def _start_text(config: ExperimentConfig, folder: Path, plan: RunPlan, newest: Path | None) -> str:
    what = f"continuing {config.name} after {describe_checkpoint(newest)}" if newest else f"training {config.name}"
    least, most = config.resources.min_workers, config.resources.max_workers
    workers = counted(most, "worker") if least == most else f"{least} to {most} workers"
    epochs, steps = counted(config.train.epochs, "epoch"), counted(plan.steps_per_epoch, "step")
    return f"{what}: {epochs} of {steps}, {workers}; the run folder is {display_path(folder)}"


def _run_result(
    config: ExperimentConfig,
    captions: pa.Table,
    store: ClipStore,
    knowledge: Knowledge | None,
    folder: Path,
    plan: RunPlan,
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
        "started_from": read_start(folder),
        "rivals": rivals_of_best([row for row in read_metrics(folder) if row.get("split") == "validation"]),
        "validation_split": validation_source(captions),
        "data": plan.data,
        "shared_captions": plan.num_shared_captions,
        "cut_captions": {split: asdict(truncation) for split, truncation in plan.truncations.items()},
        "knowledge": {
            "at_inference": config.informed_at_inference,
            "control": config.knowledge.control,
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
