"""The weights of the quickstart's backbone, packed into a small file of the package.

The file has half precision, and only those rows of the token embedding that the rendered world needs: some hundreds of
CLIP's 49408 word pieces.
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
    """Writes weights in half precision.

    Args:
        state: state dict whose token embedding has only some rows.
        rows: indices in CLIP's vocabulary of these rows.
        path: safetensors file to write.
    """
    packed = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_file({name: tensor.contiguous() for name, tensor in packed.items()} | {_ROWS: rows.int()}, path)


def unpack(packed: Path, path: Path) -> None:
    """Writes packed weights as a complete open_clip state dict in fp32; word pieces without a row embed as zeros.

    Args:
        packed: file that `pack` wrote.
        path: safetensors file to write.
    """
    state = load_file(packed)
    rows = state.pop(_ROWS).long()
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    embedding = torch.zeros(VOCABULARY_SIZE, state[_EMBEDDING].shape[1])
    embedding[rows] = state[_EMBEDDING]
    save_file(state | {_EMBEDDING: embedding}, path)


def write_backbone(path: Path) -> None:
    """Writes the packaged weights, pre-trained by `waver.quickstart.pretrain`, as a file for `model.weights`."""
    with as_file(files("waver.quickstart") / "backbone.safetensors") as packed:
        unpack(packed, path)
