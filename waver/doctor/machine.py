"""Checks of the model, its weights and the disk, by measured sizes and by estimates (labelled `estimate`)."""

import copy
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch

from waver.config import ExperimentConfig
from waver.config.preprocessing import PreprocessingError, find_preprocessing
from waver.data.clip_store import ClipStore
from waver.doctor.activations import tower_activations
from waver.doctor.findings import Finding, Level, format_bytes
from waver.model.errors import BackboneError
from waver.model.frozen_weights import frozen_weights
from waver.model.pretrained.weight_files import num_bytes
from waver.model.pretrained.weights import activation_of, check_weights, unreachable_weights
from waver.model.towers import recompute_activations
from waver.runs.checkpoint_weights import FROZEN_FILE
from waver.tools.errors import WaverError
from waver.tools.files import can_write
from waver.tools.hub import HUB
from waver.tools.object_store import exists, list_names, remote_of
from waver.training.build import build_student, freeze_student, parameter_groups
from waver.training.cost import CostError, training_cost

_JPEG_RATIO = 0.1
"""Bytes of JPEG frames relative to raw frames, as measured (experiments/RESULTS.md)."""
_NUM_CHECKPOINTS = 4
"""The best, the two newest, and the one that is being written."""


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a student, determined without allocating it."""

    num_parameters: int
    num_trained: int
    """Parameters that are trained."""
    embed_dim: int
    """D, of the common embedding space."""
    activation_bytes: int | None
    """Bytes that both towers keep for the gradient of one pair in fp32; None if unknown."""
    num_not_saved: int = 0
    """Parameters that checkpoints leave out: with adapters, the pre-trained ones."""
    num_shared: int = 0
    """Parameters that are not trained, and lie once on the disk for all checkpoints of a run."""
    num_adapted: int = 0
    """Parameters that adapters change; the gradient needs the sums of both."""

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes that each checkpoint adds: its own weights and the two moments of AdamW, in fp32."""
        return 4 * (self.num_parameters - self.num_not_saved - self.num_shared + 2 * self.num_trained)

    @property
    def shared_bytes(self) -> int:
        """Bytes of the frozen weights, which all checkpoints of a run share, in fp32."""
        return 4 * self.num_shared


def model_size(config: ExperimentConfig) -> ModelSize:
    """Builds the student of an experiment on the meta device, which allocates no memory, and returns its sizes.

    Raises:
        WaverError: if the student cannot be built, or if no parameter is trained.
    """
    with torch.device("meta"):
        student = build_student(config)
        freeze_student(student, config)
        if config.train.grad_checkpointing:
            recompute_activations(
                copy.deepcopy(student.backbone)
            )  # raises if a tower cannot; the estimate itself must run every block once
        parameter_groups(student, config)
        counts = [(p.numel(), p.requires_grad) for p in student.parameters()]
        try:
            activations = tower_activations(student, config)
        except (RuntimeError, NotImplementedError):  # a tower has an operation that the meta device lacks
            activations = None
    trained = sum(number for number, is_trained in counts if is_trained)
    num_frozen = sum(tensor.numel() for tensor in frozen_weights(student).values())
    state = student.state_dict()
    return ModelSize(
        num_parameters=sum(number for number, _ in counts),
        num_trained=trained,
        embed_dim=student.backbone.width,
        activation_bytes=activations,
        num_not_saved=num_frozen if config.model.lora else 0,
        num_shared=0 if config.model.lora else num_frozen,
        num_adapted=sum(tensor.numel() for name, tensor in state.items() if name.endswith(".original")),
    )


