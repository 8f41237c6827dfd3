"""The backbone: a CLIP network from open_clip whose towers return one embedding per text token and per frame."""

import copy
import difflib
from typing import Any

import open_clip
import torch
from jaxtyping import Bool, Float, Int, UInt8
from open_clip.transformer import TextTransformer
from torch import Tensor, nn

from waver.tools.errors import WaverError


class BackboneError(WaverError):
    """The configured backbone, or its weights, cannot be used."""


class Backbone(nn.Module):
    """The two towers of an open_clip model, with one embedding per text token and per frame.

    Attributes:
        architecture: open_clip's description of the network (embed_dim, vision_cfg, text_cfg), sufficient to rebuild it.
        width: D, dimension of the common embedding space.

    Raises:
        BackboneError: if open_clip cannot build the network, or waver cannot use its towers.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, architecture: dict[str, Any], image_size: int):
        super().__init__()
        self.architecture = copy.deepcopy(architecture)
        vision, words = self.architecture["vision_cfg"], self.architecture["text_cfg"]
        if "timm_model_name" in vision and vision.get("image_size", 224) != image_size:
            raise BackboneError(
                f"model.backbone: its vision tower {vision['timm_model_name']} takes images of "
                f"{vision.get('image_size', 224)} pixels only: set video.size to that"
            )
        if foreign := words.get("hf_tokenizer_name", words.get("hf_model_name")):
            raise BackboneError(
                f"model.backbone: its words need the tokenizer {foreign}, waver reads texts with CLIP's "
                "byte pairs; choose a model that does so too, such as ViT-B-32, ViT-L-14 or MobileCLIP-B"
            )
        vision["image_size"] = image_size
        # open_clip's modules set most of their attributes dynamically, without types.
        self.clip: Any = _build(self.architecture)
        text = getattr(self.clip, "text", self.clip)
        if not isinstance(text, TextTransformer | open_clip.CLIP) or getattr(text, "cls_emb", None) is not None:
            raise BackboneError(
                f"model.backbone: its text tower ({type(text).__name__}) gives no embedding for each word; "
                "choose a model with open_clip's own text transformer, such as ViT-B-32 or ViT-L-14"
            )
        if getattr(self.clip, "logit_bias", None) is not None:
            # Only SigLIP's loss uses it: a softmax over similarities does not depend on it.
            self.clip.logit_bias.requires_grad_(False)
        self.width: int = self.architecture["embed_dim"]
        self.register_buffer(
            "pixel_mean", _channels(self.clip.visual, "image_mean", open_clip.OPENAI_DATASET_MEAN), persistent=False
        )
        self.register_buffer(
            "pixel_std", _channels(self.clip.visual, "image_std", open_clip.OPENAI_DATASET_STD), persistent=False
        )

    @property
    def text(self) -> Any:
        """The module with the parts of the text tower: open_clip keeps them in the model itself or in `.text`."""
        return getattr(self.clip, "text", self.clip)

    @property
    def num_positions(self) -> int:
        """Context length of the text tower: its number of position embeddings."""
        return self.text.positional_embedding.shape[0]

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens that the text tower embeds."""
        return self.text.token_embedding.num_embeddings

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the factor on similarities in the loss (the inverse temperature of the softmax)."""
        return self.clip.logit_scale

    def pixels(self, frames: UInt8[Tensor, "*M 3 H W"]) -> Float[Tensor, "*M 3 H W"]:
        """Normalises uint8 frames with the mean and standard deviation that the network was trained with."""
        return (frames.float() / 255 - self.pixel_mean) / self.pixel_std

    def encode_frames(self, pixels: Float[Tensor, "B F 3 H W"], mask: Bool[Tensor, "B F"]) -> Float[Tensor, "B F D"]:
        """Embeds each valid frame (for a ViT: its class token after ln_post and projection); 0 at masked positions."""
        encoded = self.clip.encode_image(pixels[mask])
        return encoded.new_zeros(*mask.shape, encoded.shape[-1]).masked_scatter(mask[..., None], encoded)

    def encode_tokens(self, token_ids: Int[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        """Embeds every token of the texts (after ln_final and projection); N may be less than the context length."""
        text, length = self.text, token_ids.shape[1]
        dtype = text.transformer.get_cast_dtype()
        values = text.token_embedding(token_ids).to(dtype) + text.positional_embedding[:length].to(dtype)
        causal = None if text.attn_mask is None else text.attn_mask[:length, :length]
        values = text.ln_final(text.transformer(values, attn_mask=causal))
        projection = text.text_projection
        if projection is None:
            return values
        return projection(values) if isinstance(projection, nn.Linear) else values @ projection


def find_architecture(backbone: str | dict[str, Any]) -> dict[str, Any]:
    """Returns a copy of open_clip's description of a network.

    Args:
        backbone: name of an open_clip model, or the description itself (embed_dim, vision_cfg, text_cfg).

    Raises:
        BackboneError: if the name is unknown or the description incomplete.
    """
    if isinstance(backbone, dict):
        missing = {"embed_dim", "vision_cfg", "text_cfg"} - backbone.keys()
        if missing:
            raise BackboneError(
                f"model.backbone: a mapping needs embed_dim, vision_cfg and text_cfg; missing: {', '.join(sorted(missing))}"
            )
        for part in ("vision_cfg", "text_cfg"):
            if not isinstance(backbone[part], dict):
                raise BackboneError(
                    f"model.backbone.{part}: {backbone[part]!r} is no mapping: write the tower's settings as in open_clip's "
                    "model configurations"
                )
        return copy.deepcopy(backbone)
    if ":" in backbone:  # open_clip would read the architecture from a hub or a folder
        raise BackboneError(
            f"model.backbone: {backbone!r} is neither the name of an open_clip model, such as ViT-B-32, nor a mapping: set "
            "it to the name of the architecture, and model.weights to the file of the weights"
        )
    architecture = open_clip.get_model_config(backbone.replace("/", "-"))
    if architecture is None:
        near = difflib.get_close_matches(backbone, open_clip.list_models(), 3, 0.4)
        raise BackboneError(f"model.backbone: open_clip knows no {backbone!r}; near: {', '.join(near)}")
    return architecture


def _build(architecture: dict[str, Any]) -> nn.Module:
    config = copy.deepcopy(architecture)
    custom_text = config.pop("custom_text", False) or "hf_model_name" in config["text_cfg"]
    if "multimodal_cfg" in config:
        raise BackboneError(
            "model.backbone: CoCa models have a caption decoder that retrieval does not use; choose a CLIP model"
        )
    if "timm_model_name" in config["vision_cfg"]:
        if ":" in str(config["vision_cfg"]["timm_model_name"]):
            raise BackboneError(
                f"model.backbone: {config['vision_cfg']['timm_model_name']} would be fetched from a hub; name a model that "
                "timm itself has"
            )
        config["vision_cfg"]["timm_model_pretrained"] = False  # our weights come from model.weights alone
    try:
        return (open_clip.CustomTextCLIP if custom_text else open_clip.CLIP)(**config)
    except Exception as error:  # a mapping may be wrong in any way
        raise BackboneError(f"model.backbone: open_clip cannot build it: {error}") from error


def _channels(visual: nn.Module, name: str, default: tuple[float, ...]) -> Tensor:
    return torch.tensor(getattr(visual, name, None) or default).view(3, 1, 1)
