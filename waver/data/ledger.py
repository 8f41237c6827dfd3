"""The ledger of a clip store: the outcome of decoding each requested clip."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from waver.data.video import Clip, ClipError
from waver.tools.errors import WaverError
from waver.tools.files import read_manifest
from waver.tools.object_store import fetch_folder, list_names, remote_of

LEDGER_SCHEMA = pa.schema(
    {
        "clip_id": pa.string(),
        "path": pa.string(),
        "status": pa.string(),
        "error": pa.string(),
        "decoder": pa.string(),
        "seconds": pa.float64(),
    }
)
"""status: ok or that of the `ClipError`; error: its reason, null if ok; decoder: null unless ok."""


class StoreError(WaverError):
    """A clip store is missing, damaged, or does not fit the request."""


@dataclass(frozen=True)
class DecodedClip:
    """The outcome of decoding one clip."""

    clip_id: str
    path: str
    seconds: float
    outcome: Clip | ClipError


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
    # Blocks are sorted newest first. The newest row of a clip names its current video file; rows of other files are dropped.
    # Of the rest a stable sort puts ok first, and the first row is kept.
    _, newest, clip = np.unique(ledger["clip_id"].to_numpy(), return_index=True, return_inverse=True)
    paths = ledger["path"].to_numpy()
    ledger = ledger.filter(pa.array(paths == paths[newest][clip]))
    failed = pc.not_equal(ledger["status"], "ok").to_numpy()
    ledger = ledger.take(np.argsort(failed, kind="stable"))
    _, first = np.unique(ledger["clip_id"].to_numpy(), return_index=True)
    return ledger.take(first)


def ledger_row(result: DecodedClip) -> dict:
    """Returns the ledger row (LEDGER_SCHEMA) of one clip."""
    row = {"clip_id": result.clip_id, "path": result.path, "seconds": result.seconds}
    if isinstance(result.outcome, ClipError):
        return {**row, "status": result.outcome.status, "error": result.outcome.reason}
    return {**row, "status": "ok", "decoder": result.outcome.decoder}


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
