"""Checks of a run before it is trained: batches, run folder, and the checkpoint from which it starts or continues."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int

from waver.config import ConfigError, ExperimentConfig
from waver.data.clip_store import ClipStore
from waver.doctor.findings import Finding, Level
from waver.runs.checkpoint import CheckpointError, check_values
from waver.runs.checkpoint_weights import FrozenWeightsError
from waver.runs.folder import RunError, changed_data, check_run, describe_checkpoint, newest_checkpoint, read_result
from waver.runs.start import check_start
from waver.tools.errors import WaverError
from waver.tools.lock import describe_lock
from waver.tools.object_store import display_path
from waver.training.plan import (
    batch_size_of,
    captions_of_clips,
    check_split,
    describe_data,
    describe_lowered_batch,
    pairs_per_epoch,
    plan_epoch,
    training_rows,
)


def check_training(
    config: ExperimentConfig, captions: pa.Table, store: ClipStore | None, *, run_folder: Path | None, needed: bool
) -> Iterator[Finding]:
    """Checks whether training can start, or continue, in the run folder.

    Args:
        config: configuration of the experiment.
        captions: its caption table.
        store: its clip store, or None if there is no usable one.
        run_folder: folder of the run; None for a trial, which has a folder of its own in that of the sweep.
        needed: whether training is the next stage: then obstacles are errors, else notes.
    """
    folder, level = run_folder, "error" if needed else "info"
    if store is None:
        train = np.flatnonzero(pc.equal(captions["split"], "train").to_numpy())
        yield from _check_batch(config, captions_of_clips(captions, train), level)
        if folder:
            found = f"{display_path(folder)} was not compared with the training data: there is no clip store"
            yield Finding("info", "run", found)
        return
    for split in ("train", "validation"):
        try:
            check_split(captions, store, split)
        except WaverError as error:
            yield Finding(level, f"split {split}", str(error), "see the ledger of the clip store for the reasons")
    rows = training_rows(captions, store)
    if len(rows) == 0:
        return
    data = describe_data(captions, rows, store)
    num_captions = captions_of_clips(captions, rows)
    yield from _check_batch(config, num_captions, level)
    steps = len(plan_epoch(config, captions, rows, epoch=0))
    pairs = pairs_per_epoch(config, len(num_captions), len(rows))
    yield Finding("ok", "steps", f"{config.train.epochs} epochs of {steps} steps, with {pairs:,} pairs each")
    if folder:
        yield from _check_run_folder(folder, config, data, level)


def _check_run_folder(folder: Path, config: ExperimentConfig, data: dict[str, Any], level: Level) -> Iterator[Finding]:
    """Checks that a run folder is free, or holds the same run, and says how far that is."""
    try:
        check_run(folder, config, data)
    except (RunError, ConfigError, OSError) as error:
        yield Finding(level, "run", str(error), "choose another name with --set name=..., or another storage.path")
        return
    if result := read_result(folder):
        found = f"{display_path(folder)} is finished ({result['epochs']} epochs): waver train would do nothing"
        if changes := changed_data(folder, data):
            found += f"; captions or videos have changed since ({changes})"
        yield Finding("warning", "run", found, "evaluate it, or choose another name with --set name=...")
    elif newest := newest_checkpoint(folder):
        yield Finding("info", "run", f"{display_path(folder)} will continue from {describe_checkpoint(newest)}")
    else:
        yield Finding("ok", "run", f"{display_path(folder)} is free")


def check_resumed_checkpoint(run_folder: Path, *, needed: bool) -> Iterator[Finding]:
    """Checks that the checkpoint from which a run will continue has no value that is NaN or infinite; reads all of it.

    Args:
        run_folder: folder of the run.
        needed: whether training is the next stage.
    """
    newest = None if read_result(run_folder) else newest_checkpoint(run_folder)
    if newest is None:
        return
    try:
        check_values(newest)
    except CheckpointError as error:
        remedy = f"delete {display_path(newest)}: the run continues from the checkpoint before it"
        if isinstance(error, FrozenWeightsError):  # that has the same, and the message says how to mend it
            remedy = ""
        yield Finding("error" if needed else "info", "checkpoint", str(error), remedy)


def check_started_from(config: ExperimentConfig, *, needed: bool) -> Iterator[Finding]:
    """Checks that the checkpoint of train.start_from is there and fits the model.

    Args:
        config: configuration of a run that starts from a checkpoint.
        needed: whether training is the next stage.
    """
    try:
        yield Finding("ok", "start", f"the run starts from the weights of {display_path(check_start(config))}")
    except CheckpointError as error:
        yield Finding("error" if needed else "info", "start", str(error), "set train.start_from to a run of this model")


def check_writers(folder: Path) -> Iterator[Finding]:
    """Checks that no other process writes the folder that a stage is to write."""
    if in_use := describe_lock(folder):
        yield Finding("error", "lock", in_use)


def _check_batch(config: ExperimentConfig, num_captions: Int[np.ndarray, " clips"], level: Level) -> Iterator[Finding]:
    """Checks whether batches and workers fit the captions of the training clips; if there are none, others report it."""
    if not len(num_captions):
        return
    try:
        size = batch_size_of(config, num_captions)
    except WaverError as error:
        yield Finding(level, "batch", str(error))
        return
    if lowered := describe_lowered_batch(config, num_captions):
        yield Finding(
            "warning", "batch", lowered, f"set train.global_batch_size to {size} to say so in the configuration"
        )
