"""Parts of the two towers: which parameters and blocks each has, freezing them, and recomputing their activations."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import open_clip
from open_clip.hf_model import HFTextEncoder
from open_clip.modified_resnet import ModifiedResNet
from torch import nn
from torch.utils.checkpoint import checkpoint

from waver.model.backbone import Backbone
from waver.model.errors import BackboneError

Tower = Literal["vision", "text"]
TOWERS: tuple[Tower, ...] = ("vision", "text")

_BLOCKS = (
    "transformer.resblocks",  # open_clip's transformers
    "trunk.blocks",  # timm's vision transformers
    "trunk.stages",  # timm's convolutional networks
    "transformer.encoder.layer",  # Hugging Face's BERT and its relatives
    "transformer.encoder.layers",
    "transformer.block",  # T5's encoder
    "transformer.layers",  # the encoder of M2M-100 and NLLB
)
"""Where a tower keeps its blocks, in the order in which they are computed."""
_STAGES = ("layer1", "layer2", "layer3", "layer4")
"""Names of the blocks of open_clip's ResNet."""
_CONTAINERS = ("trunk", "transformer")
_BEFORE = (
    {"conv1", "conv2", "conv3", "bn1", "bn2", "bn3", "ln_pre", "norm_pre", "stem", "embeddings", "patch_embed"}
    | {"class_embedding", "positional_embedding", "token_embedding", "embed_tokens", "embed_positions"}
    | {"cls_emb", "cls_token", "reg_token", "pos_embed"}
)
"""Names of the parts that a tower computes before its blocks."""
_AFTER = (
    {"ln_post", "ln_final", "norm", "norm_post", "fc_norm", "attn_pool", "attnpool", "pooler", "final_conv"}
    | {"layer_norm", "final_layer_norm"}
    | {"proj", "text_projection", "head"}
)  # fmt: skip
"""Names of the parts that a tower computes after its blocks."""


def tower_parameters(backbone: Backbone, tower: Tower) -> dict[str, nn.Parameter]:
    """Returns the parameters of a tower by name; open_clip may keep those of the text tower beside the vision tower."""
    visual, whole = backbone.clip.visual, backbone.text
    if tower == "vision":
        return dict(visual.named_parameters())
    in_text = whole.named_parameters()
    return {name: p for name, p in in_text if not name.startswith(("visual.", "logit_scale", "logit_bias"))}


def tower_blocks(backbone: Backbone, tower: Tower) -> list[nn.Module]:
    """Returns the blocks of a tower (of a ResNet its four stages); empty if waver does not know where they are."""
    module: Any = backbone.clip.visual if tower == "vision" else backbone.text
    if all(hasattr(module, name) for name in _STAGES):
        return [getattr(module, name) for name in _STAGES]
    for path in _BLOCKS:
        found = module
        for name in path.split("."):
            found = getattr(found, name, None)
        if isinstance(found, nn.ModuleList | nn.Sequential):
            return list(found)
    return []


def freeze_towers(backbone: Backbone, parts: Sequence[str]) -> None:
    """Freezes parts of the towers: their parameters get no gradient.

    Args:
        backbone: frozen in place.
        parts: `vision` and `text` for whole towers, `vision.N` and `text.N` for the first N blocks and all before them.

    Raises:
        BackboneError: if a tower has fewer blocks, or its blocks are unknown.
    """
    for part in parts:
        tower: Tower = "vision" if part.startswith("vision") else "text"
        _, _, number = part.partition(".")
        parameters = tower_parameters(backbone, tower)
        chosen = list(parameters.values()) if not number else _first_blocks(backbone, tower, int(number), parameters)
        for parameter in chosen:
            parameter.requires_grad_(False)


def _first_blocks(
    backbone: Backbone, tower: Tower, number: int, parameters: dict[str, nn.Parameter]
) -> list[nn.Parameter]:
    """Returns the parameters of the first blocks of a tower, and of all that is computed before them."""
    blocks = tower_blocks(backbone, tower)
    what = f"train.freeze: {tower}.{number}: the {tower} tower of model.backbone"
    if not blocks:
        raise BackboneError(f"{what} has no blocks that waver knows: freeze all of it ({tower}), or none")
    if number > len(blocks):
        raise BackboneError(f"{what} has {len(blocks)} blocks: {tower}.1 to {tower}.{len(blocks)} are possible")
    in_blocks = {id(parameter) for block in blocks for parameter in block.parameters()}
    before: list[nn.Parameter] = []
    for name, parameter in parameters.items():
        if id(parameter) in in_blocks:
            continue
        first, _, rest = name.partition(".")
        place = rest.partition(".")[0] if first in _CONTAINERS else first
        if place not in _BEFORE | _AFTER:
            raise BackboneError(f"{what} has {name}, and waver does not know whether that comes before the blocks: "
                                f"freeze all of the tower ({tower}), or none")  # fmt: skip
        if place in _BEFORE:
            before.append(parameter)
    return [*before, *(parameter for block in blocks[:number] for parameter in block.parameters())]


def recompute_activations(backbone: Backbone) -> None:
    """Switches on gradient checkpointing in the towers that are trained.

    Then a tower keeps only the inputs of its blocks, and recomputes their activations in the backward pass (Chen et al.,
    arXiv 1604.06174).

    Raises:
        BackboneError: if a tower that is trained has no gradient checkpointing.
    """
    for tower in TOWERS:
        if not any(parameter.requires_grad for parameter in tower_parameters(backbone, tower).values()):
            continue
        module: Any = backbone.clip.visual if tower == "vision" else backbone.text
        try:
            if isinstance(module, open_clip.CLIP):  # its own method would switch both towers
                module.transformer.grad_checkpointing = True
            elif isinstance(module, ModifiedResNet):
                raise NotImplementedError  # its method does nothing
            elif isinstance(module, HFTextEncoder):
                _recompute_blocks(tower_blocks(backbone, tower))
            else:
                # open_clip's wrappers of other libraries hide that their network has none.
                inner = getattr(module, "trunk", None)
                (module if inner is None else inner).set_grad_checkpointing(True)
        except Exception as error:  # each library has its own way to say that it has none
            name = type(getattr(module, "trunk", module)).__name__
            raise BackboneError(
                f"train.grad_checkpointing: the {tower} tower of model.backbone ({name}) has no gradient checkpointing: "
                f"set it to false, and use train.micro_batch_size to save memory, or freeze that tower "
                f"(train.freeze=[{tower}])"
            ) from error


def _recompute_blocks(blocks: Sequence[nn.Module]) -> None:
    """Makes each block of a tower of transformers recompute its activations.

    The own switch of transformers works in training mode only, and waver keeps these towers in evaluation mode.

    Raises:
        NotImplementedError: if there are no blocks.
    """
    if not blocks:
        raise NotImplementedError
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
