"""Reads the architecture of a downloaded model from the files beside its weights, as open_clip's description of a network.

A repository in open_clip's layout contains this description, in `open_clip_config.json`. For a repository in the layout of
transformers, the description is made from the numbers of CLIP or SigLIP in `config.json`.
"""

from collections.abc import Mapping
from typing import Any, Literal

import open_clip

from waver.model.errors import BackboneError
from waver.tools.hub import read_beside

# Values of settings that config.json leaves out (transformers' CLIPTextConfig and CLIPVisionConfig).
_CLIP_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}
_CLIP_VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
}
_EPSILON = 1e-5
"""Epsilon of CLIP's layer norms."""
# The same for SiglipTextConfig and SiglipVisionConfig: the settings that distinguish the models of open_clip.
_SIGLIP_TEXT = {"vocab_size": 32000, "hidden_size": 768, "max_position_embeddings": 64}
_SIGLIP_VISION = {"hidden_size": 768, "image_size": 224, "patch_size": 16}


def read_architecture(place: str) -> dict[str, Any]:
    """Returns open_clip's description of a downloaded model.

    Args:
        place: `hf-hub:owner/name`, or a folder.

    Raises:
        BackboneError: if nothing beside the weights describes a model that open_clip has.
        HubError: if the hub does not answer, or a file is damaged.
    """
    if (described := read_beside(place, "open_clip_config.json")) is not None:
        architecture = described.get("model_cfg", described)
        if isinstance(architecture, dict):
            return architecture
    elif (described := read_beside(place, "config.json")) is not None:
        text, vision = (tower_settings(described, tower) for tower in ("text", "vision"))
        if described.get("model_type") == "clip":
            return _of_clip(described, _CLIP_TEXT | text, _CLIP_VISION | vision)
        if described.get("model_type") in ("siglip", "siglip2"):
            return _of_siglip(place, _SIGLIP_TEXT | text, _SIGLIP_VISION | vision)
        raise BackboneError(
            f"model.backbone: {place} holds a model of type {described.get('model_type')!r}, and waver reads only the types "
            "clip and siglip: choose another model"
        )
    raise BackboneError(
        f"model.backbone: {place} has no open_clip_config.json and no config.json that describes a model: set "
        "model.backbone to the name of its architecture in open_clip, such as ViT-B-32, and model.weights to this place"
    )


def tower_settings(described: Mapping[str, Any], tower: Literal["text", "vision"]) -> dict[str, Any]:
    """Returns the settings of a tower in transformers' config.json; empty if it has none."""
    # Older versions wrote the settings of the towers twice; those in `*_dict` are valid.
    return (described.get(f"{tower}_config") or {}) | (described.get(f"{tower}_config_dict") or {})


def _of_clip(described: Mapping[str, Any], text: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    activations = {text["hidden_act"], vision["hidden_act"]}
    if not activations <= {"gelu", "quick_gelu"} or len(activations) > 1:
        raise BackboneError(
            f"model.backbone: its config.json has the activations {', '.join(sorted(activations))}; open_clip's towers have "
            "gelu or quick_gelu, both the same"
        )
    return {
        "embed_dim": described.get("projection_dim", 512),
        "quick_gelu": activations == {"quick_gelu"},
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "layers": vision["num_hidden_layers"],
            "width": vision["hidden_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
            **_norms(vision),
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "layers": text["num_hidden_layers"],
            "width": text["hidden_size"],
            "heads": text["num_attention_heads"],
            "mlp_ratio": text["intermediate_size"] / text["hidden_size"],
            **_norms(text),
        },
    }


def _norms(tower: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the epsilon of a tower's layer norms as a setting of open_clip; empty for the usual one."""
    epsilon = tower.get("layer_norm_eps", _EPSILON)
    return {} if epsilon == _EPSILON else {"norm_kwargs": {"eps": epsilon}}


def _of_siglip(place: str, text: Mapping[str, Any], vision: Mapping[str, Any]) -> dict[str, Any]:
    """Returns open_clip's own description of the SigLIP model with these numbers."""
    numbers = (
        vision["hidden_size"],
        vision["image_size"],
        vision["patch_size"],
        text["vocab_size"],
        text["max_position_embeddings"],
    )
    for name in open_clip.list_models():
        architecture = open_clip.get_model_config(name)
        if "SigLIP" in name and architecture and _siglip_numbers(architecture) == numbers:
            return architecture
    raise BackboneError(
        f"model.backbone: {place} holds a SigLIP model of width {numbers[0]} for {numbers[1]} pixels in patches of "
        f"{numbers[2]}, with {numbers[3]} tokens and {numbers[4]} positions, which open_clip "
        f"{open_clip.__version__} does not have: choose another model"
    )


def _siglip_numbers(architecture: Mapping[str, Any]) -> tuple[int, ...]:
    vision, text = architecture["vision_cfg"], architecture["text_cfg"]
    patch = next(part for part in vision["timm_model_name"].split("_") if part.startswith("patch"))
    return (
        architecture["embed_dim"],
        vision["image_size"],
        int(patch.removeprefix("patch")),
        text["vocab_size"],
        text["context_length"],
    )
