"""Describes weights that do not fit a model, by the names and shapes of their tensors."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import open_clip
from torch import Tensor

_IMPORT = "turn it into a run with `waver import`"


@dataclass(frozen=True)
class _Kind:
    """A kind of weights, known by its names: all of `every` occur, at least one of `some`, and none of `never`."""

    what: str
    every: tuple[str, ...] = ()
    some: tuple[str, ...] = ()
    never: tuple[str, ...] = ()


_KINDS = (
    _Kind(
        "a checkpoint of waver: evaluate it or search with it as a run; model.weights takes a backbone alone",
        ("backbone.clip.",),
    ),
    _Kind(
        "LoRA adapters without their model: merge them into it (peft: merge_and_unload), and save the result",
        some=(".lora_A.", ".lora_B.", ".lora_a.", ".lora_b.", ".lora_down.", ".lora_up.", "lora_embedding_A"),
    ),
    _Kind("the state of an optimizer, without weights of a model", some=(".exp_avg", "exp_avg_sq", "momentum_buffer")),
    _Kind(f"a checkpoint of DRL: {_IMPORT}", ("clip.visual.",), ("text_weight_fc", "video_weight_fc")),
    _Kind(
        "a checkpoint of X-CLIP, whose learned similarity waver does not have",
        ("clip.visual.",),
        ("global_mat_weight", "word_logit_weight", "frame_logit_weight", "local_mat_weight"),
    ),
    _Kind(
        f"a checkpoint of CLIP4Clip or of code that derives from it: {_IMPORT}",
        ("clip.visual.",),
        ("transformerClip.", "frame_position_embeddings", "lstm_visual", "similarity_dense"),
    ),
    _Kind(
        "the X-CLIP of Microsoft for recognising videos, which waver has no model for",
        some=("prompts_generator.", "mit."),
    ),
    _Kind("BLIP-2 or InstructBLIP, which waver has no model for", some=("query_tokens", "Qformer.", "qformer.")),
    _Kind("BLIP or ALBEF, which waver has no model for", some=("visual_encoder.", "text_decoder.bert.")),
    _Kind("BLIP in transformers' names, which waver has no model for", ("vision_model.",), ("text_decoder.",)),
    _Kind(
        "CoCa, with a decoder of captions: set model.backbone to its name, such as coca_ViT-B-32",
        ("visual.", "text_decoder."),
    ),
    _Kind(
        "a diffusion model, which embeds no videos", some=("model.diffusion_model.", "diffusion_model.", "down_blocks.")
    ),
    _Kind("a language model, alone or with a vision tower", some=("lm_head.", "language_model.", "embed_tokens.")),
    _Kind(
        "MobileCLIP in the names of Apple's own code: take the pretrained tag of open_clip, which has the same weights",
        ("image_encoder.model.",),
    ),
    _Kind(
        "EVA-CLIP in the names of its own code: take the pretrained tag of open_clip, which has the same weights",
        ("visual.blocks.", "text."),
    ),
)
"""Checked in this order."""
_TOWERS = (
    _Kind(
        "a text tower alone, of transformers", ("embeddings.token_embedding.",), never=("embeddings.patch_embedding.",)
    ),
    _Kind(
        "a vision tower alone, of transformers",
        ("embeddings.patch_embedding.",),
        never=("embeddings.token_embedding.",),
    ),
    _Kind(
        "a text encoder alone (BERT, RoBERTa or similar)",
        some=("word_embeddings.", "encoder.layer.0.attention.self."),
        never=("visual.", "vision_model."),
    ),
    _Kind("a text encoder alone (T5)", ("shared.weight", "encoder.block."), never=("visual.", "vision_model.")),
    _Kind("a vision tower alone (timm's ViT, DINO or similar)", ("patch_embed.", "blocks."), never=("visual.", "text")),
    _Kind("a vision tower alone (a ResNet for classification)", ("layer1.", "fc.weight"), never=("visual.", "text")),
    _Kind("the vision tower of an open_clip model alone", ("visual.",), never=("transformer.", "text.")),
    _Kind("the text tower of an open_clip model alone", some=("token_embedding.",), never=("visual.", "vision_model.")),
)


def describe_weights(state: Mapping[str, Tensor]) -> str:
    """Returns what weights are and, for some kinds, what to do with them.

    Args:
        state: name -> tensor, without the prefixes of training code.

    Returns:
        A phrase such as "a text tower alone, of transformers"; empty if the names are of no known kind.
    """
    kind = next((kind.what for kind in (*_KINDS, *_TOWERS) if _is(kind, state)), "")
    if kind or not {"text_model", "vision_model"} <= {name.split(".")[0] for name in state}:
        return kind or _describe_clip(state)
    patches = state.get("vision_model.embeddings.patch_embedding.weight")
    if patches is not None and patches.ndim == 2:
        return "SigLIP 2 for images of any size (NaFlex), which open_clip has no model for: take one of a fixed size"
    return "a model of transformers that is neither CLIPModel nor SiglipModel, or that has other parts than these"


def _is(kind: _Kind, state: Mapping[str, Tensor]) -> bool:
    def occurs(part: str) -> bool:
        return any(
            name.startswith(part) or (part.startswith(".") and part in name) or f".{part}" in name for name in state
        )

    return (
        all(map(occurs, kind.every))
        and (not kind.some or any(map(occurs, kind.some)))
        and not any(map(occurs, kind.never))
    )


def _describe_clip(state: Mapping[str, Tensor]) -> str:
    """Names the models of open_clip that have the sizes of a CLIP's weights; empty if there is none."""
    sizes = _sizes_of_state(state)
    if sizes is None:
        return ""
    names = [name for name in open_clip.list_models() if _sizes_of_model(open_clip.get_model_config(name)) == sizes]
    if not names:
        return ""
    return f"weights whose sizes are those of {', '.join(names)}: is model.backbone one of these?"


def _sizes_of_state(state: Mapping[str, Tensor]) -> tuple[int, ...] | None:
    """Returns widths, layers, patch size, vocabulary and D of a CLIP with a vision transformer; None for other weights."""
    place = "text." if "text.token_embedding.weight" in state else ""
    try:
        patches, words = state["visual.conv1.weight"], state[f"{place}token_embedding.weight"]
        num_blocks = [
            len(
                {
                    name
                    for name in state
                    if name.startswith(f"{tower}transformer.resblocks.") and name.endswith("ln_1.weight")
                }
            )
            for tower in ("visual.", place)
        ]
        embed_dim = state["visual.proj"].shape[1]
    except (KeyError, IndexError):
        return None
    if patches.ndim != 4:
        return None
    return (patches.shape[0], patches.shape[-1], *num_blocks, words.shape[1], words.shape[0], embed_dim)


def _sizes_of_model(architecture: dict[str, Any]) -> tuple[int, ...] | None:
    """Returns the same sizes as `_sizes_of_state`, from the description of a model; None for models with other parts."""
    vision, text = architecture["vision_cfg"], architecture["text_cfg"]
    others = "timm_model_name" in vision or "hf_model_name" in text or "multimodal_cfg" in architecture
    if others or not isinstance(vision.get("layers"), int):
        return None
    num_words, layers = text.get("vocab_size", 49408), text.get("layers", 12)
    sizes = (vision["width"], vision.get("patch_size", 16), vision["layers"], layers, text.get("width", 512), num_words)
    return (*sizes, architecture["embed_dim"])
