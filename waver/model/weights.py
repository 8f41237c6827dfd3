"""Loads pre-trained weights into a backbone: from a file, or from a pretrained tag of open_clip."""

import contextlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import resize_pos_embed, resize_text_pos_embed
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from waver.model.architecture import find_architecture
from waver.model.backbone import Backbone
from waver.model.downloads import cached_weights, host_problem, weights_url
from waver.model.errors import BackboneError
from waver.tools.archives import check_size, checked_copy, is_torchscript


def load_backbone(
    backbone: str | dict[str, Any],
    weights: str | None,
    *,
    image_size: int,
    mean: tuple[float, float, float] = open_clip.OPENAI_DATASET_MEAN,
    std: tuple[float, float, float] = open_clip.OPENAI_DATASET_STD,
) -> Backbone:
    """Builds a backbone and loads its weights.

    Args:
        backbone: name of an open_clip model, or its architecture as in open_clip's model files.
        weights: path of a file (OpenAI's .pt archive, .safetensors, a state dict), a pretrained tag of open_clip for this
            name (downloaded by open_clip), or None for random weights.
        image_size: pixels; position embeddings of another size are interpolated by open_clip.
        mean, std: of the pixels that the weights were trained with, between 0 and 1.

    Raises:
        BackboneError: if the name or tag is unknown, the file is unreadable, or its weights belong to another
            architecture (the message names what differs).
    """
    architecture = find_architecture(backbone)
    if weights is None:
        return Backbone(architecture, image_size, mean, std)
    path, quick_gelu = _download(find_weights(backbone, weights), backbone, weights)
    state = _read_weights(path)
    if quick_gelu or is_torchscript(path):
        architecture["quick_gelu"] = True  # OpenAI trained with it; open_clip's plain names mean GELU
    model = Backbone(architecture, image_size, mean, std)
    load_weights(model.clip, state, source=str(path))
    return model


def check_weights(backbone: str | dict[str, Any], weights: str, *, image_size: int) -> Path | None:
    """Checks that weights fit a backbone, by the names and sizes of their tensors, and are finite; downloads nothing.

    Returns:
        The weights file; None for a pretrained tag that was not downloaded yet.

    Raises:
        BackboneError: as `load_backbone`.
    """
    location = find_weights(backbone, weights)
    if not isinstance(location, Path):
        location = cached_weights(location)
    if location is None:
        return None
    with torch.device("meta"):
        model = Backbone(find_architecture(backbone), image_size)
    state = _read_weights(location)
    load_weights(model.clip, {name: tensor.to("meta") for name, tensor in state.items()}, source=str(location))
    check_finite(state, source=str(location))
    return location


def unreachable_weights(backbone: str | dict[str, Any], weights: str) -> str:
    """Returns a sentence for the user if a pretrained tag cannot be downloaded now; empty if its host answers.

    Args:
        backbone: name of the open_clip model.
        weights: a pretrained tag that was not downloaded yet.
    """
    entry = find_weights(backbone, weights)
    if isinstance(entry, Path) or not (problem := host_problem(entry)):
        return ""
    return _by_hand(backbone, weights, entry, problem)


def _by_hand(backbone: str | dict[str, Any], weights: str, entry: dict[str, Any], problem: str) -> str:
    """Says that a pretrained tag cannot be downloaded, and how to get its file by hand."""
    url, setting = weights_url(entry), "model.weights to its path"
    if entry.get("quick_gelu") and f"{backbone}-quickgelu" in open_clip.list_models():
        setting += f" and model.backbone to {backbone}-quickgelu"  # a plain file does not say how it was trained
    return (
        f"model.weights: {weights!r} of {backbone} was not downloaded before, and {problem}: download {url} on a machine "
        f"with network, copy the file here, and set {setting}"
    )


