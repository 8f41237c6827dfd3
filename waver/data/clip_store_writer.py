"""Writes a clip store; its files are described in `waver.data.clip_store`."""

import contextlib
import hashlib
import json
import time
import uuid
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import waver
from waver.data.clip import Clip
from waver.data.clip_store import StoreSettings
from waver.data.clips_file import encode_jpeg
from waver.data.ledger import LEDGER_SCHEMA, DecodedClip, StoreError, ledger_row, read_ledger, read_store_manifest
from waver.tools.files import atomic_write, write_json
from waver.tools.object_store import display_path, exists, list_names

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
"""frames: one value per frame, either its pixels (height, width, channel) as bytes, or a JPEG file."""
_DAY_S = 86400


def create_store(store: Path, settings: StoreSettings) -> None:
    """Creates a store, or checks that an existing one has the same settings; removes temporary files older than a day.

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
    there = read_store_manifest(store)["settings"]
    different = [
        f"{name}: {there.get(name)} in the store, {settings.key.get(name)} requested"
        for name in sorted(there.keys() | settings.key.keys())
        if there.get(name) != settings.key.get(name)
    ]
    if different:
        raise StoreError(
            f"{display_path(store)} was made with other settings ({'; '.join(different)}): choose another storage.path, or "
            "delete this folder"
        )


def write_block(store: Path, settings: StoreSettings, results: Iterable[DecodedClip]) -> pa.Table:
    """Writes a block, one clip at a time, so that memory holds a single clip.

    Returns:
        The ledger of the block (LEDGER_SCHEMA).

    Raises:
        OSError: if the block cannot be written, for example because the disk is full; no part of it remains.
    """
    block = f"{_block_time_ns(store):020d}-{uuid.uuid4().hex[:12]}.parquet"
    rows = []
    # Pixels do not compress, and nobody reads their statistics: both only cost time.
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
    """Writes the manifest of a store: settings, number of clips by status, and a hash of the ledger.

    Args:
        store: folder of the store.
        settings: settings of the store.
        complete: whether the ledger has a row for every requested clip.
    """
    ledger = read_ledger(store)
    # Without `seconds` and `block`, which differ between ingests of the same content.
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


def _block_time_ns(store: Path) -> int:
    """Returns the time of this node's clock in nanoseconds, but later than every block of the store (clocks differ)."""
    newest = list_names(store / "ledger", "*.parquet")[-1:]
    return max([time.time_ns(), *(int(name.partition("-")[0]) + 1 for name in newest)])


def _clip_row(clip_id: str, clip: Clip, settings: StoreSettings) -> pa.Table:
    assert clip.frames.shape[1:] == (settings.size, settings.size, 3), "the clip was decoded with another size"
    num_frames = len(clip.frames)
    if settings.frame_format == "raw":
        # Wraps the pixels in Arrow's memory layout without copying them.
        pixels = np.ascontiguousarray(clip.frames)
        offsets = np.arange(num_frames + 1, dtype=np.int32) * pixels[0].nbytes
        frames = pa.Array.from_buffers(pa.binary(), num_frames, [None, pa.py_buffer(offsets), pa.py_buffer(pixels)])
    else:
        frames = pa.array([encode_jpeg(frame, quality=settings.jpeg_quality) for frame in clip.frames], pa.binary())
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
