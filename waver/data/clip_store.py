"""The clip store: decoded frames in Parquet, and a ledger with the outcome of decoding each requested clip.

This module reads it, `waver.data.clip_store_writer` writes it.

A store is a folder that several processes may read and write at the same time:

    manifest.json            the settings, and the counts of the last ingest
    clips/<block>.parquet    frames; one row, and one row group, per clip
    ledger/<block>.parquet   one row per clip of the block; its ok rows correspond to the rows of the clips file, in order

The ledger file of a block is written last: with it the block is complete. Each file is written under a temporary name and
renamed. The name of a block is unique and begins with a timestamp, which is later than that of every existing block even if
the clocks of nodes differ. If several blocks have a clip, an ok row takes precedence over a failure, then the newest block.

So several ingests lose nothing, but decode clips twice; `waver ingest` therefore takes the lock of the store
(`waver.tools.lock`).

In an object store, a node fetches the ledger at each reading, and a clips file when it first needs it.
"""

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from waver.data.clips_file import ClipsFile, Envelope, decode_jpeg
from waver.data.ledger import StoreError, read_ledger, read_store_manifest
from waver.data.video.resizing import Interpolation, ResizeMode, Resizing
from waver.tools.object_store import ObjectStoreError, display_path, fetch_once

_MAX_OPEN_BLOCKS = 256
_MAX_LAYOUTS = 2**16
"""Number of layouts that are kept after their clips files are closed: such a file opens again without reading its metadata.
A layout takes 1 kB."""
_MAX_ENVELOPES = 4096
_NUM_LOCKS = 32
_NOT_PICKLED = ("_lock", "_opening", "_files", "_layouts")


@dataclass(frozen=True)
class StoreSettings:
    """How the clips of a store are sampled, resized and stored."""

    frames_per_second: float
    max_frames: int
    size: int
    frame_format: Literal["raw", "jpeg"] = "raw"
    jpeg_quality: int = 90
    """Ignored if frames are raw."""
    resize: ResizeMode = "shortest"
    interpolation: Interpolation = "bicubic"

    @property
    def target(self) -> Resizing:
        """Size and shape of the frames."""
        return Resizing(self.size, self.resize, self.interpolation)

    @property
    def key(self) -> dict[str, float | int | str]:
        """The settings that the content depends on."""
        key = dataclasses.asdict(self)
        if self.frame_format == "raw":
            del key["jpeg_quality"]
        # Stores of earlier versions, which knew only these, do not name them.
        usual = {"resize": StoreSettings.resize, "interpolation": StoreSettings.interpolation}
        return {name: value for name, value in key.items() if value != usual.get(name)}


