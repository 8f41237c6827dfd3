"""embeddings."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@dataclass(frozen=True)
class Embeddings:
    """L tokens (words or frames) of each of M items, as an interaction needs them.

    `weights` sum to 1 over the valid tokens of an item; they say how much a token counts. Values at masked positions are
    unspecified and never read.
    """

    values: Float[Tensor, "M L D"]
    mask: Bool[Tensor, "M L"]
    weights: Float[Tensor, "M L"]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, items: slice) -> "Embeddings":
        return self.map(lambda tensor: tensor[items])

    def map(self, function: Callable[[Tensor], Tensor]) -> "Embeddings":
        """Applies a function to each of the three tensors."""
        return Embeddings(function(self.values), function(self.mask), function(self.weights))

    def full_precision(self) -> "Embeddings":
        """In float32, whatever autocast made of them (float64 stays)."""
        return self.map(lambda tensor: tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor)
