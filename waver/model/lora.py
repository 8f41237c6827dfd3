"""LoRA: trained low-rank additions to the frozen attention weights of the towers.

The weights are parametrised (`torch.nn.utils.parametrize`): a module that reads such a weight, also
`nn.MultiheadAttention` with its joint query, key and value, gets the sum of the frozen weight and the addition. peft would
replace linear layers instead, and would merge and restore the weights of attention in every forward pass.

Source: LoRA (Hu et al., arXiv 2106.09685).
"""

import math
import re
from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from waver.model.backbone import Backbone
from waver.model.errors import BackboneError
from waver.model.towers import TOWERS, Tower, tower_blocks, tower_parameters

_STACKED = {"in_proj_weight": 3, "qkv": 3, "kv": 2}
"""Names of weights, or of linear layers, that stack the matrices of several projections -> their number."""
_LINEAR = frozenset(
    ("qkv", "kv", "q", "k", "v", "o", "q_proj", "k_proj", "v_proj", "out_proj", "proj", "query", "key", "value")
)
"""Names of the linear layers of attention in open_clip, timm and transformers."""
_OUTPUT_OF_BERT = "attention.output.dense"
"""Path of the output of attention in BERT and its relatives, whose other layers are called dense as well."""
_ADAPTER = re.compile(r"\.parametrizations\.\w+\.0\.(up|down)$")
NOT_OF_TOWERS = ("backbone.clip.logit_scale", "backbone.clip.logit_bias")
"""Parameters of the backbone that belong to neither tower, by their names in the state of a student."""


class LowRank(nn.Module):
    """Adds alpha / rank * up @ down to each of the matrices that are stacked in a weight; up is 0 at the start."""

    def __init__(self, weight: Float[Tensor, "out in"], num_stacked: int, *, rank: int, alpha: float):
        super().__init__()
        rows, columns = weight.shape[0] // num_stacked, weight.shape[1]
        like = {"device": weight.device, "dtype": weight.dtype}
        self.down = nn.Parameter(torch.empty(num_stacked, rank, columns, **like))
        self.up = nn.Parameter(torch.zeros(num_stacked, rows, rank, **like))
        self.scale = alpha / rank
        nn.init.uniform_(self.down, -1 / math.sqrt(columns), 1 / math.sqrt(columns))

    def forward(self, weight: Float[Tensor, "out in"]) -> Float[Tensor, "out in"]:
        """Returns the sum of the frozen weight and the trained addition."""
        return weight + self.scale * torch.bmm(self.up, self.down).flatten(0, 1)


def add_adapters(backbone: Backbone, towers: Sequence[Tower], *, rank: int, alpha: float) -> None:
    """Freezes the weights of both towers, and adds adapters to the attention of one or both.

    Args:
        backbone: changed in place; it computes the same as before until the adapters are trained.
        towers: the towers that get adapters.
        rank: rank of each addition.
        alpha: numerator of the factor alpha / rank of each addition.

    Raises:
        BackboneError: if a tower has no attention whose weights waver knows, or these are smaller than the rank.
    """
    for tower in TOWERS:
        for parameter in tower_parameters(backbone, tower).values():
            parameter.requires_grad_(False)
    for tower in towers:
        found = [weight for block in tower_blocks(backbone, tower) for weight in _attention_weights(block)]
        if not found:
            raise BackboneError(
                f"model.lora: the {tower} tower of model.backbone has no attention whose weights waver knows: set "
                "model.lora.where to the other tower, or model.lora to null"
            )
        for module, name, num_stacked in found:
            weight = getattr(module, name)
            if rank > min(weight.shape[0] // num_stacked, weight.shape[1]):
                raise BackboneError(
                    f"model.lora.rank = {rank} is more than the width {weight.shape[1]} of the attention in the {tower} "
                    "tower of model.backbone: lower it"
                )
            parametrize.register_parametrization(module, name, LowRank(weight, num_stacked, rank=rank, alpha=alpha))


def adapter_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Returns the parameters of all adapters in a module."""
    return [p for part in module.modules() if isinstance(part, LowRank) for p in part.parameters()]


def frozen_names(state: Iterable[str]) -> list[str]:
    """Returns the names of the frozen, pre-trained weights of the towers in the state of a student with adapters."""
    of_backbone = (name for name in state if name.startswith("backbone.") and not name.startswith(NOT_OF_TOWERS))
    return [name for name in of_backbone if not _ADAPTER.search(name)]


def _attention_weights(block: nn.Module) -> Iterator[tuple[nn.Module, str, int]]:
    """Yields (module, name of a weight of attention, number of matrices stacked in it) for the attention of a block."""
    for path, module in block.named_modules():
        name = path.rpartition(".")[2]
        if isinstance(getattr(module, "in_proj_weight", None), Tensor):
            yield module, "in_proj_weight", _STACKED["in_proj_weight"]
        if isinstance(module, nn.Linear) and (name in _LINEAR or path.endswith(_OUTPUT_OF_BERT)):
            yield module, "weight", _STACKED.get(name, 1)