class ClipStore:
    """Reads clips of a store, as of its opening, in any order. It can be pickled; several threads may read at the same time.

    Attributes:
        path: folder of the store.
        manifest: content of manifest.json.
        settings: settings of all clips.
        ledger: see `read_ledger`.

    Raises:
        StoreError: if there is no store.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.manifest = read_store_manifest(self.path)
        self.settings = StoreSettings(**self.manifest["settings"])
        self.ledger = read_ledger(self.path)
        ok = self.ledger.filter(pc.equal(self.ledger["status"], "ok"))
        places = zip(ok["block"].to_pylist(), ok["row"].to_pylist(), strict=True)
        self._places: dict[str, tuple[str, int]] = dict(zip(ok["clip_id"].to_pylist(), places, strict=True))
        self._known_envelopes: set[Envelope] = set()
        self._forget_files()

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name not in _NOT_PICKLED}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._forget_files()

    def _forget_files(self) -> None:
        self._lock = threading.Lock()  # guards `_files` and `_layouts`
        self._opening = [threading.Lock() for _ in range(_NUM_LOCKS)]
        self._files: OrderedDict[str, ClipsFile] = OrderedDict()
        self._layouts: OrderedDict[str, np.ndarray] = OrderedDict()

    def ok_clip_ids(self) -> list[str]:
        """Returns the clips that have frames, sorted."""
        return list(self._places)

    def blocks_of(self, clip_ids: Sequence[str]) -> dict[str, str]:
        """Returns clip id -> name of the block with its frames, which changes when the clip is decoded again.

        Raises:
            StoreError: if a clip has no frames in this store.
        """
        self._check_known(clip_ids)
        return {clip_id: self._places[clip_id][0] for clip_id in clip_ids}

    def read(self, clip_ids: Sequence[str], out: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Reads clips, in the given order.

        Args:
            clip_ids: the clips.
            out: contiguous array to read into, of the shape and type of the returned frames; None to allocate one.

        Returns:
            frames, uint8 (B, max_frames, size, size, 3), zero after the last frame of a clip; num_frames, int32 (B,).

        Raises:
            StoreError: if a clip has no frames in this store, or a file is damaged; the content of `out` is then arbitrary.
        """
        self._check_known(clip_ids)
        shape = (len(clip_ids), *self.clip_shape)
        frames = np.empty(shape, np.uint8) if out is None else out
        fits = (frames.shape, frames.dtype, frames.flags.c_contiguous) == (shape, np.uint8, True)
        assert fits, "`out` has the shape and type of the frames"
        num_frames = np.empty(len(clip_ids), np.int32)
        for i, clip_id in enumerate(clip_ids):
            num_frames[i] = self._read_into(frames[i], clip_id)
            frames[i, num_frames[i] :] = 0
        return frames, num_frames

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        """Shape of a clip as `read` returns it: (max_frames, size, size, 3)."""
        return (self.settings.max_frames, self.settings.size, self.settings.size, 3)

    def _check_known(self, clip_ids: Sequence[str]) -> None:
        unknown = [clip_id for clip_id in clip_ids if clip_id not in self._places]
        if unknown:
            raise StoreError(
                f"{len(unknown)} of {len(clip_ids)} clips have no frames in {display_path(self.path)} "
                f"({', '.join(unknown[:3])}"
                f"{', ...' if len(unknown) > 3 else ''}): run `waver ingest CONFIG`"
            )

    def _read_into(self, target: np.ndarray, clip_id: str) -> int:
        """Reads a clip into the first frames of `target` (`clip_shape`); returns how many these are."""
        block, row = self._places[clip_id]
        try:
            file = self._open(block)
            is_raw = self.settings.frame_format == "raw"
            envelope = file.read_at_place(row, clip_id, target) if is_raw else None
            if envelope is not None and envelope in self._known_envelopes:
                return envelope.num_frames
            values = file.read_with_pyarrow(row, clip_id)
            if len(values) > len(target):
                raise ValueError(f"{len(values)} frames, at most {len(target)} are expected")
            frames = [_decode_frame(value.as_buffer(), self.settings) for value in values]
            if (
                envelope
                and envelope.num_frames == len(frames)
                and np.array_equal(target[: len(frames)], frames)
                and len(self._known_envelopes) < _MAX_ENVELOPES
            ):
                self._known_envelopes.add(envelope)
            for place, frame in zip(target, frames, strict=False):
                place[:] = frame
        except ObjectStoreError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise StoreError(
                f"{self.path / 'clips' / block} is damaged or gone ({error}): delete it and run `waver ingest CONFIG`, "
                "which decodes its clips again"
            ) from error
        return len(frames)

    def _open(self, block: str) -> ClipsFile:
        with self._opening[hash(block) % _NUM_LOCKS]:  # otherwise two threads could download the same file
            with self._lock:
                file, layout = self._files.get(block), self._layouts.get(block)
            if file is None:
                file = ClipsFile(fetch_once(self.path / "clips" / block), layout)
            with self._lock:
                # A file that is dropped closes once no thread reads it.
                _keep(self._files, block, file, _MAX_OPEN_BLOCKS)
                _keep(self._layouts, block, file.layout, _MAX_LAYOUTS)
        return file


def _keep(kept: OrderedDict[str, Any], name: str, value: Any, limit: int) -> None:
    """Adds a value, or marks it as the most recently used one; beyond the limit, drops the least recently used one."""
    kept[name] = value
    kept.move_to_end(name)
    if len(kept) > limit:
        kept.popitem(last=False)


def _decode_frame(value: pa.Buffer, settings: StoreSettings) -> np.ndarray:
    if settings.frame_format == "raw":
        return np.frombuffer(value, np.uint8).reshape(settings.size, settings.size, 3)
    return decode_jpeg(value, size=settings.size)
