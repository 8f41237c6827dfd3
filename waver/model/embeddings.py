"""Embeddings of the tokens of texts or videos, which an interaction compares."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of M items (captions or clips) with L tokens (words or frames) each."""

    values: Float[Tensor, "M L D"]
    """Token embeddings of width D. Values at masked positions are unspecified and never read."""
    mask: Bool[Tensor, "M L"]
    """True for valid tokens, False for padding."""
    weights: Float[Tensor, "M L"]
    """Importance of each token; sums to 1 over the valid tokens of an item."""

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, items: slice | Int[Tensor, " M"]) -> "Embeddings":
        return self.map(lambda tensor: tensor[items])

    def map(self, function: Callable[[Tensor], Tensor]) -> "Embeddings":
        """Applies a function to each of the three tensors."""
        return Embeddings(function(self.values), function(self.mask), function(self.weights))

    @staticmethod
    def concatenate(parts: "Sequence[Embeddings]") -> "Embeddings":
        """Joins items with the same number of tokens, in their order."""
        return Embeddings(
            *(torch.cat([getattr(part, name) for part in parts]) for name in ("values", "mask", "weights"))
        )

    def pad(self, length: int) -> "Embeddings":
        """Adds padding, so that each item has `length` tokens."""
        missing = length - self.mask.shape[1]
        return Embeddings(
            F.pad(self.values, (0, 0, 0, missing)), F.pad(self.mask, (0, missing)), F.pad(self.weights, (0, missing))
        )

    def full_precision(self) -> "Embeddings":
        """Converts bfloat16 and float16, as autocast produces them, to float32; float64 stays."""
        return self.map(lambda tensor: tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor)
