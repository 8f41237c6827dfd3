"""The weights of the quickstart's backbone, packed small enough to travel with the package.

Of CLIP's 49408 word pieces the rendered world needs some hundreds: the file has those rows of the token embedding alone,
and all numbers in half precision.
"""

from importlib.resources import as_file, files
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from waver.model.tokenizer import VOCABULARY_SIZE

_EMBEDDING = "token_embedding.weight"
_ROWS = "token_embedding.rows"


def pack(state: dict[str, Tensor], rows: Int[Tensor, " rows"], path: Path) -> None:
    """Writes weights whose token embedding has only the given rows of the vocabulary, in this order."""
    packed = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_file({name: tensor.contiguous() for name, tensor in packed.items()} | {_ROWS: rows.int()}, path)


def unpack(packed: Path, path: Path) -> None:
    """Writes what `pack` wrote as open_clip's own state dict; word pieces that were left out embed as zeros."""
    state = load_file(packed)
    rows = state.pop(_ROWS).long()
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    embedding = torch.zeros(VOCABULARY_SIZE, state[_EMBEDDING].shape[1])
    embedding[rows] = state[_EMBEDDING]
    save_file(state | {_EMBEDDING: embedding}, path)


def write_backbone(path: Path) -> None:
    """Writes the pre-trained backbone of the quickstart as a file for `model.weights`; see `pretrain.py`."""
    with as_file(files("waver.quickstart") / "backbone.safetensors") as packed:
        unpack(packed, path)