def measure_model(config: ExperimentConfig, *, needed: bool) -> tuple[ModelSize | None, list[Finding]]:
    """Returns the sizes of the student, or None if it cannot be built, and a finding.

    Args:
        config: configuration of the experiment.
        needed: whether the next stage needs the model: then it is an error if it cannot be built, else a warning.
    """
    try:
        model = model_size(config)
    except WaverError as error:
        return None, [Finding("error" if needed else "warning", "model", str(error))]
    frames = config.preprocessing
    try:
        trained_at = find_preprocessing(config.model.backbone, config.model.weights).size
    except PreprocessingError:  # waver does not have it, and settings replace it
        trained_at = frames.size
    findings = [Finding("ok", "preprocessing", frames.describe())]
    if frames.size != trained_at:
        sentence = f"video.size = {frames.size}, but the backbone was trained with {trained_at} pixels"
        findings.append(
            Finding(
                "warning", "preprocessing", f"{sentence}: its position embeddings are interpolated", "set it to null"
            )
        )
    counts = f"{model.num_parameters / 1e6:.1f} M parameters, {model.num_trained / 1e6:.1f} M trained"
    return model, [Finding("ok", "model", f"{_backbone_name(config)}: {counts}"), *findings]


def check_cost(config: ExperimentConfig, captions: pa.Table) -> Iterator[Finding]:
    """Estimates the floating-point operations and GPU-hours of training."""
    try:
        cost = training_cost(config, captions)
    except CostError as error:
        yield Finding("info", "cost of training", str(error))
        return
    details = {
        "num_pairs": cost.num_pairs,
        "training_flops": cost.training_flops,
        "evaluation_flops": cost.evaluation_flops,
    }
    yield Finding("info", "cost of training", f"estimate at most {cost.describe()}", details=details)


def check_model_weights(config: ExperimentConfig, *, needed: bool, elsewhere: bool = False) -> Iterator[Finding]:
    """Checks whether the weights exist and fit the architecture, or can be downloaded; reports the activation.

    Args:
        config: configuration of the experiment.
        needed: whether the next stage loads them; a run that continues loads its checkpoint instead.
        elsewhere: whether workers on other machines load them: these may have network even if this machine has none.
    """
    weights = config.model.weights
    if weights is None:
        yield Finding("info", "weights", "model.weights = null: training starts from random weights")
        return
    try:
        path = check_weights(config.model.backbone, weights, image_size=config.preprocessing.size)
        activation = activation_of(config.model.backbone, weights)
    except BackboneError as error:
        if str(error).startswith("model.backbone"):  # the check of the model reports it
            return
        yield Finding("error" if needed else "warning", "weights", str(error))
        return
    details = {"activation": activation.name, "activation_from": activation.origin}
    if path is not None:
        found = f"{path} fits ({format_bytes(num_bytes(path))}); {activation}"
        yield Finding("ok", "weights", found, details=details)
        return
    problem = unreachable_weights(config.model.backbone, weights)
    what, by_hand = f"a pretrained tag of {_backbone_name(config)}, which open_clip will download", "file"
    if weights.startswith(HUB):
        what, by_hand = "a repository of the hub, which will be downloaded", "folder"
    yield Finding(
        "error" if needed and problem and not elsewhere else "warning",
        "weights",
        problem or f"{weights!r} is {what}; {activation}",
        "" if problem else f"if the workers have no network, download the {by_hand} and set model.weights to its path",
        details,
    )


