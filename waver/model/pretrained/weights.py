"""Loads pre-trained weights into a backbone: from a file, a folder, a pretrained tag of open_clip, or the hub."""

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import resize_pos_embed, resize_text_pos_embed
from safetensors import safe_open
from torch import Tensor, nn

from waver.model.architecture import find_architecture
from waver.model.backbone import Backbone
from waver.model.errors import BackboneError
from waver.model.pretrained.activation import QUICK, Activation, named_activation, told_activation
from waver.model.pretrained.conversion import fit_names, without_decoder
from waver.model.pretrained.downloads import cached_weights, download, entry_problem, hub_entry, weights_url
from waver.model.pretrained.recognition import describe_weights
from waver.model.pretrained.weight_files import SUFFIXES, find_in_folder, read_weights
from waver.tools.hub import HUB

logger = logging.getLogger(__name__)


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
        weights: path of a file (OpenAI's .pt archive, .safetensors, a state dict) or of a folder with one, a pretrained tag
            of open_clip for this name (downloaded by open_clip), `hf-hub:owner/name`, or None for random weights. Names of
            transformers' CLIPModel and SiglipModel are converted.
        image_size: pixels; position embeddings of another size are interpolated by open_clip.
        mean, std: of the pixels that the weights were trained with, between 0 and 1.

    Raises:
        BackboneError: if the name or tag is unknown, the file is unreadable, or its weights belong to another
            architecture (the message names what differs).
    """
    architecture = find_architecture(backbone)
    if weights is None:
        return Backbone(architecture, image_size, mean, std)
    location = find_weights(backbone, weights)
    path = location if isinstance(location, Path) else _download(location, backbone, weights)
    state = without_decoder(read_weights(path), architecture)
    activation = _activation(backbone, weights, location, path)
    if (quick := activation.name == QUICK) != bool(architecture.get("quick_gelu")):
        architecture["quick_gelu"] = quick
    model = Backbone(architecture, image_size, mean, std)
    load_weights(model.clip, state, source=str(path))
    return model


def activation_of(backbone: str | dict[str, Any], weights: str | None) -> Activation:
    """Returns the activation that `load_backbone` gives to a model, with its source; downloads nothing.

    Args:
        backbone: name of an open_clip model, or its architecture.
        weights: as in `load_backbone`.

    Raises:
        BackboneError: if the backbone or the weights are unknown, or a file that contains the activation is unreadable.
    """
    if weights is None:
        return named_activation(backbone, find_architecture(backbone))
    location = find_weights(backbone, weights)
    path = location if isinstance(location, Path) else cached_weights(location)
    return _activation(backbone, weights, location, path)


def weights_text(backbone: str | dict[str, Any], weights: str) -> str:
    """Names the weights and the activation that a model starts with, for the log of a run.

    Raises:
        BackboneError: as `activation_of`.
    """
    return f"the backbone has the weights {weights}; its activation is {activation_of(backbone, weights)}"


def _activation(
    backbone: str | dict[str, Any], weights: str, location: Path | dict[str, Any], path: Path | None
) -> Activation:
    """Returns the activation of weights at a location; `path` is their file, None if it was not downloaded yet."""
    named = named_activation(backbone, find_architecture(backbone))
    if isinstance(location, Path) or "snapshot" in location:
        told = told_activation(path) if path else None
    elif location.get("quick_gelu"):
        told = Activation(QUICK, f"from open_clip's tag {weights}")
    else:  # open_clip builds the model of this name
        return Activation(named.name, f"from open_clip's tag {weights} of {backbone}")
    if told is None:
        waits = "" if path else "; the configuration that is downloaded with the weights may name another"
        return named._replace(origin=named.origin + waits)
    if told.name != named.name:
        return told._replace(origin=f"{told.origin}; by model.backbone alone it would be {named.name}")
    return told


def check_weights(backbone: str | dict[str, Any], weights: str, *, image_size: int) -> Path | None:
    """Checks that weights fit a backbone, by the names and sizes of their tensors, and are finite; downloads nothing.

    Returns:
        The file, or the index of a snapshot in parts; None for weights that were not downloaded yet.

    Raises:
        BackboneError: as `load_backbone`.
    """
    location = find_weights(backbone, weights)
    path = location if isinstance(location, Path) else cached_weights(location)
    if path is None:
        return None
    _activation(backbone, weights, location, path)  # raises if the file that contains it is unreadable
    architecture = find_architecture(backbone)
    with torch.device("meta"):
        model = Backbone(architecture, image_size)
    state = without_decoder(read_weights(path), architecture)
    load_weights(model.clip, {name: tensor.to("meta") for name, tensor in state.items()}, source=str(path))
    check_finite(state, source=str(path))
    return path


def unreachable_weights(backbone: str | dict[str, Any], weights: str) -> str:
    """Returns a sentence for the user if weights cannot be downloaded now; empty if their host answers.

    Args:
        backbone: name of the open_clip model.
        weights: a pretrained tag or a repository of the hub that was not downloaded yet.
    """
    entry = find_weights(backbone, weights)
    if isinstance(entry, Path) or not (problem := entry_problem(entry)):
        return ""
    return _by_hand(backbone, weights, entry, problem)


def _by_hand(backbone: str | dict[str, Any], weights: str, entry: dict[str, Any], problem: str) -> str:
    """Returns a sentence: these weights cannot be downloaded because of a problem, and how to get them by hand."""
    if "snapshot" in entry:
        return (
            f"model.weights: {weights} was not downloaded before, and {problem}: run `hf download {entry['snapshot']} "
            f"--local-dir FOLDER` on a machine with network, copy the folder here, and set model.weights to its path "
            f"(the model is at {weights_url(entry)})"
        )
    url, setting = weights_url(entry), "model.weights to its path"
    if entry.get("quick_gelu") and f"{backbone}-quickgelu" in open_clip.list_models():
        setting += f" and model.backbone to {backbone}-quickgelu"  # a plain file does not say how it was trained
    return (
        f"model.weights: {weights!r} of {backbone} was not downloaded before, and {problem}: download {url} on a machine "
        f"with network, copy the file here, and set {setting}"
    )


def count_non_finite(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Returns name -> number of NaN or infinite values, for tensors with such values; those on the meta device have none."""
    checked = {name: tensor for name, tensor in state.items() if tensor.is_floating_point() and not tensor.is_meta}
    counts = {name: int((~tensor.float().isfinite()).sum()) for name, tensor in checked.items()}
    return {name: number for name, number in counts.items() if number}


def check_finite(state: Mapping[str, Tensor], *, source: str) -> None:
    """Checks that no tensor has a value that is NaN or infinite.

    Args:
        state: name -> tensor.
        source: the file of the tensors, for the error message.

    Raises:
        BackboneError: if a tensor has such a value; names the first few tensors, with the number of such values.
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
        source: the file of the weights, for the error message.

    Raises:
        BackboneError: if entries are missing, unknown or of another size; names the first few of each kind. Also if a value
            is not finite, see `check_finite`.
    """
    given = state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    expected = module.state_dict()
    if is_clip := isinstance(module, open_clip.CLIP | open_clip.CustomTextCLIP):
        state = _resize_positions(fit_names(state, expected), module, source=source)
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
        if is_clip and (what := describe_weights(state)):
            lines.append(f"  it holds {what}")
        raise BackboneError(
            f"{source} holds another architecture than the model of this configuration:\n" + "\n".join(lines)
        )
    check_finite(given, source=source)  # with the names in the file
    module.load_state_dict(state)


def _resize_positions(
    state: dict[str, Tensor], module: open_clip.CLIP | open_clip.CustomTextCLIP, *, source: str
) -> dict[str, Tensor]:
    """Returns weights whose position embeddings open_clip has interpolated to the numbers of the model."""
    resized = dict(state)
    for resize in (resize_pos_embed, resize_text_pos_embed):
        # If the positions cannot be resized or are missing, `load_weights` reports it with all other differences.
        with contextlib.suppress(AssertionError, AttributeError, RuntimeError):
            resize(resized, module)
    for name in ("positional_embedding", "text.positional_embedding"):
        if name in state and (before := len(state[name])) != (after := len(resized[name])):
            # Interpolation is usual for images of another size; in a text it moves every word.
            logger.warning(
                f"{source} has positions for {before} tokens of a text, and the model has {after}: open_clip "
                "interpolates the positions, so that the embedding of every text changes. "
                f"Set text_cfg.context_length of model.backbone to {before}"
            )
    return resized


def find_weights(backbone: str | dict[str, Any], weights: str) -> Path | dict[str, Any]:
    """Returns the path of a weights file, or the entry of weights that must be downloaded.

    Args:
        backbone: name of an open_clip model, or its architecture.
        weights: a file, a folder, a pretrained tag or `hf-hub:owner/name`. If a file or folder
            has the name of a tag, the tag is taken.

    Returns:
        For a folder, the file in it, or the index of its parts; for a tag, open_clip's entry; for a repository, `hub_entry`.

    Raises:
        BackboneError: if the weights are none of these, or a folder has several files or none.
    """
    name = backbone.replace("/", "-") if isinstance(backbone, str) else ""
    if tag := open_clip.get_pretrained_cfg(name, weights):
        return tag
    if weights.startswith(HUB):
        return hub_entry(weights)
    path = Path(weights).expanduser()
    try:
        if path.is_file():
            return path
        if path.is_dir():
            return find_in_folder(path)
    except PermissionError as error:
        raise BackboneError(
            f"model.weights: {weights} cannot be read ({error.strerror}): change the permissions"
        ) from error
    if "://" in weights:
        raise BackboneError(
            f"model.weights: {weights} is an address: download the file, and set model.weights to its path"
        )
    if path.suffix in SUFFIXES or "/" in weights:
        raise BackboneError(
            f"model.weights: there is no file {weights}: put the weights there, or set model.weights to their file, to a "
            "pretrained tag, or to null for random weights"
        )
    tags = open_clip.list_pretrained_tags_by_model(name)
    raise BackboneError(
        f"model.weights: {weights!r} is neither a file nor a pretrained tag of {name or 'this architecture'}"
        + (f"; its tags: {', '.join(tags)}" if tags else "; give a file, or null for random weights")
    )


def _download(entry: dict[str, Any], backbone: str | dict[str, Any], weights: str) -> Path:
    """Returns the file of weights, after a download if it was not downloaded before."""
    if path := cached_weights(entry):  # open_clip would ask the hub whether the file has changed
        return path
    if problem := entry_problem(entry):
        raise BackboneError(_by_hand(backbone, weights, entry, problem))
    try:
        return download(entry)
    except Exception as error:  # the network and the hub raise many kinds, with one remedy for the user
        problem = f"the download failed ({type(error).__name__}: {next(iter(str(error).splitlines()), '')})"
        raise BackboneError(_by_hand(backbone, weights, entry, problem)) from error


def read_sizes(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a .safetensors file by name, on the meta device: without their values."""
    with safe_open(path, "pt") as file:
        return {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118 (not a dict)
