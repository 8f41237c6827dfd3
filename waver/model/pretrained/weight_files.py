"""Reads files of weights, and finds them in folders, without executing anything in them."""

import json
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from waver.model.errors import BackboneError
from waver.model.pretrained.state_names import take_state
from waver.tools.archives import check_size, checked_copy, is_torchscript
from waver.tools.file_kinds import describe_bytes, first_bytes

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
"""Ends of the names of files that may hold weights."""
INDEX = ".index.json"
"""End of the name of an index: the file that lists, for each tensor, the part of the snapshot that holds it."""
SNAPSHOT_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
)
"""Names of files of weights in a snapshot of open_clip or transformers. All hold the same weights; the first is read."""
_NO_WEIGHTS = re.compile(r"optimizer|scheduler|scaler|training_args|training\.pt|rng_state|random_states|trainer_state")
"""Names of files that trainers write beside the weights."""
_PART = re.compile(r"-\d{5}-of-\d{5}\.")
_FOREIGN = {
    ".npz": "JAX's format (big_vision): take the pretrained tag of open_clip, which has the same weights",
    ".msgpack": "Flax's format: take the .safetensors file of the same model",
    ".h5": "TensorFlow's format: take the .safetensors file of the same model",
    ".onnx": "ONNX, a format for inference: take the .safetensors file of the same model",
    ".gguf": "GGUF, quantised weights of llama.cpp: take the .safetensors file of the same model",
}
"""Ends of the names of files in formats that waver does not read -> what they are, and what to do."""


def find_in_folder(folder: Path) -> Path:
    """Returns the file of weights in a folder, or the index of its parts.

    Args:
        folder: a snapshot of a model, in the layout of open_clip or of transformers, or any folder with one file of weights.

    Raises:
        BackboneError: if there is none, or several that may hold different weights; the message names them.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    if name := snapshot_name(names):
        return folder / name
    found = [name for name in names if name.endswith(SUFFIXES) and not _NO_WEIGHTS.search(name)]
    if parts := [name for name in found if _PART.search(name)]:
        raise BackboneError(
            f"model.weights: {folder} has parts of weights ({parts[0]}, ...), but not their index, such as "
            f"model.safetensors{INDEX}: copy the whole snapshot"
        )
    if len(found) == 1:
        return folder / found[0]
    if found:
        raise BackboneError(
            f"model.weights: {folder} is a folder with {len(found)} files of weights ({_list(found)}): name the one that "
            "you mean"
        )
    raise BackboneError(
        f"model.weights: {folder} is a folder without weights ({_list(names) or 'it holds no files'}): name a file, or a "
        f"folder with one of {', '.join(SNAPSHOT_NAMES)}"
    )


def snapshot_name(names: Iterable[str]) -> str | None:
    """Returns which of the files in a snapshot is read; None if none has a usual name."""
    return next((name for name in SNAPSHOT_NAMES if name in set(names)), None)


def parts_of(index: Path) -> list[Path]:
    """Returns the files that an index of a snapshot names, which lie beside it.

    Raises:
        BackboneError: if the index is unreadable, or names a file elsewhere.
    """
    return [index.parent / name for name in sorted(set(_read_index(index).values()))]


def _read_index(index: Path) -> dict[str, str]:
    """Returns name of a tensor -> name of the file beside the index that holds it.

    Raises:
        BackboneError: as `parts_of`.
    """
    try:
        file_of = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackboneError(
            f"model.weights: {index} cannot be read as the index of a snapshot ({type(error).__name__}: {error}): copy the "
            "snapshot again, completely"
        ) from error
    if elsewhere := [name for name in file_of.values() if not isinstance(name, str) or Path(name).name != name]:
        raise BackboneError(f"model.weights: {index} names {elsewhere[0]!r}, which is no file beside it")
    return file_of


def files_of(path: Path) -> list[Path]:
    """Returns the files that hold the weights: the file itself, or those that an index names."""
    return parts_of(path) if path.name.endswith(INDEX) else [path]


def num_bytes(path: Path) -> int:
    """Returns the size of a file of weights, all parts together."""
    return sum(part.stat().st_size for part in files_of(path))


def read_weights(path: Path, *, kept_prefix: str | None = None) -> dict[str, Tensor]:
    """Reads the tensors of a file of weights by name, without the wrappers and prefixes of training code.

    Args:
        path: OpenAI's .pt archive, .safetensors, a state dict, or the index of a snapshot in parts.
        kept_prefix: see `strip_prefixes`.

    Raises:
        BackboneError: if a file is missing or unreadable, or holds anything but complete tensors by name.
    """
    if not path.name.endswith(INDEX):
        return take_state(_read_tensors(path), source=str(path), kept_prefix=kept_prefix)
    file_of = _read_index(path)
    state: dict[str, Tensor] = {}
    for part in parts_of(path):
        if not part.is_file():
            raise BackboneError(
                f"model.weights: {part} is missing, which {path.name} names: copy the snapshot again, completely"
            )
        tensors = _read_tensors(part)
        if not isinstance(tensors, dict):
            raise BackboneError(f"model.weights: {part} holds something else than tensors by name")
        # A part may hold a tensor that the index takes from another one.
        state |= {name: tensor for name, tensor in tensors.items() if file_of.get(name, part.name) == part.name}
    if absent := [name for name in file_of if name not in state]:
        raise BackboneError(
            f"model.weights: {path.name} says that {file_of[absent[0]]} holds {absent[0]}, which it does not: copy the "
            f"snapshot again, completely ({path.parent})"
        )
    return take_state(state, source=str(path), kept_prefix=kept_prefix)


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the metadata of a .safetensors file; empty for a file of another format, or one that cannot be read."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except Exception:  # reading the weights says why
        return {}


def _read_tensors(path: Path) -> Any:
    """Returns the content of a file, as the reader of its format gives it.

    Raises:
        BackboneError: if it cannot be read.
    """
    try:
        with path.open("rb"):  # safetensors says of a file that may not be read that it does not exist
            pass
        if path.suffix == ".safetensors":
            return load_file(path)
        if is_torchscript(path):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # TorchScript is deprecated, but OpenAI's only format
                warnings.simplefilter("ignore", DeprecationWarning)
                return torch.jit.load(checked_copy(path), map_location="cpu").state_dict()
        check_size(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # each reader raises its own kinds for a file of another format
        raise BackboneError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    """Says why a file cannot be read as weights, and what to do."""
    if form := _FOREIGN.get(path.suffix):
        return f"model.weights: {path} cannot be read as weights: it is in {form}"
    if found := re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error)):
        return (
            f"model.weights: {path} cannot be read as weights without running code: it holds an object of {found[1]}, and "
            "waver unpickles nothing. Load it with the program that wrote it, and save the tensors alone: "
            "torch.save(model.state_dict(), 'weights.pt')"
        )
    reason = next(iter(str(error).splitlines()), "")
    if reason.startswith("Weights only load failed"):  # torch then advises to run the code in the file
        reason = "it is no pickle of tensors"
    try:
        begins = first_bytes(path)
    except OSError:
        begins = b""
    kind = describe_bytes(begins)
    if path.suffix != ".safetensors" and begins[8:10] == b'{"':  # the header, after its length
        kind = "perhaps a .safetensors file under another name: rename it"
    return (
        f"model.weights: {path} cannot be read as weights ({type(error).__name__}: {reason}); it should be OpenAI's .pt, a "
        ".safetensors file or a state dict"
        + (f", and is {kind}" if kind and kind not in ("a ZIP archive", "a pickle") else "")
    )


def _list(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
