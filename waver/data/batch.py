"""The input of a training step (`Batch`), and reading clips for it.

Masks are bool, True = valid. Pixels are uint8 and are normalised on the device. A batch may hold embeddings by frozen towers
in place of pixels and words.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from waver.data.clip_store import ClipStore
from waver.tools.object_store import remote_of

_MAX_FREE_BUFFERS = 2
_RAW_THREADS = 2
_JPEG_THREADS = 4
"""Pillow releases the global interpreter lock while it decodes, so that threads decode in parallel."""
_DOWNLOAD_THREADS = 8
"""More than there may be CPUs, because these threads mostly wait for the object store."""


@dataclass(frozen=True)
class Batch:
    """A worker's share of a global batch: B of its `num_pairs` (caption, clip) pairs, in which no clip occurs twice."""

    token_ids: Int[Tensor, "B T"]
    """T is larger than N if the text tower reads padding, see `Tokenizer.pad`."""
    token_mask: Bool[Tensor, "B N"]
    frames: UInt8[Tensor, "B F 3 H W"] | Float[Tensor, "B F D"]
    """Pixels, or the embeddings of a frozen vision tower."""
    frame_mask: Bool[Tensor, "B F"]
    phrase_ids: Int[Tensor, "B K"]
    """Phrases of each clip, best first; K = 0 without knowledge."""
    clip_ids: tuple[str, ...]
    captions: tuple[str, ...]
    caption_keys: Int[Tensor, " B"]
    """Equal for captions that are the same text for the model, see `caption_keys`."""
    num_pairs: int
    tokens: Float[Tensor, "B N D"] | None = None
    """Embeddings of a frozen text tower; None if the tower reads `token_ids`."""
    teacher_clips: Float[Tensor, "B E"] | None = None
    """The frozen teacher's embeddings of the clips, unit vectors of its width E; None if no loss reads them."""
    teacher_captions: Float[Tensor, "B E"] | None = None
    """The same of the captions."""
    described_clips: Float[Tensor, "B E"] | None = None
    """The same of the clips that the phrases belong to, under a control of knowledge; None if these are the clips."""
    first: int = 0
    """Place of the first pair in the share of its worker; above 0 in a part of a share."""

    def __getitem__(self, pairs: slice) -> "Batch":
        """Returns some of the pairs, as a share of the same global batch."""
        of_pairs = {name: getattr(self, name) for name in (*_TENSORS, "clip_ids", "captions")}
        first = self.first + range(len(self.clip_ids))[pairs].start
        chosen = {name: value[pairs] for name, value in of_pairs.items() if value is not None}
        return replace(self, **chosen, first=first)

    def to(self, device: torch.device | str) -> "Batch":
        """Copies the batch to a device."""
        tensors = {name: getattr(self, name) for name in _TENSORS}
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items() if tensor is not None}
        return replace(self, **moved)


_TENSORS = (
    "token_ids",
    "token_mask",
    "frames",
    "frame_mask",
    "phrase_ids",
    "caption_keys",
    "tokens",
    "teacher_clips",
    "teacher_captions",
    "described_clips",
)
"""Fields of a batch with a row per pair that are on the device of the model."""


def caption_keys(token_ids: Int[Tensor, "B T"], token_mask: Bool[Tensor, "B N"]) -> Int[Tensor, " B"]:
    """Hashes the valid tokens of each caption; captions that differ only in what the model does not read have equal keys.

    Args:
        token_ids: on the CPU; padding has no effect.
        token_mask: True for valid tokens, which come first.
    """
    rows = [ids[:number].numpy().tobytes() for ids, number in zip(token_ids, token_mask.sum(1).tolist(), strict=True)]
    keys = [int.from_bytes(hashlib.sha256(row).digest()[:8], signed=True) for row in rows]
    return torch.tensor(keys, dtype=torch.int64)