def check_disk(
    config: ExperimentConfig,
    captions: pa.Table | None,
    store: ClipStore | None,
    model: ModelSize | None,
    *,
    trains: bool,
    writes: Sequence[Path] = (),
) -> Iterator[Finding]:
    """Checks whether the storage is writable and has space for the clips still to be decoded and for checkpoints.

    Args:
        config: configuration of the experiment.
        captions: its caption table, or None if it cannot be read.
        store: its clip store, or None if there is no usable one.
        model: sizes of its student, or None if it cannot be built.
        trains: whether training is to start: then a lack of space for checkpoints is an error, else a warning.
        writes: folders in the storage that the stage writes to; they need not exist.
    """
    folder = config.storage.folder
    setting = "storage.cache" if remote_of(folder) else "storage.path"
    if unusable := list(check_writable((folder, *writes), f"change its permissions, or set {setting}", name="storage")):
        yield unusable[0]
        return
    storage = next(path for path in (folder, *folder.parents) if path.exists())
    found = f"{config.storage.path} answers; local copies are in {folder}" if remote_of(folder) else folder
    yield Finding("ok", "storage", f"{found}, {format_bytes(shutil.disk_usage(storage).free)} free")
    if captions is not None and (num_clips := _num_clips_to_decode(captions, store)):
        yield _check_clip_space(config, storage, num_clips, setting=setting)
    teacher = config.teacher
    if (
        captions is not None
        and teacher.clip_store != config.clip_store
        and not exists(teacher.clip_store / "manifest.json")
    ):
        yield _check_clip_space(teacher, storage, _num_clips_to_decode(captions, None), setting=setting)
    if model:
        there = [place / name for place in writes for name in list_names(place, "checkpoint_epoch_*")]
        yield _check_checkpoint_space(storage, model, there=there, trains=trains, setting=setting)


def check_writable(folders: Iterable[Path], remedy: str, *, name: str = "output") -> Iterator[Finding]:
    """Yields an error for each folder in which no file can be created; the folders need not exist yet."""
    for folder in folders:
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if not existing.is_dir():
            yield Finding("error", name, f"{existing} is a file, so that no folder can be created below it", remedy)
        elif not can_write(existing):
            yield Finding("error", name, f"{existing} cannot be written to", remedy)


def _check_clip_space(config: ExperimentConfig, storage: Path, num_clips: int, *, setting: str) -> Finding:
    frame_bytes = 3 * config.preprocessing.size**2 * (1 if config.ingest.frame_format == "raw" else _JPEG_RATIO)
    needed = num_clips * config.video.max_frames * frame_bytes
    free = shutil.disk_usage(storage).free
    space = f"{format_bytes(needed)} at most (estimate), {format_bytes(free)} free"
    found = f"{num_clips} clips are still to be decoded: {space}"
    if needed <= free:
        return Finding("ok", "disk for clips", found)
    # Short clips have fewer frames than estimated, so half of the space may be enough.
    level: Level = "error" if needed > 2 * free else "warning"
    remedy = f"free some space, set ingest.frame_format=jpeg (a tenth of the bytes), or set {setting} to another disk"
    return Finding(level, "disk for clips", found, remedy)


def _check_checkpoint_space(
    storage: Path, size: ModelSize, *, there: Sequence[Path], trains: bool, setting: str
) -> Finding:
    """Compares the free space with that for checkpoints, some of which are `there` already."""
    checkpoint, free = size.checkpoint_bytes, shutil.disk_usage(storage).free
    shared = 0 if any(exists(path / FROZEN_FILE) for path in there) else size.shared_bytes
    needed = shared + max(1, _NUM_CHECKPOINTS - len(there)) * checkpoint
    once = f", and {format_bytes(size.shared_bytes)} of frozen weights once;" if size.shared_bytes else ","
    found = (
        f"{format_bytes(checkpoint)} each{once} up to {format_bytes(needed)} more in {storage}; "
        f"{format_bytes(free)} free"
    )
    if needed <= free:
        return Finding("ok", "disk for checkpoints", found)
    # A short run writes two: the one that it keeps, and the next.
    level: Level = "error" if trains and free < min(needed, shared + 2 * checkpoint) else "warning"
    return Finding(level, "disk for checkpoints", found, f"free some space, or set {setting} to another disk")


def _backbone_name(config: ExperimentConfig) -> str:
    return config.model.backbone if isinstance(config.model.backbone, str) else "backbone of a custom architecture"


def _num_clips_to_decode(captions: pa.Table, store: ClipStore | None) -> int:
    in_ledger = set(store.ledger["clip_id"].to_pylist()) if store else set()
    return len(set(captions["clip_id"].to_pylist()) - in_ledger)
