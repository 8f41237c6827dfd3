"""Gives weights the names and shapes of open_clip's modules, from those of transformers and of older versions of open_clip.

transformers keeps queries, keys and values apart where open_clip and timm join them, and projections as linear layers where
open_clip keeps matrices, which are their transposes.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from waver.model.architecture import has_decoder

_OPEN_CLIP_PARTS = {
    "layer_norm1": "ln_1.",
    "layer_norm2": "ln_2.",
    "self_attn.in_proj": "attn.in_proj_",
    "self_attn.out_proj": "attn.out_proj.",
    "mlp.fc1": "mlp.c_fc.",
    "mlp.fc2": "mlp.c_proj.",
}
"""Parts of a layer of transformers -> of a residual block of open_clip."""
_TIMM_PARTS = {
    "layer_norm1": "norm1.",
    "layer_norm2": "norm2.",
    "self_attn.in_proj": "attn.qkv.",
    "self_attn.out_proj": "attn.proj.",
    "mlp.fc1": "mlp.fc1.",
    "mlp.fc2": "mlp.fc2.",
}
"""Parts of a layer of transformers -> of a block of timm's vision transformer."""
_CLIP = {
    "logit_scale": "logit_scale",
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection.weight",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",  # misspelt by transformers
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "visual_projection.weight": "visual.proj.weight",
}
"""Tensors of transformers' CLIPModel outside its layers -> of open_clip's CLIP."""
_SIGLIP_HEAD = {
    f"vision_model.head.{theirs}.{kind}": f"visual.trunk.attn_pool.{ours}.{kind}"
    for theirs, ours in {
        "attention.out_proj": "proj",
        "layernorm": "norm",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }.items()
    for kind in ("weight", "bias")
}
_SIGLIP = {
    "logit_scale": "logit_scale",
    "logit_bias": "logit_bias",
    "text_model.embeddings.token_embedding.weight": "text.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "text.positional_embedding",
    "text_model.final_layer_norm.weight": "text.ln_final.weight",
    "text_model.final_layer_norm.bias": "text.ln_final.bias",
    "text_model.head.weight": "text.text_projection.weight",
    "text_model.head.bias": "text.text_projection.bias",
    "vision_model.embeddings.patch_embedding.weight": "visual.trunk.patch_embed.proj.weight",
    "vision_model.embeddings.patch_embedding.bias": "visual.trunk.patch_embed.proj.bias",
    "vision_model.embeddings.position_embedding.weight": "visual.trunk.pos_embed",
    "vision_model.post_layernorm.weight": "visual.trunk.norm.weight",
    "vision_model.post_layernorm.bias": "visual.trunk.norm.bias",
    "vision_model.head.probe": "visual.trunk.attn_pool.latent",
    "vision_model.head.attention.in_proj_weight": "visual.trunk.attn_pool.qkv.weight",
    "vision_model.head.attention.in_proj_bias": "visual.trunk.attn_pool.qkv.bias",
    **_SIGLIP_HEAD,
}
"""Tensors of transformers' SiglipModel outside its layers -> of open_clip's SigLIP, whose vision tower is timm's."""
_POOL = "visual.trunk.attn_pool."
_TEXT_PARTS = re.compile(r"(token_embedding|positional_embedding|transformer|ln_final|text_projection|cls_emb)(\.|$)")
"""Names of the text tower's parts, where open_clip keeps them in the model itself."""


