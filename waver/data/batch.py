"""The input of a training step (`Batch`), and reading clips for it.

Masks are bool, True = valid. Pixels are uint8 and are normalised on the device.
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
    """A worker's B of the `num_pairs` (caption, clip) pairs of a global batch, in which no clip occurs twice."""

    token_ids: Int[Tensor, "B T"]
    """Longer than the mask where the text tower reads padding, see `Tokenizer.pad`."""
    token_mask: Bool[Tensor, "B N"]
    frames: UInt8[Tensor, "B F 3 H W"]
    frame_mask: Bool[Tensor, "B F"]
    phrase_ids: Int[Tensor, "B K"]
    """Phrases of each clip, best first; K = 0 without knowledge."""
    clip_ids: tuple[str, ...]
    captions: tuple[str, ...]
    num_pairs: int

    def __getitem__(self, pairs: slice) -> "Batch":
        """Returns some of the pairs, as a share of the same global batch."""
        names = ("token_ids", "token_mask", "frames", "frame_mask", "phrase_ids", "clip_ids", "captions")
        return replace(self, **{name: getattr(self, name)[pairs] for name in names})

    def to(self, device: torch.device | str) -> "Batch":
        """Copies the batch to a device."""
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
    """Converts the result of `ClipStore.read` into the frames, which share its memory, and the frame mask of a `Batch`."""
    tensor = torch.from_numpy(frames).permute(0, 1, 4, 2, 3)
    return tensor, torch.arange(frames.shape[1]) < torch.from_numpy(num_frames)[:, None]


def read_ahead(store: ClipStore, batches: list[list[str]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields `ClipStore.read` of each batch of clip ids; a thread reads the next batch while the caller uses this one."""
    store = ClipStore(store.path)  # a store of the thread's own: ClipStore is not thread-safe
    with ThreadPoolExecutor(max_workers=1) as reader:
        following = None
        for batch in batches:
            current, following = following, reader.submit(store.read, batch)
            if current:
                yield current.result()
        if following:
            yield following.result()
