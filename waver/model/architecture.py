"""open_clip's description of a network: `embed_dim`, `vision_cfg`, `text_cfg`."""

import copy
import difflib
import importlib.util
from pathlib import Path
from typing import Any

import open_clip

from waver.model.errors import BackboneError
from waver.model.pretrained.snapshots import read_architecture
from waver.tools.hub import find_cached, hub_problem, is_downloaded

CONTEXT_LENGTH = 77
"""Number of tokens that a text tower reads if its description does not contain it."""


def find_architecture(backbone: str | dict[str, Any]) -> dict[str, Any]:
    """Returns a copy of open_clip's description of a network.

    Args:
        backbone: name of an open_clip model, `hf-hub:owner/name` or the folder of a downloaded model, or the description
            itself (embed_dim, vision_cfg, text_cfg).

    Raises:
        BackboneError: if the name is unknown or the description incomplete.
        HubError: if the hub does not answer.
    """
    if isinstance(backbone, dict):
        return _complete(copy.deepcopy(backbone))
    if is_downloaded(backbone):
        return _complete(read_architecture(backbone))
    if ":" in backbone:  # open_clip would read the architecture from elsewhere
        raise BackboneError(
            f"model.backbone: {backbone!r} is neither the name of an open_clip model, such as ViT-B-32, nor "
            "hf-hub:owner/name, a folder or a mapping"
        )
    architecture = open_clip.get_model_config(backbone.replace("/", "-"))
    if architecture is None:
        near = difflib.get_close_matches(backbone, open_clip.list_models(), 3, 0.4)
        names = f"similar names: {', '.join(near)}" if near else "open_clip.list_models() names all"
        raise BackboneError(f"model.backbone: open_clip has no model {backbone!r}; {names}")
    return architecture


def _complete(architecture: dict[str, Any]) -> dict[str, Any]:
    """Returns the description, after a check that it has both towers and the width of the common space."""
    missing = {"embed_dim", "vision_cfg", "text_cfg"} - architecture.keys()
    if missing:
        raise BackboneError(
            f"model.backbone: a mapping needs embed_dim, vision_cfg and text_cfg; missing: {', '.join(sorted(missing))}"
        )
    for part in ("vision_cfg", "text_cfg"):
        if not isinstance(architecture[part], dict):
            raise BackboneError(
                f"model.backbone.{part} = {architecture[part]!r} is no mapping: write the settings as in open_clip's "
                "model configurations"
            )
    return architecture


def has_decoder(architecture: dict[str, Any]) -> bool:
    """Returns whether a network has a decoder of captions beside its two towers, as CoCa has; waver does not use it."""
    return "multimodal_cfg" in architecture


def embeds_tokens(architecture: dict[str, Any]) -> bool:
    """Returns whether the text tower gives an embedding of each token, not only one of the whole text."""
    text = architecture["text_cfg"]
    return not text.get("hf_model_name") and not text.get("embed_cls")


def reads_padding(architecture: dict[str, Any]) -> bool:
    """Returns whether the result of the text tower depends on padding, so that every text is padded to its context length.

    This is so if tokens attend to later tokens, or if a class token follows the padding.
    """
    text = architecture["text_cfg"]
    return not text.get("hf_model_name") and bool(text.get("no_causal_mask") or text.get("embed_cls"))


def locate_parts(name: str, *files: str, what: str) -> str:
    """Returns where transformers can load a repository from: a folder on this machine, else the hub, which has answered.

    Without this check, transformers would ask an unreachable hub for half a minute, even for files in its cache.

    Args:
        name: name of the repository, or a folder.
        files: the repository was downloaded before if one of these files is in the cache.
        what: the part of the backbone that the repository holds, for the error message.

    Returns:
        The folder; or the name, which transformers then downloads.

    Raises:
        BackboneError: if transformers is not installed, or the hub does not answer.
    """
    if importlib.util.find_spec("transformers") is None:
        raise BackboneError(f"model.backbone: {what} {name} needs transformers: pip install 'waver[hf]'")
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(folder)
    if cached := find_cached(name, *files):
        return str(cached.parent)
    if problem := hub_problem():
        raise BackboneError(
            f"model.backbone: {what} {name} was not downloaded before, and {problem}: download the repository on a machine "
            "with network, copy its folder here, and write model.backbone as a mapping with the folder in place of the name"
        )
    return name
