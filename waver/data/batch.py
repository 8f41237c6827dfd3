"""The data contract: what a training step eats (`Batch`) and what the towers return (`Embeddings`).

Masks are bool, True = valid. Pixels travel as uint8 and are normalised on the device.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from waver.data.clip_store import ClipStore


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


def frames_to_tensor(
    frames: UInt8[np.ndarray, "B F H W 3"], num_frames: Int[np.ndarray, " B"]
) -> tuple[UInt8[Tensor, "B F 3 H W"], Bool[Tensor, "B F"]]:
    """Frames as the clip store gives them -> (frames, frame mask) of a `Batch`; shares the memory."""
    tensor = torch.from_numpy(frames).permute(0, 1, 4, 2, 3)
    return tensor, torch.arange(frames.shape[1]) < torch.from_numpy(num_frames)[:, None]


def read_ahead(store: ClipStore, batches: list[list[str]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Reads the next batch while this one is embedded."""
    store = ClipStore(store.path)  # the thread's own: one may be read by one thread at a time
    with ThreadPoolExecutor(max_workers=1) as reader:
        coming = None
        for batch in batches:
            arrived, coming = coming, reader.submit(store.read, batch)
            if arrived:
                yield arrived.result()
        if coming:
            yield coming.result()