def frames_to_tensor(
    frames: UInt8[np.ndarray, "B F H W 3"] | Float[np.ndarray, "B F D"], num_frames: Int[np.ndarray, " B"]
) -> tuple[UInt8[Tensor, "B F 3 H W"] | Float[Tensor, "B F D"], Bool[Tensor, "B F"]]:
    """Converts clips into the frames and the frame mask of a `Batch`; the frames share the memory of `frames`.

    Args:
        frames: pixels, see `ClipStore.read`, or embeddings, see `EmbeddedClips.read`.
        num_frames: number of valid frames of each clip.
    """
    tensor = torch.from_numpy(frames)
    if frames.ndim == 5:
        tensor = tensor.permute(0, 1, 4, 2, 3)
    return tensor, torch.arange(frames.shape[1]) < torch.from_numpy(num_frames)[:, None]


class Buffers:
    """Memory for batches of clips, which is reused once nothing refers to an earlier batch any more.

    Fresh memory is slow: the kernel fills each page with zeros at its first use, which takes as long as reading the frames.
    The memory is not pinned, so that `Tensor.to` returns only after it has read it: no copy to a device still runs when the
    memory is reused.

    Args:
        num_clips: maximal number of clips in a batch.
        clip_shape: `ClipStore.clip_shape`.
    """

    def __init__(self, num_clips: int, clip_shape: tuple[int, ...]):
        self._shape = (num_clips, *clip_shape)
        self._free: deque[np.ndarray] = deque(maxlen=_MAX_FREE_BUFFERS)

    def take(self, num_clips: int) -> UInt8[np.ndarray, "B F H W 3"]:
        """Returns an array of arbitrary content. Its memory is reused once it, its views and its tensors are deleted."""
        try:
            values = self._free.pop()
        except IndexError:
            values = np.empty(self._shape, np.uint8)
        return np.asarray(_Loan(values, self._free))[:num_clips]


class _Loan:
    """Lends memory to numpy: when no array and no tensor uses it any more, the memory goes back to the free buffers."""

    def __init__(self, values: np.ndarray, free: deque[np.ndarray]):
        self.__array_interface__ = values.__array_interface__
        self._values, self._free = values, free

    def __del__(self) -> None:
        self._free.append(self._values)


ReadClips = Callable[[ClipStore, list[list[str]]], Iterator[tuple[np.ndarray, np.ndarray]]]
"""Reads batches of clips ahead of their use, such as `read_ahead`: (store, clip ids of each batch) ->
`ClipStore.read` of each batch, in order."""


def read_ahead(store: ClipStore, batches: list[list[str]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields what `ClipStore.read` returns for each batch of clip ids; threads read the next batch meanwhile.

    The memory of a batch serves a later batch once neither the caller nor a tensor made from the batch refers to it.
    """
    num_threads = _num_threads(store)
    buffers = Buffers(max(map(len, batches), default=0), store.clip_shape)
    with ThreadPoolExecutor(num_threads, "waver-read-ahead") as threads:
        following: list[_Reading] = []
        for batch in batches:
            following.append(_Reading(store, batch, buffers, threads, num_threads))
            if len(following) > 1:
                yield following.pop(0).result()
        if following:
            yield following.pop().result()


class _Reading:
    """A batch that threads are reading; each reads a part of its clips."""

    def __init__(
        self, store: ClipStore, batch: list[str], buffers: Buffers, threads: ThreadPoolExecutor, num_threads: int
    ):
        self._frames = buffers.take(len(batch))
        size = -(-len(batch) // num_threads) or 1
        parts = [slice(first, first + size) for first in range(0, len(batch), size)]
        self._parts = [threads.submit(store.read, batch[part], self._frames[part]) for part in parts]

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Waits for all parts; returns frames and num_frames."""
        num_frames = [part.result()[1] for part in self._parts]
        return self._frames, np.concatenate([np.empty(0, np.int32), *num_frames])


def _num_threads(store: ClipStore) -> int:
    """Returns how many threads read the clips of a batch."""
    if remote_of(store.path):
        return _DOWNLOAD_THREADS
    return _JPEG_THREADS if store.settings.frame_format == "jpeg" else _RAW_THREADS