def count_non_finite(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Returns, for each tensor that has values that are NaN or infinite, how many; none for tensors on the meta device."""
    checked = {name: tensor for name, tensor in state.items() if tensor.is_floating_point() and not tensor.is_meta}
    counts = {name: int((~tensor.float().isfinite()).sum()) for name, tensor in checked.items()}
    return {name: number for name, number in counts.items() if number}


def check_finite(state: Mapping[str, Tensor], *, source: str) -> None:
    """Checks that no tensor has a value that is NaN or infinite.

    Args:
        state: name -> tensor.
        source: where they come from, for the error message.

    Raises:
        BackboneError: if one has; names the first few, with the number of such values.
    """
    if bad := [f"{name} ({number} of {state[name].numel()})" for name, number in count_non_finite(state).items()]:
        raise BackboneError(
            f"{source} has values that are NaN or infinite, in {len(bad)} of {len(state)} tensors: {', '.join(bad[:4])}"
            f"{', ...' if len(bad) > 4 else ''}. It is damaged, or was written by a training that diverged: use another file"
        )


def load_weights(module: nn.Module, state: dict[str, Tensor], *, source: str) -> None:
    """Loads a state dict strictly.

    Args:
        module: receives the weights.
        state: name -> tensor; floating-point tensors are converted to float32.
        source: where they come from, for the error message.

    Raises:
        BackboneError: if entries are missing, unknown or of another size; names the first few of each kind. Also if a value
            is not finite, see `check_finite`.
    """
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    if isinstance(module, open_clip.CLIP | open_clip.CustomTextCLIP):
        for resize in (resize_pos_embed, resize_text_pos_embed):
            with contextlib.suppress(AssertionError):  # the width differs: reported below with all other differences
                resize(state, module)
    expected = module.state_dict()
    sizes = [
        f"{name}: the file has {tuple(state[name].shape)}, the model {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    missing, unknown = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    problems = [("differ in size", sizes), ("missing from the file", missing), ("unknown to the model", unknown)]
    if any(names for _, names in problems):
        lines = [
            f"  {len(names)} {what}: {'; '.join(names[:4])}{' ...' if len(names) > 4 else ''}"
            for what, names in problems
            if names
        ]
        raise BackboneError(
            f"{source} holds another architecture than the model of this configuration:\n" + "\n".join(lines)
        )
    check_finite(state, source=source)
    module.load_state_dict(state)


def find_weights(backbone: str | dict[str, Any], weights: str) -> Path | dict[str, Any]:
    """Returns the path of a weights file, or open_clip's entry of a pretrained tag.

    Raises:
        BackboneError: if the weights are neither.
    """
    path = Path(weights).expanduser()
    try:
        if path.is_file():
            return path
        if path.is_dir():
            raise BackboneError(f"model.weights: {weights} is a folder: name the file in it")
    except PermissionError as error:
        raise BackboneError(
            f"model.weights: {weights} cannot be read ({error.strerror}): change the permissions"
        ) from error
    if "://" in weights or weights.startswith("hf-hub:"):
        raise BackboneError(f"model.weights: {weights} is no file: download it, and set model.weights to its path")
    if path.suffix in {".pt", ".pth", ".bin", ".safetensors"} or "/" in weights:
        raise BackboneError(f"model.weights: no file {weights}")
    name = backbone.replace("/", "-") if isinstance(backbone, str) else ""
    tag = open_clip.get_pretrained_cfg(name, weights)
    if not tag:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise BackboneError(
            f"model.weights: {weights!r} is neither a file nor a pretrained tag of {name or 'this architecture'}"
            + (f"; its tags: {', '.join(tags)}" if tags else "; give a file, or null for random weights")
        )
    return tag


def _download(location: Path | dict[str, Any], backbone: str | dict[str, Any], weights: str) -> tuple[Path, bool]:
    """Returns the weights file, downloaded if need be, and whether the pretrained tag implies QuickGELU."""
    if isinstance(location, Path):
        return location, False
    if path := cached_weights(location):  # open_clip would ask the hub whether the file has changed
        return path, bool(location.get("quick_gelu"))
    if problem := host_problem(location):
        raise BackboneError(_by_hand(backbone, weights, location, problem))
    try:
        return Path(open_clip.download_pretrained(location)), bool(location.get("quick_gelu"))
    except Exception as error:  # the network and the hub raise many kinds, with one remedy for the user
        problem = f"the download failed ({type(error).__name__}: {next(iter(str(error).splitlines()), '')})"
        raise BackboneError(_by_hand(backbone, weights, location, problem)) from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a weights file by name, without executing anything in the file.

    Args:
        path: OpenAI's .pt archive, .safetensors or a state dict; open_clip's and OpenAI's names are the same.

    Raises:
        BackboneError: if the file is unreadable or holds anything but complete tensors by name.
    """
    try:
        state = _read_tensors(path)
    except Exception as error:  # each reader raises its own kinds for a file of another format
        raise BackboneError(
            f"model.weights: {path} cannot be read as weights ({type(error).__name__}: "
            f"{next(iter(str(error).splitlines()), '')}); it should be OpenAI's .pt, a .safetensors file or a state dict"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BackboneError(
            f"model.weights: {path} holds something else than tensors by name; it should be a state dict"
        )
    if incomplete := [name for name, tensor in state.items() if not _is_complete(tensor)]:
        raise BackboneError(
            f"model.weights: {path} does not hold all values of {incomplete[0]}; it should be a state dict"
        )
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    for name in ("input_resolution", "context_length", "vocab_size"):  # OpenAI's archives hold these beside the weights
        state.pop(name, None)
    return state


def _read_tensors(path: Path) -> Any:
    """Returns what the reader of the file's format makes of it."""
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


def read_sizes(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a .safetensors file by name, on the meta device: without their values."""
    with safe_open(path, "pt") as file:
        return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118 (not a dict)


def _is_complete(tensor: Tensor) -> bool:
    """Returns False for a tensor that repeats its values, so that a small file could claim any size."""
    return tensor.layout == torch.strided and tensor.numel() * tensor.itemsize <= tensor.untyped_storage().nbytes()
