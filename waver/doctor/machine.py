"""Weights, disk and memory: whether what is there is enough, by figures that need no run. Estimates are called so."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import torch

from waver.config import ExperimentConfig
from waver.data.clip_store import ClipStore
from waver.doctor.findings import Finding, Level, size
from waver.model.backbone import BackboneError
from waver.model.student import Student
from waver.model.weights import check_weights
from waver.tools.errors import WaverError
from waver.tools.object_store import remote_of
from waver.training.build import build_student, parameter_groups

_JPEG_SHARE = 0.1
"""Of the bytes of raw frames, as measured (experiments/RESULTS.md)."""
_PROCESS_BYTES = 2**30
"""Libraries of a worker or loader, about."""
_CHECKPOINTS = 4
"""The best, the two newest, and the one that is being written."""


@dataclass(frozen=True)
class ModelSize:
    """What is known of a student without its values."""

    parameters: int
    trained: int
    """Of the parameters."""
    width: int
    """D, of the common embedding space."""
    activations: int | None
    """Bytes that the towers keep for the gradient of one pair, fp32; None where that cannot be told."""

    @property
    def checkpoint_bytes(self) -> int:
        """Weights, and the two moments of AdamW, fp32."""
        return 4 * (self.parameters + 2 * self.trained)


def model_size(config: ExperimentConfig) -> ModelSize:
    """Measures the student of an experiment without allocating it.

    Raises:
        WaverError: if it cannot be built, or if no parameter is trained.
    """
    with torch.device("meta"):
        student = build_student(config)
        if config.train.backbone_lr_scale == 0:
            student.backbone.requires_grad_(False)
        parameter_groups(student, config)
        counts = [(p.numel(), p.requires_grad) for p in student.parameters()]
        try:
            activations = _tower_activations(student, config)
        except (RuntimeError, NotImplementedError):  # an operation of the tower is unknown without values
            activations = None
    trained = sum(number for number, is_trained in counts if is_trained)
    return ModelSize(sum(number for number, _ in counts), trained, student.backbone.width, activations)


def measure_model(config: ExperimentConfig, *, needed: bool) -> tuple[ModelSize | None, list[Finding]]:
    """The size of the student; None where it cannot be built, which is an error where it is needed."""
    try:
        model = model_size(config)
    except WaverError as error:
        return None, [Finding("error" if needed else "warning", "model", str(error))]
    found = f"{_backbone(config)}: {model.parameters / 1e6:.1f} M parameters, {model.trained / 1e6:.1f} M trained"
    return model, [Finding("ok", "model", found)]


def check_model_weights(config: ExperimentConfig, *, needed: bool) -> Iterator[Finding]:
    """Whether the weights are there and fit.

    Args:
        config: of the experiment.
        needed: whether they are loaded; a run that goes on has its own.
    """
    weights = config.model.weights
    if weights is None:
        yield Finding("info", "weights", "model.weights = null: training starts from random weights")
        return
    try:
        path = check_weights(config.model.backbone, weights, image_size=config.video.size)
    except BackboneError as error:
        yield Finding("error" if needed else "warning", "weights", str(error))
        return
    if path is None:
        yield Finding(
            "warning",
            "weights",
            f"{weights!r} is a pretrained tag of {_backbone(config)}: open_clip takes it from its cache, or downloads it",
            "where workers have no network, download the file once and set model.weights to its path",
        )
    else:
        yield Finding("ok", "weights", f"{path} fits ({size(path.stat().st_size)})")


def check_disk(
    config: ExperimentConfig,
    captions: pa.Table | None,
    store: ClipStore | None,
    model: ModelSize | None,
    *,
    trains: bool,
) -> Iterator[Finding]:
    """Whether the storage can be written to and has room for what will be written.

    Args:
        config: of the experiment.
        captions: its caption table; None where it cannot be had.
        store: its clips; None where none can be used.
        model: its student; None where it cannot be built.
        trains: whether training is to start.
    """
    folder = config.storage.folder
    setting = "storage.cache" if remote_of(folder) else "storage.path"
    storage = next(path for path in (folder, *folder.parents) if path.exists())
    if not storage.is_dir() or not os.access(storage, os.W_OK | os.X_OK):
        what = "cannot be written to" if storage.is_dir() else "is a file, and no folder can be made below it"
        remedy = f"change its rights, or set {setting}"
        yield Finding("error", "storage", f"{storage} {what}", remedy)
        return
    found = (
        f"{config.storage.path} answers; its copies on this machine are in {folder}" if remote_of(folder) else folder
    )
    yield Finding("ok", "storage", f"{found}, {size(shutil.disk_usage(storage).free)} free")
    if captions is not None and (to_decode := _clips_to_decode(captions, store)):
        frame_bytes = 3 * config.video.size**2 * (1 if config.ingest.frame_format == "raw" else _JPEG_SHARE)
        most = to_decode * config.video.max_frames * frame_bytes
        free = shutil.disk_usage(storage).free
        found = f"{to_decode} clips are still to be decoded: {size(most)} at most (estimate), {size(free)} are free"
        if most <= free:
            yield Finding("ok", "disk for clips", found)
        else:
            # Short clips have fewer frames, so a disk that is a little too small may do.
            remedy = f"make room, set ingest.frame_format = jpeg (a tenth), or {setting} to another disk"
            yield Finding("error" if most > 2 * free else "warning", "disk for clips", found, remedy)
    if model:
        level = "error" if trains else "warning"
        yield from _check_checkpoint_space(storage, model.checkpoint_bytes, level, setting=setting)


def _check_checkpoint_space(storage: Path, checkpoint: int, level: Level, *, setting: str) -> Iterator[Finding]:
    temporary = Path(tempfile.gettempdir())
    wanted = {storage: _CHECKPOINTS * checkpoint, temporary: checkpoint}
    if storage.stat().st_dev == temporary.stat().st_dev:
        wanted = {storage: (_CHECKPOINTS + 1) * checkpoint}
    for folder, needed in wanted.items():
        free = shutil.disk_usage(folder).free
        found = f"{size(checkpoint)} each, up to {size(needed)} in {folder}, where {size(free)} are free"
        if needed <= free:
            yield Finding("ok", "disk for checkpoints", found)
        else:
            remedy = f"make room, or set {setting} (for temporary files: TMPDIR) to another disk"
            yield Finding(level, "disk for checkpoints", found, remedy)


def check_memory(
    config: ExperimentConfig,
    captions: pa.Table | None,
    model: ModelSize,
    *,
    num_phrases: int,
    gpus: Sequence[int],
    ram: int | None,
) -> Iterator[Finding]:
    """Whether memory will do, by an estimate.

    Args:
        config: of the experiment.
        captions: its caption table; None where it cannot be had.
        model: its student.
        num_phrases: in the dictionary; 0 without knowledge.
        gpus: memory of each GPU that workers will have, bytes; empty where they compute on CPUs.
        ram: of this machine, bytes; None where workers run elsewhere.
    """
    resources, video = config.resources, config.video
    pairs = -(-config.train.global_batch_size // resources.min_workers)
    batch = pairs * video.max_frames * 3 * video.size**2
    half = config.train.precision == "bf16" or (config.train.precision == "auto" and bool(gpus))
    activations = (model.activations or 0) * pairs // (2 if half else 1)
    texts = 0 if captions is None else pc.sum(pc.equal(captions["split"], "validation")).as_py() or 0
    parts = {
        "weights, gradients, AdamW": 4 * (model.parameters + 3 * model.trained),
        "activations of the towers": activations,
        "frames of a batch": 5 * batch,  # uint8 and normalised
        "phrases": 4 * num_phrases * model.width,
        # Validation: every token of this worker's captions.
        "captions of validation": 4 * model.width * config.text.max_words * texts // resources.min_workers,
    }
    device = sum(parts.values())
    loaders = max(1, resources.loaders_per_worker)
    host = (1 + resources.loaders_per_worker) * _PROCESS_BYTES + (2 + loaders) * batch
    details = {"worker": parts, "host_of_worker": host, "activations_known": model.activations is not None}
    unknown = "" if model.activations is not None else "; activations of these towers cannot be told and come on top"
    largest = ", ".join(f"{size(value)} {name}" for name, value in sorted(parts.items(), key=lambda p: -p[1])[:3])
    remedy = "lower train.global_batch_size, or take more workers; a frozen backbone keeps no activations"
    if gpus:
        found = f"estimate {size(device)} of {size(min(gpus))} of the GPU ({largest}){unknown}"
        fits = device <= min(gpus)
        yield Finding("ok" if fits else "warning", "memory of a GPU", found, "" if fits else remedy, details)
    else:
        host += device
    found = f"estimate {size(resources.max_workers * host)} for {resources.max_workers} workers and their loaders"
    if not gpus:
        found += f" (each: {largest}){unknown}"
    if ram is None:
        yield Finding("info", "memory", f"{found}; compare it with the nodes of the cluster", details=details)
        return
    fits = resources.max_workers * host <= ram
    remedy = "fewer resources.workers or resources.loaders_per_worker, or a smaller train.global_batch_size"
    yield Finding("ok" if fits else "warning", "memory", f"{found}, of {size(ram)}", "" if fits else remedy, details)


def _backbone(config: ExperimentConfig) -> str:
    return config.model.backbone if isinstance(config.model.backbone, str) else "backbone of its own architecture"


def _clips_to_decode(captions: pa.Table, store: ClipStore | None) -> int:
    known = set(store.ledger["clip_id"].to_pylist()) if store else set()
    return len(set(captions["clip_id"].to_pylist()) - known)


def _tower_activations(student: Student, config: ExperimentConfig) -> int:
    """Bytes that autograd keeps of both towers for one pair; each piece of memory counts once, and weights do not."""
    own = {p.untyped_storage()._cdata for p in student.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}  # holding them, lest an address is used again

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    video = config.video
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        frames = student.backbone.clip.encode_image(torch.empty(video.max_frames, 3, video.size, video.size))
        words = student.backbone.encode_tokens(torch.zeros(1, config.text.max_words, dtype=torch.int64))
    total = sum(storage.nbytes() for storage in kept.values())
    del frames, words
    return total
