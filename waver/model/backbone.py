"""The CLIP network from open_clip: building it, loading its weights, and its towers token by token."""

import contextlib
import copy
import difflib
import functools
import warnings
from pathlib import Path
from typing import Any

import open_clip
import torch
from jaxtyping import Bool, Float, Int, UInt8
from open_clip.transformer import TextTransformer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from waver.tools.archives import check_size, is_torchscript, without_actions
from waver.tools.errors import WaverError

VOCABULARY_SIZE = 49408
"""Of CLIP's tokenizer."""


class BackboneError(WaverError):
    """The backbone or its weights cannot be used."""


class Backbone(nn.Module):
    """The two towers of an open_clip model: every token of a text, one embedding for each frame.

    Attributes:
        architecture: open_clip's own description of the network (embed_dim, vision_cfg, text_cfg), enough to build it again.
        width: D, size of the common embedding space.
    """

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
        self.clip = _build(self.architecture)
        text = getattr(self.clip, "text", self.clip)
        if not isinstance(text, TextTransformer | open_clip.CLIP) or getattr(text, "cls_emb", None) is not None:
            raise BackboneError(
                f"model.backbone: its text tower ({type(text).__name__}) gives no embedding for each word; "
                "choose a model with open_clip's own text transformer, such as ViT-B-32 or ViT-L-14"
            )
        if getattr(self.clip, "logit_bias", None) is not None:
            self.clip.logit_bias.requires_grad_(
                False
            )  # SigLIP's own loss has it; a softmax over similarities cannot see it
        self.width: int = self.architecture["embed_dim"]
        self.register_buffer(
            "pixel_mean", _channels(self.clip.visual, "image_mean", open_clip.OPENAI_DATASET_MEAN), persistent=False
        )
        self.register_buffer(
            "pixel_std", _channels(self.clip.visual, "image_std", open_clip.OPENAI_DATASET_STD), persistent=False
        )

    @property
    def text(self) -> nn.Module:
        """The module that holds the text tower's parts; open_clip keeps them in the model itself or in `.text`."""
        return getattr(self.clip, "text", self.clip)

    @property
    def logit_scale(self) -> nn.Parameter:
        """Logarithm of the factor on similarities in the loss."""
        return self.clip.logit_scale

    def pixels(self, frames: UInt8[Tensor, "*M 3 H W"]) -> Float[Tensor, "*M 3 H W"]:
        """uint8 frames -> normalised pixels."""
        return (frames.float() / 255 - self.pixel_mean) / self.pixel_std

    def encode_frames(self, pixels: Float[Tensor, "B F 3 H W"], mask: Bool[Tensor, "B F"]) -> Float[Tensor, "B F D"]:
        """One embedding for each valid frame (for a ViT its class token after ln_post and projection); 0 elsewhere."""
        encoded = self.clip.encode_image(pixels[mask])
        return encoded.new_zeros(*mask.shape, encoded.shape[-1]).masked_scatter(mask[..., None], encoded)

    def encode_tokens(self, token_ids: Int[Tensor, "B N"]) -> Float[Tensor, "B N D"]:
        """Every token of the text, after ln_final and projection. N may be shorter than the context the tower knows."""
        text, length = self.text, token_ids.shape[1]
        dtype = text.transformer.get_cast_dtype()
        values = text.token_embedding(token_ids).to(dtype) + text.positional_embedding[:length].to(dtype)
        causal = None if text.attn_mask is None else text.attn_mask[:length, :length]
        values = text.ln_final(text.transformer(values, attn_mask=causal))
        projection = text.text_projection
        if projection is None:
            return values
        return projection(values) if isinstance(projection, nn.Linear) else values @ projection


def load_backbone(backbone: str | dict[str, Any], weights: str | None, *, image_size: int) -> Backbone:
    """Builds a backbone and loads its weights.

    Args:
        backbone: name of an open_clip model, or its architecture as in open_clip's model files.
        weights: path of a file (OpenAI's .pt archive, .safetensors, a state dict), a pretrained tag of open_clip for this
            name (downloaded by open_clip), or None for random weights.
        image_size: pixels; position embeddings of another size are interpolated by open_clip.

    Raises:
        BackboneError: unknown name or tag, unreadable file, or weights of another architecture (naming what differs).
    """
    architecture = _architecture(backbone)
    if weights is None:
        return Backbone(architecture, image_size)
    path, quick_gelu = _download(_find_weights(backbone, weights), backbone, weights)
    state = _read_weights(path)
    if quick_gelu or is_torchscript(path):
        architecture["quick_gelu"] = True  # OpenAI trained with it; open_clip's plain names mean GELU
    model = Backbone(architecture, image_size)
    load_weights(model.clip, state, source=str(path))
    return model


def check_weights(backbone: str | dict[str, Any], weights: str, *, image_size: int) -> Path | None:
    """Checks that weights fit a backbone by the names and sizes of their tensors; downloads nothing, computes nothing.

    Returns:
        Their file; None where they are a pretrained tag: open_clip would take them from its cache or download them.

    Raises:
        BackboneError: as `load_backbone`.
    """
    found = _find_weights(backbone, weights)
    if not isinstance(found, Path):
        return None
    with torch.device("meta"):
        model = Backbone(_architecture(backbone), image_size)
    load_weights(model.clip, _read_weights(found, sizes_only=True), source=str(found))
    return found


