"""The ledger of a clip store: the outcome of decoding each requested clip."""

import contextlib
import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from waver.data.clip import AFTER_DAMAGE, READ_IN_PART, Clip, ClipError
from waver.tools.errors import WaverError
from waver.tools.files import read_manifest
from waver.tools.names import abbreviate
from waver.tools.object_store import fetch_folder, list_names, remote_of

LEDGER_SCHEMA = pa.schema(
    {
        "clip_id": pa.string(),
        "path": pa.string(),
        "status": pa.string(),
        "error": pa.string(),
        "decoder": pa.string(),
        "seconds": pa.float64(),
        "note": pa.string(),
        "video_s": pa.float64(),
        "file_bytes": pa.int64(),
        "modified_s": pa.float64(),
        "file_digest": pa.string(),
    }
)
"""status: ok or that of the `ClipError`; error: its reason, null if ok; decoder, note: of the `Clip`, null unless ok;
video_s: length of the video, null if it is not known; file_bytes, modified_s, file_digest: of the `FileStamp` of the video
when it was decoded, null if it was missing."""
_DIGESTED_BYTES = 2**16


class StoreError(WaverError):
    """A clip store is missing, damaged, or does not fit the request."""


@dataclass(frozen=True)
class DecodedClip:
    """The outcome of decoding one clip."""

    clip_id: str
    path: str
    seconds: float
    outcome: Clip | ClipError
    file: "FileStamp | None" = None
    """Of the video, from before it was decoded; None if it was missing."""


@dataclass(frozen=True)
class FileStamp:
    """What tells a video from another one that replaces it under the same name."""

    num_bytes: int
    modified_s: float
    digest: str
    """Of its size and of 64 KiB each from its start, middle and end: equal for a copy, which has another time."""

    @classmethod
    def of(cls, path: Path | str) -> "FileStamp | None":
        """Returns the stamp of a file; None if it is missing, unreadable or no regular file."""
        with contextlib.suppress(OSError):
            if stat.S_ISREG(Path(path).stat().st_mode):
                with Path(path).open("rb") as file:
                    return cls.of_open(file)
        return None

    @classmethod
    def of_open(cls, file: BinaryIO) -> "FileStamp":
        """Returns the stamp of an open regular file, whatever its name stands for by now."""
        status = os.fstat(file.fileno())
        return cls(status.st_size, status.st_mtime, _digest(file, status.st_size))