def fit_names(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts weights to the names and shapes of an open_clip model, as far as they are known to mean the same.

    Args:
        state: name -> tensor, as in a file.
        expected: the state dict of the model; only its names and shapes are used.

    Returns:
        name -> tensor. Unknown names are kept, so that the caller can say what does not fit.
    """
    fitted = _from_transformers(state)
    fitted = {name: tensor for name, tensor in fitted.items() if name in expected or not name.endswith("position_ids")}
    fitted = _place_text_tower(fitted, expected)
    for name in ("text_projection", "text.text_projection", "visual.proj"):
        if name in expected and name not in fitted and f"{name}.weight" in fitted:
            fitted[name] = fitted.pop(f"{name}.weight").t().contiguous()
    if "logit_bias" in expected and "logit_bias" not in fitted:  # the file is of a model trained with a softmax
        fitted["logit_bias"] = torch.zeros_like(expected["logit_bias"])
    for name in ("logit_scale", "logit_bias"):  # a number in some versions, a vector of one in others
        if name in expected and name in fitted and fitted[name].numel() == 1:
            fitted[name] = fitted[name].reshape(expected[name].shape)
    return fitted


def without_decoder(state: Mapping[str, Tensor], architecture: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns weights without those of CoCa's decoder of captions, which retrieval does not use.

    Args:
        state: name -> tensor.
        architecture: open_clip's description of the model; `multimodal_cfg` describes the decoder.
    """
    if not has_decoder(architecture):
        return dict(state)
    return {name: tensor for name, tensor in state.items() if not name.startswith("text_decoder.")}


def is_siglip(state: Mapping[str, Tensor]) -> bool:
    """Returns whether weights have the names of transformers' SiglipModel."""
    return "vision_model.head.probe" in state or "text_model.head.weight" in state


def _from_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Converts the names of a CLIPModel or SiglipModel; returns others, and those with unknown parts, as they are."""
    towers = {name.split(".")[0] for name in state}
    if not {"text_model", "vision_model"} <= towers:
        return dict(state)
    siglip = is_siglip(state)
    converted: dict[str, Tensor] = {}
    for name, tensor in _join_attention(state).items():
        if name.endswith("position_ids"):
            continue
        new = (_SIGLIP if siglip else _CLIP).get(name) or _rename_layer(name, siglip=siglip)
        if new is None:
            return dict(state)
        converted[new] = tensor
    return _shape_siglip(converted) if siglip else converted


def _join_attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Joins queries, keys and values of each layer, in this order; leaves a layer that lacks one of them as it is."""
    joined = dict(state)
    for name in state:
        if ".self_attn.q_proj." not in name:
            continue
        three = [name.replace(".q_proj.", f".{part}_proj.") for part in "qkv"]
        if all(part in state for part in three):
            joined[name.replace(".q_proj.", ".in_proj.")] = torch.cat([joined.pop(part) for part in three])
    return joined


def _rename_layer(name: str, *, siglip: bool) -> str | None:
    """Returns the name of a tensor in a layer of transformers in open_clip; None if it is no such tensor."""
    match = re.fullmatch(r"(text_model|vision_model)\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if not match:
        return None
    tower, number, part, kind = match.groups()
    timm = siglip and tower == "vision_model"
    new = (_TIMM_PARTS if timm else _OPEN_CLIP_PARTS).get(part)
    if new is None:
        return None
    if timm:
        return f"visual.trunk.blocks.{number}.{new}{kind}"
    place = "visual." if tower == "vision_model" else "text." if siglip else ""
    return f"{place}transformer.resblocks.{number}.{new}{kind}"


def _shape_siglip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gives positions and attention pooling the shapes of timm, which keeps the queries of the pooling apart."""
    shaped = dict(state)
    if (positions := shaped.get("visual.trunk.pos_embed")) is not None:
        shaped["visual.trunk.pos_embed"] = positions[None]
    for kind in ("weight", "bias"):
        if (qkv := shaped.pop(f"{_POOL}qkv.{kind}", None)) is not None:
            width = len(qkv) // 3
            shaped[f"{_POOL}q.{kind}"], shaped[f"{_POOL}kv.{kind}"] = qkv[:width], qkv[width:]
    return shaped


def _place_text_tower(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames the text tower as the model does: with `text.` before each name, or without."""
    name = "positional_embedding"
    if name in state and name not in expected and f"text.{name}" in expected:
        return {f"text.{key}" if _TEXT_PARTS.match(key) else key: tensor for key, tensor in state.items()}
    if f"text.{name}" in state and f"text.{name}" not in expected and name in expected:
        moved = {key.removeprefix("text."): tensor for key, tensor in state.items()}
        return moved if len(moved) == len(state) else state
    return state
