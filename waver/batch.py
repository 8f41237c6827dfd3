"""The data contract: what a training step eats (`Batch`) and what the towers return (`Embeddings`).

Masks are bool, True = valid. Pixels travel as uint8 and are normalised on the device.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """A worker's B of the `num_pairs` pairs (caption, clip) in a global batch. No clip occurs twice in it."""

    token_ids: Int[Tensor, "B N"]
    token_mask: Bool[Tensor, "B N"]
    frames: UInt8[Tensor, "B F 3 H W"]
    frame_mask: Bool[Tensor, "B F"]
    phrase_ids: Int[Tensor, "B K"]
    """Of each clip, best first; K = 0 without knowledge."""
    clip_ids: tuple[str, ...]
    captions: tuple[str, ...]
    num_pairs: int

    def to(self, device: torch.device | str) -> "Batch":
        """The batch on another device."""
        return replace(
            self,
            token_ids=self.token_ids.to(device, non_blocking=True),
            token_mask=self.token_mask.to(device, non_blocking=True),
            frames=self.frames.to(device, non_blocking=True),
            frame_mask=self.frame_mask.to(device, non_blocking=True),
            phrase_ids=self.phrase_ids.to(device, non_blocking=True),
        )


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


def frames_to_tensor(
    frames: UInt8[np.ndarray, "B F H W 3"], num_frames: Int[np.ndarray, " B"]
) -> tuple[UInt8[Tensor, "B F 3 H W"], Bool[Tensor, "B F"]]:
    """Frames as the clip store gives them -> (frames, frame mask) of a `Batch`; shares the memory."""
    tensor = torch.from_numpy(frames).permute(0, 1, 4, 2, 3)
    return tensor, torch.arange(frames.shape[1]) < torch.from_numpy(num_frames)[:, None]
