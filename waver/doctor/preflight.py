"""The checks before a stage that need no Ray. `waver doctor` reports them; the stage itself starts only without errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from waver.config import ExperimentConfig
from waver.data.clip_store import ClipStore
from waver.doctor import data, machine
from waver.doctor.findings import Checks, Finding, Stage
from waver.doctor.run import check_resumed_checkpoint, check_started_from, check_training, check_writers
from waver.doctor.stages import (
    check_checkpoint,
    check_evaluated_knowledge,
    check_evaluated_split,
    check_phrases,
    find_knowledge,
    find_store,
)
from waver.doctor.teacher import check_teacher
from waver.knowledge.store import Knowledge
from waver.runs.folder import newest_checkpoint, read_result
from waver.tools.errors import WaverError
from waver.tools.object_store import ObjectStoreError, check_bucket


@dataclass(frozen=True)
class Inputs:
    """What the checks before a stage have opened; None for what is not needed or cannot be used."""

    captions: pa.Table | None = None
    store: ClipStore | None = None
    model: machine.ModelSize | None = None
    knowledge: Knowledge | None = None


NOTHING_ELSE = "nothing else was checked"
"""Remedy in the finding that an object store or the hub does not answer."""


def check_inputs(
    checks: Checks,
    config: ExperimentConfig,
    before: Stage,
    *,
    run_folder: Path | None = None,
    on_cluster: bool = False,
    later: bool = False,
) -> Inputs:
    """Checks what a stage reads and where it writes: annotations, videos, clip store, model, weights, phrases, run, disk.

    Args:
        checks: receives the findings.
        config: configuration of the experiment.
        before: the stage.
        run_folder: folder of the run; by default that of the configuration.
        on_cluster: whether the stage runs on a cluster, whose other nodes may have a network that this machine lacks.
        later: whether to check also what the stage finds itself when it starts (its lock, the values of its checkpoint), and
            what only later stages need, which gives no errors.
    """
    if (problem := _check_foundations(config)) is not None:
        checks.findings.append(problem)
        return Inputs()
    folder, trains = run_folder or config.run_folder, before in ("train", "tune")
    store = knowledge = None
    captions = checks.load("annotations", data.read_captions, config)
    if captions is not None:
        store = checks.load("clip store", find_store, config, captions, needed=before in ("embed", "match", "train"))
        decoded = store is not None and before != "ingest"
        checks.run("videos", data.check_videos, config, captions, decoded=decoded)
    finished, begun = _state_of_run(folder) if before == "train" else (False, False)
    model = _check_model(checks, config, before, begun=begun, later=later, on_cluster=on_cluster)
    if later and model and captions is not None:
        checks.run("cost of training", machine.check_cost, config, captions)
    if before not in ("ingest", "embed") or later:
        checks.run("dictionary", check_phrases, config, captions, before=before)
    if config.has_other_teacher and (before not in ("ingest", "vocabulary") or later):
        how = {"runs": before == "match" or (trains and config.uses_teacher), "reads": before in ("match", "train")}
        checks.run("teacher", check_teacher, config, captions, store, **how, elsewhere=on_cluster)
    if captions is not None and config.uses_knowledge and (before == "train" or later):
        knowledge = checks.load(
            "knowledge", find_knowledge, config, captions, store, model, run_folder=folder, needed=trains
        )
    if captions is not None and (trains or later):
        checks.run(
            "run", check_training, config, captions, store, run_folder=_own_folder(before, folder), needed=trains
        )
    target = _target(config, before, folder)
    if later:  # a stage reads its checkpoint and holds its lock itself
        if captions is not None:
            checks.run("checkpoint", check_resumed_checkpoint, folder, needed=trains)
        checks.run("lock", check_writers, target)
    if not finished:
        checks.run("disk", machine.check_disk, config, captions, store, model, trains=trains, writes=[target])
    return Inputs(captions, store, model, knowledge)


def _check_model(
    checks: Checks, config: ExperimentConfig, before: Stage, *, begun: bool, later: bool, on_cluster: bool
) -> machine.ModelSize | None:
    """Checks the model, its pre-trained weights, and the checkpoint that it starts from, as far as a stage needs them.

    Args:
        checks, config, before, later, on_cluster: see `check_inputs`.
        begun: whether the run has a checkpoint.
    """
    model, trains = None, before in ("train", "tune")
    needs_model = trains or before in ("embed", "match")
    if needs_model or later:
        model = checks.load("model", machine.measure_model, config, needed=needs_model)
        # A run that continues loads its checkpoint, and one that starts from a checkpoint loads that.
        loads_checkpoint = begun or config.train.start_from is not None
        reads_weights = not loads_checkpoint or config.model.lora is not None
        if later or reads_weights:
            needed = needs_model and reads_weights
            checks.run("weights", machine.check_model_weights, config, needed=needed, elsewhere=on_cluster)
    if config.train.start_from and not begun and (trains or later):
        checks.run("start", check_started_from, config, needed=trains)
    return model


def _check_foundations(config: ExperimentConfig) -> Finding | None:
    """Returns what would let every other check fail; None if there is nothing."""
    try:
        check_bucket(config.storage.folder)
    except ObjectStoreError as error:
        return Finding("error", "storage", str(error), NOTHING_ELSE)
    try:  # the folder of the clip store depends on it
        _ = config.preprocessing, config.teacher.preprocessing
    except WaverError as error:
        return Finding("error", "weights", str(error), NOTHING_ELSE)
    return None


def _own_folder(stage: Stage, run_folder: Path) -> Path | None:
    """Returns the folder of the run that a stage trains; None for a sweep, whose trials have folders of their own."""
    return None if stage == "tune" else run_folder


def _target(config: ExperimentConfig, stage: Stage, run_folder: Path) -> Path:
    """Returns the folder that a stage writes."""
    targets = {
        "ingest": config.clip_store,
        "embed": config.frame_embeddings,
        "vocabulary": config.dictionary,
        "match": config.knowledge_store,
    }
    return targets.get(stage, run_folder)


def check_evaluation(
    checks: Checks, checkpoint: Path | None, config: ExperimentConfig, split: str, *, writes: Sequence[Path]
) -> Inputs:
    """Checks what the evaluation of a checkpoint, or of a pre-trained backbone, reads and where it writes.

    Args:
        checks: receives the findings.
        checkpoint: folder of the checkpoint; None to evaluate the backbone with model.weights.
        config: configuration of the checkpoint; paths and resources may differ.
        split: train, validation or test.
        writes: folders for the results; they need not exist.
    """
    store = None
    captions = checks.load("annotations", data.read_captions, config)
    if captions is not None:
        checks.run("split", check_evaluated_split, captions, split)
        store = checks.load("clip store", find_store, config, captions, needed=True)
        checks.run("videos", data.check_videos, config, captions, decoded=store is not None)
    if checkpoint is None:
        checks.load("model", machine.measure_model, config, needed=True)
        checks.run("weights", machine.check_model_weights, config, needed=True)
    else:
        checks.run("checkpoint", check_checkpoint, checkpoint, config)
    if checkpoint and captions is not None and store is not None and config.informed_at_inference:
        checks.run("knowledge", check_evaluated_knowledge, checkpoint, config, captions, store, split)
    checks.run("output", machine.check_writable, writes, "change its permissions, or name another folder with --output")
    return Inputs(captions, store)


def _state_of_run(folder: Path) -> tuple[bool, bool]:
    """Returns whether the run has finished, and whether it has begun: then it needs no other weights than its own."""
    try:
        finished = read_result(folder) is not None
        return finished, finished or newest_checkpoint(folder) is not None
    except (OSError, ValueError):  # the check of the run reports it
        return False, False
