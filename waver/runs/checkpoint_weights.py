"""Writes and reads the weights of a checkpoint.

model.safetensors    the parameters that training changes, and buffers
frozen.safetensors   the parameters that training does not change, if there are any

The first checkpoint of a run writes frozen.safetensors, and every later one links to it (a hard link; a copy where the file
system refuses links). So each checkpoint folder is complete, and can be deleted. With adapters (model.lora) there is no
frozen.safetensors: these weights are read from model.weights. Checkpoints of older versions have all weights in
model.safetensors.

The metadata of model.safetensors has the hash of the weights that it leaves out, and names their file if there is one.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from waver.model.errors import BackboneError
from waver.model.frozen_weights import frozen_weights, weights_digest
from waver.model.lora import adapter_parameters
from waver.model.pretrained.activation import METADATA
from waver.model.pretrained.weight_files import read_metadata
from waver.model.pretrained.weights import check_finite, load_weights, read_sizes
from waver.model.student import Student
from waver.tools.errors import WaverError
from waver.tools.files import link_or_copy
from waver.tools.object_store import display_path, fetch

MODEL_FILE = "model.safetensors"
FROZEN_FILE = "frozen.safetensors"
_DIGEST = "frozen_sha256"
"""Key, in the metadata of both files, of the hash of the weights that model.safetensors leaves out."""
_FILE = "frozen_file"
"""Key, in the metadata of model.safetensors, of the name of the file with these weights; absent with adapters."""


class CheckpointError(WaverError):
    """Raised if a checkpoint is missing, damaged, or of another architecture."""


class FrozenWeightsError(CheckpointError):
    """Raised if frozen.safetensors is missing, damaged, or of another model; the message says how to mend it."""


def save_weights(student: Student, folder: Path, *, previous: Path | None = None) -> None:
    """Writes the weights of a student.

    Args:
        student: the model.
        folder: folder of the checkpoint; exists.
        previous: another checkpoint of the same run, which this process has written or resumed from. Its frozen weights are
            shared, and not hashed again.
    """
    frozen = frozen_weights(student)
    # The configuration alone does not determine it: the weights that training started from may contain their activation.
    metadata = {METADATA: str(bool(student.backbone.architecture.get("quick_gelu"))).lower()}
    (folder / FROZEN_FILE).unlink(missing_ok=True)  # never written in place: other checkpoints may share it
    if adapter_parameters(student.backbone):
        metadata[_DIGEST] = (previous and _left_out(previous).get(_DIGEST)) or weights_digest(frozen)
    elif frozen:
        metadata |= {_DIGEST: _save_frozen(frozen, folder, previous), _FILE: FROZEN_FILE}
    changed = {name: tensor.contiguous() for name, tensor in student.state_dict().items() if name not in frozen}
    save_file(changed, folder / MODEL_FILE, metadata=metadata)


def _save_frozen(frozen: Mapping[str, torch.Tensor], folder: Path, previous: Path | None) -> str:
    """Links to the frozen weights of another checkpoint, or writes them; returns their hash."""
    path = folder / FROZEN_FILE
    if (
        previous
        and (digest := frozen_digest_of(previous))
        and read_sizes(previous / FROZEN_FILE).keys() == frozen.keys()
    ):
        link_or_copy(previous / FROZEN_FILE, path)
        return digest
    digest = weights_digest(frozen)
    save_file({name: tensor.contiguous() for name, tensor in frozen.items()}, path, metadata={_DIGEST: digest})
    with path.open("rb") as file:
        os.fsync(file.fileno())  # a power failure must not truncate the file that all checkpoints of the run will share
    return digest


def frozen_digest_of(folder: Path) -> str | None:
    """Returns the hash in the frozen.safetensors of a checkpoint, of the local copy; None if there is no such file."""
    return read_metadata(folder / FROZEN_FILE).get(_DIGEST)


def is_model_complete(folder: Path) -> bool:
    """Returns whether model.safetensors exists and is not truncated; reads no values.

    frozen.safetensors does not count. A run whose newest checkpoint is incomplete continues from an older one and removes
    the newest. But the older one shares frozen.safetensors, so only the user can restore that file; reading it raises
    an error that says so.
    """
    try:
        with safe_open(folder / MODEL_FILE, "pt"):
            return True
    except (OSError, SafetensorError):
        return False


def load_checkpoint_weights(student: Student, folder: Path, *, sizes_only: bool = False) -> None:
    """Loads the weights of a checkpoint into a student.

    Args:
        student: the model; with adapters, it has the weights of model.weights.
        folder: folder of the checkpoint.
        sizes_only: check names and sizes without reading values; the student is on the meta device.

    Raises:
        CheckpointError: if a file is missing or damaged, or the weights that model.safetensors leaves out differ from
            those of the training.
        BackboneError: if the weights are of another architecture, or a value is not finite.
    """
    state = _read_tensors(folder / MODEL_FILE, sizes_only=sizes_only)
    left_out = _left_out(folder)
    if adapter_parameters(student.backbone):
        frozen = frozen_weights(student)
        _check_adapted(folder, left_out, frozen, sizes_only=sizes_only)
        state = frozen | state
    elif _FILE in left_out:
        state |= _read_frozen(folder, left_out, sizes_only=sizes_only)
    load_weights(student, state, source=display_path(folder / MODEL_FILE))


def check_finite_weights(folder: Path) -> None:
    """Checks that no weight in the files of a checkpoint is NaN or infinite.

    Raises:
        CheckpointError: if a weight is (the message names file and tensors), or a file is missing or damaged.
    """
    read = {MODEL_FILE: _read_tensors(folder / MODEL_FILE)}
    if _FILE in (left_out := _left_out(folder)):
        read[FROZEN_FILE] = _read_frozen(folder, left_out)
    for name, weights in read.items():
        try:
            check_finite(weights, source=display_path(folder / name))
        except BackboneError as error:
            raise CheckpointError(str(error)) from error


def _left_out(folder: Path) -> dict[str, str]:
    """Returns the metadata of model.safetensors on the weights that it leaves out; empty if it leaves out none."""
    metadata = read_metadata(fetch(folder / MODEL_FILE))
    return {key: metadata[key] for key in (_DIGEST, _FILE) if key in metadata}


def _check_adapted(
    folder: Path, left_out: Mapping[str, str], frozen: Mapping[str, torch.Tensor], *, sizes_only: bool
) -> None:
    """Checks that the pre-trained weights of a student are those to which the adapters of a checkpoint were trained."""
    path, digest = display_path(folder / MODEL_FILE), left_out.get(_DIGEST)
    if digest is None or _FILE in left_out:
        raise CheckpointError(f"{path} holds no adapters: it was trained without model.lora")
    if not sizes_only and weights_digest(frozen) != digest:
        raise CheckpointError(
            f"{path} holds adapters of other pre-trained weights than those of model.weights: "
            f"set model.weights in {display_path(folder / 'config.yaml')} to the weights of the training "
            f"(their hash is {digest[:16]})"
        )


def _read_frozen(folder: Path, left_out: Mapping[str, str], *, sizes_only: bool = False) -> dict[str, torch.Tensor]:
    """Reads frozen.safetensors, and checks that it belongs to model.safetensors."""
    path, digest = fetch(folder / FROZEN_FILE), left_out.get(_DIGEST, "")
    shown, remedy = display_path(path), "copy it from another checkpoint of the run, or copy this checkpoint again"
    if not path.is_file():
        raise FrozenWeightsError(f"{shown} is missing, which holds the weights that training did not change: {remedy}")
    try:
        weights = read_sizes(path) if sizes_only else load_file(path)
    except (OSError, SafetensorError):
        weights = {}
    found = frozen_digest_of(folder)
    if weights and found != digest:
        raise FrozenWeightsError(
            f"{shown} belongs to another model than {MODEL_FILE} beside it (the hash of the right one is {digest[:16]}): "
            f"{remedy}"
        )
    # By the values: all checkpoints of the run share the file, so whoever changes it in place changes it for all.
    if not weights or not (sizes_only or weights_digest(weights) == digest):
        raise FrozenWeightsError(
            f"{shown} is damaged (the hash of the right one is {digest[:16]}). All checkpoints of the run may share the "
            "damaged file: copy it from a copy of the run, or train again under another name (--set name=...)"
        )
    return weights


def _read_tensors(path: Path, *, sizes_only: bool = False) -> dict[str, torch.Tensor]:
    path = fetch(path)
    try:
        return read_sizes(path) if sizes_only else load_file(path)
    except (OSError, SafetensorError) as error:
        reason = next(iter(str(error).splitlines()), "")
        raise CheckpointError(
            f"{display_path(path)} cannot be read ({reason}); is {display_path(path.parent)} a complete checkpoint?"
        ) from error