def load_weights(module: nn.Module, state: dict[str, Tensor], *, source: str) -> None:
    """Loads a state dict strictly; says all that differs, instead of torch's wall of text.

    Raises:
        BackboneError: naming missing and unknown entries and differing sizes.
    """
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    if isinstance(module, open_clip.CLIP | open_clip.CustomTextCLIP):
        for resize in (open_clip.factory.resize_pos_embed, open_clip.factory.resize_text_pos_embed):
            with contextlib.suppress(AssertionError):  # of another width: that is said below, with all that differs
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
    module.load_state_dict(state)


def tokenize(
    texts: list[str], *, max_words: int, prompt: str | None = None
) -> tuple[Int[Tensor, "B N"], Bool[Tensor, "B N"]]:
    """Texts -> (token ids, mask) with CLIP's byte pairs; N = max_words, longer texts are cut and keep their end token.

    Args:
        texts: as they were written.
        max_words: tokens of a text, start and end among them.
        prompt: sentence with {} where the text goes.
    """
    if prompt is not None:
        texts = [prompt.replace("{}", text) for text in texts]
    tokenizer = _clip_tokenizer()
    ids = tokenizer(texts, context_length=max_words)
    # Id 0 is padding AND the exclamation mark, so the mask comes from the end token, not from zeros; and from the last one,
    # since a caption may hold the words "<end_of_text>" itself.
    after_end = (ids == tokenizer.eot_token_id).flip(1).int().argmax(dim=1, keepdim=True)
    return ids, torch.arange(max_words) < max_words - after_end


@functools.cache
def _clip_tokenizer() -> open_clip.SimpleTokenizer:
    return open_clip.SimpleTokenizer()


def _architecture(backbone: str | dict[str, Any]) -> dict[str, Any]:
    if isinstance(backbone, dict):
        missing = {"embed_dim", "vision_cfg", "text_cfg"} - backbone.keys()
        if missing:
            raise BackboneError(
                f"model.backbone: a mapping needs embed_dim, vision_cfg and text_cfg; missing: {', '.join(sorted(missing))}"
            )
        return copy.deepcopy(backbone)
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
    except (TypeError, AssertionError, RuntimeError, ImportError) as error:
        raise BackboneError(f"model.backbone: open_clip cannot build it: {error}") from error


def _find_weights(backbone: str | dict[str, Any], weights: str) -> Path | dict[str, Any]:
    """The file, or what open_clip knows of the pretrained tag."""
    path = Path(weights).expanduser()
    if path.is_file():
        return path
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


def _download(found: Path | dict[str, Any], backbone: str | dict[str, Any], weights: str) -> tuple[Path, bool]:
    """(file, whether the tag says QuickGELU)."""
    if isinstance(found, Path):
        return found, False
    try:
        return Path(open_clip.download_pretrained(found)), bool(found.get("quick_gelu"))
    except Exception as error:  # whatever the network or the hub throws, the user's remedy is the same
        raise BackboneError(
            f"model.weights: {weights!r} of {backbone} could not be downloaded ({type(error).__name__}: {error}); "
            "on a machine without network, set model.weights to the path of the downloaded file"
        ) from error


def _read_weights(path: Path, *, sizes_only: bool = False) -> dict[str, Tensor]:
    """Tensors of a weights file by name, in open_clip's names (OpenAI's are the same). Nothing of the file is run.

    Where sizes are enough, tensors have no values, if the format allows to leave them where they are.
    """
    try:
        if path.suffix == ".safetensors" and sizes_only:
            with safe_open(path, "pt") as file:
                state = {name: torch.empty(file.get_slice(name).get_shape(), device="meta") for name in file.keys()}  # noqa: SIM118
        elif path.suffix == ".safetensors":
            state = load_file(path)
        elif is_torchscript(path):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # OpenAI ships nothing newer
                warnings.simplefilter("ignore", DeprecationWarning)
                state = torch.jit.load(without_actions(path), map_location="cpu").state_dict()
        else:
            check_size(path)
            state = torch.load(path, map_location="meta" if sizes_only else "cpu", weights_only=True)
    except Exception as error:  # each reader has its own exceptions for "this is not my format"
        raise BackboneError(
            f"model.weights: {path} cannot be read as weights ({type(error).__name__}: "
            f"{next(iter(str(error).splitlines()), '')}); it should be OpenAI's .pt, a .safetensors file or a state dict"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise BackboneError(
            f"model.weights: {path} holds something else than tensors by name; it should be a state dict"
        )
    if hollow := [name for name, tensor in state.items() if not _is_whole(tensor)]:
        raise BackboneError(f"model.weights: {path} does not hold all values of {hollow[0]}; it should be a state dict")
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    for name in ("input_resolution", "context_length", "vocab_size"):  # figures that OpenAI keeps beside the tensors
        state.pop(name, None)
    return {name: tensor.to("meta") for name, tensor in state.items()} if sizes_only else state


def _is_whole(tensor: Tensor) -> bool:
    """False for one that repeats its values: some bytes in a file can claim any size."""
    return tensor.layout == torch.strided and tensor.numel() * tensor.itemsize <= tensor.untyped_storage().nbytes()


def _channels(visual: nn.Module, name: str, default: tuple[float, ...]) -> Tensor:
    return torch.tensor(getattr(visual, name, None) or default).view(3, 1, 1)
