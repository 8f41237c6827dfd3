"""The input of a training step (`Batch`), and reading clips for it.

Masks are bool, True = valid. Pixels are uint8 and are normalised on the device. In place of pixels and words a batch may
have what frozen towers make of them.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from waver.data.clip_store import ClipStore


@dataclass(frozen=True)
class Batch:
    """A worker's B of the `num_pairs` (caption, clip) pairs of a global batch, in which no clip occurs twice."""

    token_ids: Int[Tensor, "B T"]
    """Longer than the mask where the text tower reads padding, see `Tokenizer.pad`."""
    token_mask: Bool[Tensor, "B N"]
    frames: UInt8[Tensor, "B F 3 H W"] | Float[Tensor, "B F D"]
    """Pixels, or the embeddings of a frozen vision tower."""
    frame_mask: Bool[Tensor, "B F"]
    phrase_ids: Int[Tensor, "B K"]
    """Phrases of each clip, best first; K = 0 without knowledge."""
    clip_ids: tuple[str, ...]
    captions: tuple[str, ...]
    num_pairs: int
    tokens: Float[Tensor, "B N D"] | None = None
    """Embeddings of a frozen text tower; None if the tower reads `token_ids`."""

    def __getitem__(self, pairs: slice) -> "Batch":
        """Returns some of the pairs, as a share of the same global batch."""
        names = ("token_ids", "token_mask", "frames", "frame_mask", "phrase_ids", "clip_ids", "captions")
        tokens = None if self.tokens is None else self.tokens[pairs]
        return replace(self, **{name: getattr(self, name)[pairs] for name in names}, tokens=tokens)

    def to(self, device: torch.device | str) -> "Batch":
        """Copies the batch to a device."""
        return replace(
            self,
            token_ids=self.token_ids.to(device, non_blocking=True),
            token_mask=self.token_mask.to(device, non_blocking=True),
            frames=self.frames.to(device, non_blocking=True),
            frame_mask=self.frame_mask.to(device, non_blocking=True),
            phrase_ids=self.phrase_ids.to(device, non_blocking=True),
            tokens=None if self.tokens is None else self.tokens.to(device, non_blocking=True),
        )


def frames_to_tensor(
    frames: UInt8[np.ndarray, "B F H W 3"] | Float[np.ndarray, "B F D"], num_frames: Int[np.ndarray, " B"]
) -> tuple[UInt8[Tensor, "B F 3 H W"] | Float[Tensor, "B F D"], Bool[Tensor, "B F"]]:
    """Converts clips into the frames, which share their memory, and the frame mask of a `Batch`.

    Args:
        frames: pixels, see `ClipStore.read`, or embeddings, see `EmbeddedClips.read`.
        num_frames: number of valid frames of each clip.
    """
    tensor = torch.from_numpy(frames)
    if frames.ndim == 5:
        tensor = tensor.permute(0, 1, 4, 2, 3)
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
