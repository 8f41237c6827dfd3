"""The clip store: decoded frames in Parquet, and a ledger with a row for every clip that was asked for.

A store is a folder that any number of processes may write to and read from at the same time:

    manifest.json            the settings, and what the last finished ingest counted
    clips/<block>.parquet    frames, a row and a row group a clip
    ledger/<block>.parquet   what became of each clip of the block; its ok rows are the rows of the clips file, in order

A block is complete once its ledger file is there, which is written last; every file is written under another name and
renamed. The name of a block begins with the time, which is never before that of a block that is there (clocks of nodes
differ), and is unique, so that attempts never collide. Where several blocks know a clip, ok wins over a failure, then the
newest block over the others.

Of a store in an object store, a node brings the ledger whenever it is read, and a clips file when it first reads from it.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

import waver
from waver.data.ledger import LEDGER_SCHEMA, Decoded, StoreError, ledger_row, read_ledger, read_manifest
from waver.data.video import Clip
from waver.tools.files import atomic_write, write_json
from waver.tools.object_store import ObjectStoreError, display_path, exists, fetch_once, list_names

CLIPS_SCHEMA = pa.schema(
    {
        "clip_id": pa.string(),
        "frames": pa.list_(pa.binary()),
        "num_frames": pa.int32(),
        "frame_times_s": pa.list_(pa.float64()),
        "height": pa.int32(),
        "width": pa.int32(),
        "source_fps": pa.float64(),
        "decoder": pa.string(),
    }
)
"""frames: one value a frame, either the bytes of its pixels (height, width, channel) or a JPEG file."""
_MAX_OPEN_BLOCKS = 64
_DAY_S = 86400


@dataclass(frozen=True)
class StoreSettings:
    """What all clips of a store have in common."""

    frames_per_second: float
    max_frames: int
    size: int
    frame_format: Literal["raw", "jpeg"] = "raw"
    jpeg_quality: int = 90
    """Of no effect where frames are raw."""

    @property
    def key(self) -> dict[str, float | int | str]:
        """The settings that make a difference to the content."""
        key = dataclasses.asdict(self)
        if self.frame_format == "raw":
            del key["jpeg_quality"]
        return key


def create_store(store: Path, settings: StoreSettings) -> None:
    """Makes the folder, or checks that the one there has the same settings; removes what dead runs left half-written.

    Raises:
        StoreError: if the store has other settings.
    """
    for folder in ("clips", "ledger"):
        (store / folder).mkdir(parents=True, exist_ok=True)
    for leftover in [*store.glob("clips/*.part"), *store.glob("ledger/*.part")]:
        with contextlib.suppress(FileNotFoundError):  # another run may be cleaning as well
            if time.time() - leftover.stat().st_mtime > _DAY_S:
                leftover.unlink()
    if not exists(store / "manifest.json"):
        write_json(store / "manifest.json", {"waver": waver.__version__, "settings": settings.key, "complete": False})
    there = read_manifest(store)["settings"]
    different = [
        f"{name}: {there.get(name)} in the store, {settings.key.get(name)} asked"
        for name in sorted(there.keys() | settings.key.keys())
        if there.get(name) != settings.key.get(name)
    ]
    if different:
        raise StoreError(
            f"{display_path(store)} was made with other settings ({'; '.join(different)}): choose another folder, or delete "
            "this one"
        )


def write_block(store: Path, settings: StoreSettings, results: Iterable[Decoded]) -> pa.Table:
    """Writes a block, one clip at a time as `results` yields them, so that memory holds a single one.

    Returns:
        The ledger of the block (LEDGER_SCHEMA).

    Raises:
        OSError: if it cannot be written, for example because the disk is full; then there is no block.
    """
    block = f"{_now(store):020d}-{uuid.uuid4().hex[:12]}.parquet"
    rows = []
    # Pixels do not compress, and their statistics are of no use: both only cost time.
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with (
        atomic_write(store / "clips" / block) as file,
        pq.ParquetWriter(file, CLIPS_SCHEMA, **plain) as writer,
    ):
        for result in results:
            rows.append(ledger_row(result))
            if isinstance(result.outcome, Clip):
                writer.write_table(_clip_row(result.clip_id, result.outcome, settings))
    ledger = pa.Table.from_pylist(rows, schema=LEDGER_SCHEMA)
    with atomic_write(store / "ledger" / block) as file:
        pq.write_table(ledger, file)
    return ledger


def write_manifest(store: Path, settings: StoreSettings, *, complete: bool) -> None:
    """Describes the store: settings, counts by status, and a hash of what the ledger says.

    Args:
        store: its folder.
        settings: its settings.
        complete: whether every clip that was asked for has its row.
    """
    ledger = read_ledger(store)
    # The seconds differ from run to run and the blocks from attempt to attempt; the content does not.
    content = ledger.select(["clip_id", "path", "status", "error", "decoder"]).to_pylist()
    manifest = {
        "waver": waver.__version__,
        "settings": settings.key,
        "complete": complete,
        "num_clips": len(ledger),
        "counts": dict(sorted((v["values"], v["counts"]) for v in pc.value_counts(ledger["status"]).to_pylist())),
        "digest": hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16],
    }
    write_json(store / "manifest.json", manifest)


class ClipStore:
    """Reads clips of a store as it is now, in any order. Can be pickled; not for several threads at once.

    Attributes:
        path: its folder.
        manifest: the content of manifest.json.
        settings: of all its clips.
        ledger: see `read_ledger`; sorted by clip_id.

    Raises:
        StoreError: if there is no store.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        self.settings = StoreSettings(**self.manifest["settings"])
        self.ledger = read_ledger(self.path)
        ok = self.ledger.filter(pc.equal(self.ledger["status"], "ok"))
        places = zip(ok["block"].to_pylist(), ok["row"].to_pylist(), strict=True)
        self._places: dict[str, tuple[str, int]] = dict(zip(ok["clip_id"].to_pylist(), places, strict=True))
        self._files: OrderedDict[str, pq.ParquetFile] = OrderedDict()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_files": OrderedDict()}

    def ok_clip_ids(self) -> list[str]:
        """The clips that have frames, sorted."""
        return list(self._places)

    def read(self, clip_ids: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Reads clips, in the order asked for.

        Returns:
            frames, uint8 (B, max_frames, size, size, 3), 0 after the last frame of a clip; num_frames, int32 (B,).

        Raises:
            StoreError: if a clip has no frames in this store, or a file is damaged.
        """
        unknown = [clip_id for clip_id in clip_ids if clip_id not in self._places]
        if unknown:
            raise StoreError(
                f"{len(unknown)} of {len(clip_ids)} clips have no frames in {display_path(self.path)} "
                f"({', '.join(unknown[:3])}"
                f"{', ...' if len(unknown) > 3 else ''}): ask `ok_clip_ids` first, or run `waver ingest CONFIG`"
            )
        size = self.settings.size
        frames = np.empty((len(clip_ids), self.settings.max_frames, size, size, 3), np.uint8)
        num_frames = np.empty(len(clip_ids), np.int32)
        for i, clip_id in enumerate(clip_ids):
            num_frames[i] = self._read_into(frames[i], clip_id)
            frames[i, num_frames[i] :] = 0
        return frames, num_frames

    def _read_into(self, target: np.ndarray, clip_id: str) -> int:
        block, row = self._places[clip_id]
        try:
            clip = self._open(block).read_row_group(row, columns=["clip_id", "frames"], use_threads=False)
            if clip["clip_id"].to_pylist() != [clip_id]:
                raise pa.ArrowInvalid(f"row {row} is another clip")
            values = clip["frames"].chunk(0).flatten()
            for i, value in enumerate(values):
                target[i] = _decode_frame(value.as_buffer(), self.settings)
        except ObjectStoreError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise StoreError(
                f"{self.path / 'clips' / block} is damaged or gone ({error}): delete it and run `waver ingest CONFIG`, "
                "which decodes its clips again"
            ) from error
        return len(values)

    def _open(self, block: str) -> pq.ParquetFile:
        if block not in self._files:
            if len(self._files) >= _MAX_OPEN_BLOCKS:
                self._files.popitem(last=False)[1].close()
            self._files[block] = pq.ParquetFile(fetch_once(self.path / "clips" / block), memory_map=True)
        self._files.move_to_end(block)
        return self._files[block]


def _now(store: Path) -> int:
    """Nanoseconds of this node's clock or, where that is behind those of others, after all that is in the store."""
    newest = list_names(store / "ledger", "*.parquet")[-1:]
    return max([time.time_ns(), *(int(name.partition("-")[0]) + 1 for name in newest)])


def _clip_row(clip_id: str, clip: Clip, settings: StoreSettings) -> pa.Table:
    assert clip.frames.shape[1:] == (settings.size, settings.size, 3), "the clip was decoded for another store"
    num_frames = len(clip.frames)
    if settings.frame_format == "raw":
        # Arrow's own layout around the frames as they are, without a copy.
        pixels = np.ascontiguousarray(clip.frames)
        offsets = np.arange(num_frames + 1, dtype=np.int32) * pixels[0].nbytes
        frames = pa.Array.from_buffers(pa.binary(), num_frames, [None, pa.py_buffer(offsets), pa.py_buffer(pixels)])
    else:
        frames = pa.array([_jpeg(frame, settings.jpeg_quality) for frame in clip.frames], pa.binary())
    columns = [
        [clip_id],
        pa.ListArray.from_arrays(pa.array([0, num_frames], pa.int32()), frames),
        [num_frames],
        [list(clip.times_s)],
        [clip.height],
        [clip.width],
        [clip.source_fps],
        [clip.decoder],
    ]
    return pa.table(columns, schema=CLIPS_SCHEMA)


def _decode_frame(value: pa.Buffer, settings: StoreSettings) -> np.ndarray:
    if settings.frame_format == "raw":
        return np.frombuffer(value, np.uint8).reshape(settings.size, settings.size, 3)
    with Image.open(io.BytesIO(value), formats=["JPEG"]) as image:  # others of Pillow's formats start programs
        if image.size != (settings.size, settings.size):
            raise ValueError(f"a frame of {image.width} x {image.height} pixels")
        return np.asarray(image)


def _jpeg(frame: np.ndarray, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
