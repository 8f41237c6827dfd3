"""The backbone: a CLIP network from open_clip whose towers return one embedding per text token and per frame."""

import copy
from typing import Any

import open_clip
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from waver.model.architecture import CONTEXT_LENGTH, embeds_tokens, has_decoder, locate_parts
from waver.model.errors import BackboneError


class Backbone(nn.Module):
    """The two towers of an open_clip model, with one embedding per text token and per frame.

    Attributes:
        architecture: open_clip's description of the network (embed_dim, vision_cfg, text_cfg), sufficient to rebuild it.
        embeds_tokens: whether the text tower gives an embedding of each token, not only one of the whole text.
        width: D, dimension of the common embedding space.

    Raises:
        BackboneError: if open_clip cannot build the network, or waver cannot use its towers.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        architecture: dict[str, Any],
        image_size: int,
        mean: tuple[float, float, float] = open_clip.OPENAI_DATASET_MEAN,
        std: tuple[float, float, float] = open_clip.OPENAI_DATASET_STD,
    ):
        super().__init__()
        self.architecture = copy.deepcopy(architecture)
        vision = self.architecture["vision_cfg"]
        if "timm_model_name" in vision and vision.get("image_size", 224) != image_size:
            raise BackboneError(
                f"model.backbone: its vision tower {vision['timm_model_name']} takes images of "
                f"{vision.get('image_size', 224)} pixels only: set video.size to this number, or to null"
            )
        vision["image_size"] = image_size
        # open_clip's modules set most of their attributes dynamically, without types.
        self.clip: Any = _build(self.architecture)
        self.embeds_tokens = embeds_tokens(self.architecture)
        if getattr(self.clip, "logit_bias", None) is not None:
            # Only SigLIP's loss uses it: a softmax over similarities does not depend on it.
            self.clip.logit_bias.requires_grad_(False)
        self.width: int = self.architecture["embed_dim"]
        self.register_buffer("pixel_mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def text(self) -> Any:
        """The module with the parts of the text tower: open_clip keeps them in the model itself or in `.text`."""
        return getattr(self.clip, "text", self.clip)

    @property
    def num_positions(self) -> int:
        """Context length of the text tower: the number of tokens that it reads."""
        return self.architecture["text_cfg"].get("context_length", CONTEXT_LENGTH)

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens that the text tower embeds."""
        return self.text.vocab_size if hasattr(self.text, "vocab_size") else self.text.token_embedding.num_embeddings

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

    def encode_tokens(self, token_ids: Int[Tensor, "B T"], mask: Bool[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        """Embeds every token of the texts (after ln_final and projection).

        The last valid token of a text gets the embedding that open_clip computes for the whole text. If the tower does not
        embed tokens, all tokens get it.

        Args:
            token_ids: may be longer than the mask, by padding: some towers read it, see `Tokenizer.pad`.
            mask: True for the valid tokens, which come first.
        """
        num_tokens = mask.shape[1]
        if not self.embeds_tokens:
            return self.clip.encode_text(token_ids)[:, None].expand(-1, num_tokens, -1)
        text, length = self.text, token_ids.shape[1]
        dtype = text.transformer.get_cast_dtype()
        values = text.token_embedding(token_ids).to(dtype) + text.positional_embedding[:length].to(dtype)
        attention = None if text.attn_mask is None else text.attn_mask[:length, :length]
        if getattr(text, "use_pad_mask", False):
            attention = text._build_additive_mask(token_ids, length, values.dtype)
        values = text.ln_final(text.transformer(values, attn_mask=attention))
        place = _place_of_sentence(text, length)
        sentence = None if place is None else values[:, place, None]
        values = values[:, :num_tokens]
        if sentence is not None:
            last = torch.arange(num_tokens, device=mask.device) == mask.sum(dim=1, keepdim=True) - 1
            values = torch.where(last[..., None], sentence, values)
        projection = text.text_projection
        if projection is None:
            return values
        return projection(values) if isinstance(projection, nn.Linear) else values @ projection


def _place_of_sentence(text: Any, length: int) -> int | None:
    """Returns the position whose embedding is that of the whole text; None if it is the end token, wherever that is."""
    pooling = getattr(text, "pool_type", None) or text.text_pool_type
    return {"first": 0, "last": length - 1}.get(pooling)


def _build(architecture: dict[str, Any]) -> nn.Module:
    config = copy.deepcopy(architecture)
    vision, text = config["vision_cfg"], config["text_cfg"]
    separate = config.pop("custom_text", False) or "hf_model_name" in text
    if has_decoder(config):
        separate = True
        del config["multimodal_cfg"]
        vision["output_tokens"] = text["output_tokens"] = False  # only the decoder needs them
    if "timm_model_name" in vision:
        if ":" in str(vision["timm_model_name"]):
            raise BackboneError(
                f"model.backbone: {vision['timm_model_name']} is no model of timm, but a place to download one from: name a "
                "model that timm has"
            )
        vision["timm_model_pretrained"] = False  # our weights come from model.weights alone
    if "hf_model_name" in text:
        text["hf_model_pretrained"] = False
        text["hf_model_name"] = locate_parts(text["hf_model_name"], "config.json", what="its text tower")
    try:
        return (open_clip.CustomTextCLIP if separate else open_clip.CLIP)(**config)
    except Exception as error:  # a mapping may be wrong in any way
        raise BackboneError(f"model.backbone: open_clip cannot build this network: {error}") from error