def _digest(file: BinaryIO, num_bytes: int) -> str:
    digest = hashlib.blake2b(str(num_bytes).encode(), digest_size=8)
    for position in (0, num_bytes // 2, max(0, num_bytes - _DIGESTED_BYTES)):
        file.seek(position)
        digest.update(file.read(_DIGESTED_BYTES))
    return digest.hexdigest()


def describe_parts(ledger: pa.Table, clip_ids: Collection[str]) -> list[str]:
    """Says of which videos only the beginning can be read, and which are damaged elsewhere.

    Args:
        ledger: from `read_ledger`.
        clip_ids: clips that count.

    Returns:
        One sentence for each of the two; none if there is no such video.
    """
    rows = ledger.filter(pc.is_in(ledger["clip_id"], value_set=pa.array(list(clip_ids), pa.string())))
    kinds = (
        (READ_IN_PART, "a video that is cut off or damaged, and the frames before that place"),
        (AFTER_DAMAGE, "a damaged video, and frames that the decoder had to guess"),
    )
    sentences: list[str] = []
    for words, what in kinds:
        found = (
            rows.filter(pc.match_substring(rows["note"].fill_null(""), words)).select(["clip_id", "note"]).to_pylist()
        )
        if found:
            first = next(part for part in found[0]["note"].split("; ") if words in part)
            count = f"{len(found)} clip{' has' if len(found) == 1 else 's have'}"
            sentences.append(f"{count} {what} ({found[0]['clip_id']}: {first})")
    return sentences


def replaced_videos(ledger: pa.Table, paths: pa.ChunkedArray) -> set[str]:
    """Returns the paths of videos that differ from those that were decoded. Videos that are gone do not count.

    Args:
        ledger: from `read_ledger`. Rows without a stamp, which older versions of waver wrote, do not count.
        paths: of the videos to look at; the store may hold those of other experiments as well.
    """
    names = ["path", "file_bytes", "modified_s", "file_digest"]
    asked = pc.and_(pc.is_valid(ledger["file_bytes"]), pc.is_in(ledger["path"], value_set=paths.combine_chunks()))
    stamped = ledger.filter(asked).select(names)
    decoded = dict(zip(stamped["path"].to_pylist(), stamped.drop_columns("path").to_pylist(), strict=True))
    with ThreadPoolExecutor(32) as pool:  # perhaps on a network disk: latency dominates
        replaced = pool.map(_is_replaced, decoded, decoded.values())
        return {path for path, is_replaced in zip(decoded, replaced, strict=True) if is_replaced}


def _is_replaced(path: str, decoded: dict[str, Any]) -> bool:
    with contextlib.suppress(OSError):
        status = Path(path).stat()
        if (status.st_size, status.st_mtime) != (decoded["file_bytes"], decoded["modified_s"]):
            with Path(path).open("rb") as file:
                return _digest(file, status.st_size) != decoded["file_digest"]
    return False


def read_ledger(store: Path) -> pa.Table:
    """Reads the ledgers of all blocks and keeps the best row of each clip.

    Blocks whose clips file is missing or unreadable are ignored, so that ingest decodes their clips again.

    Returns:
        One row per clip, sorted by clip_id: LEDGER_SCHEMA, `block` (name of its file) and `row` (of its frames in that file;
        null if decoding failed).

    Raises:
        StoreError: if there is no store.
    """
    read_store_manifest(store)
    blocks = sorted((file.name for file in fetch_folder(store / "ledger", "*.parquet")), reverse=True)
    if remote_of(store):  # objects are never half-written: existence is enough
        blocks = sorted(set(blocks) & set(list_names(store / "clips")), reverse=True)
    with ThreadPoolExecutor() as pool:  # small files, perhaps on a network disk: latency dominates
        tables = list(pool.map(partial(_read_block_ledger, store), blocks))
    empty = LEDGER_SCHEMA.append(pa.field("block", pa.string())).append(pa.field("row", pa.int32())).empty_table()
    ledger = pa.concat_tables([table for table in tables if table is not None] or [empty])
    # Blocks are sorted newest first. The newest row of a clip names its current video file; rows of other paths, and of
    # files that this file has replaced, are dropped. Of the rest a stable sort puts ok first, and the first row is kept.
    ledger = ledger.filter(pa.array(_equals_newest(ledger, ledger["path"].to_numpy()), pa.bool_()))
    stamped = ledger.filter(pc.is_valid(ledger["file_digest"]))
    kept = np.ones(len(ledger), bool)
    kept[pc.is_valid(ledger["file_digest"]).to_numpy()] = _equals_newest(stamped, stamped["file_digest"].to_numpy())
    ledger = ledger.filter(pa.array(kept))
    failed = pc.not_equal(ledger["status"], "ok").to_numpy()
    ledger = ledger.take(np.argsort(failed, kind="stable"))
    _, first = np.unique(ledger["clip_id"].to_numpy(), return_index=True)
    return ledger.take(first)


def _equals_newest(ledger: pa.Table, values: np.ndarray) -> np.ndarray:
    """Returns whether the value of each row equals that of the first, newest row of its clip."""
    _, newest, clip = np.unique(ledger["clip_id"].to_numpy(), return_index=True, return_inverse=True)
    return values == values[newest][clip]


def ledger_row(result: DecodedClip) -> dict:
    """Returns the ledger row (LEDGER_SCHEMA) of one clip."""
    row = {"clip_id": result.clip_id, "path": result.path, "seconds": result.seconds}
    if result.file:
        row |= {
            "file_bytes": result.file.num_bytes,
            "modified_s": result.file.modified_s,
            "file_digest": result.file.digest,
        }
    row["video_s"] = result.outcome.video_s
    if isinstance(result.outcome, ClipError):
        return {**row, "status": result.outcome.status, "error": result.outcome.reason}
    return {**row, "status": "ok", "decoder": result.outcome.decoder, "note": result.outcome.note}


def group_failures(failed: Iterable[tuple[str, str, str]]) -> dict[str, list[str]]:
    """Groups clips that could not be decoded by their cause.

    Args:
        failed: (name, status, error) of each.

    Returns:
        `status: error` -> names, the most frequent cause first.
    """
    names_of: dict[str, list[str]] = {}
    for name, status, error in failed:
        names_of.setdefault(f"{status}: {error}", []).append(name)
    return dict(sorted(names_of.items(), key=lambda item: -len(item[1])))


def describe_failures(failures: Mapping[str, Sequence[str]], max_causes: int = 5) -> list[str]:
    """Returns a line for each of the most frequent causes, with the number of its clips and some of their names.

    Args:
        failures: from `group_failures`.
        max_causes: number of causes before a last line that counts the others.
    """
    listed = list(failures.items())[:max_causes]
    lines = [f"{len(names)} x {cause} ({abbreviate(names)})" for cause, names in listed]
    if len(failures) > max_causes:
        lines.append(f"and {len(failures) - max_causes} other causes")
    return lines


def _read_block_ledger(store: Path, block: str) -> pa.Table | None:
    """Reads the ledger of a block, with `block` and `row`; returns None if its clips file has another number of clips."""
    try:
        ledger = pq.read_table(store / "ledger" / block, schema=LEDGER_SCHEMA, memory_map=True)
        ok = pc.equal(ledger["status"], "ok").to_numpy()
        num_clips = ok.sum() if remote_of(store) else pq.read_metadata(store / "clips" / block).num_row_groups
    except (pa.ArrowInvalid, OSError):
        return None
    if num_clips != ok.sum():
        return None
    rows = pa.array(np.cumsum(ok) - 1, pa.int32(), mask=~ok)
    return ledger.append_column("block", pa.array([block] * len(ledger), pa.string())).append_column("row", rows)


def read_store_manifest(store: Path) -> dict[str, Any]:
    """Reads the manifest of a clip store.

    Raises:
        StoreError: if there is no store, or if its manifest is damaged.
    """
    return read_manifest(store, what="clip store", command="waver ingest CONFIG", error=StoreError)
