"""The ledger of a clip store: what became of every clip that was asked for."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from waver.data.video import Clip, ClipError
from waver.tools.errors import WaverError
from waver.tools.files import read_json
from waver.tools.object_store import ObjectStoreError, display_path, fetch_folder, list_names, remote_of

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
"""status: ok, or that of a ClipError; error is null where it is ok, decoder where it is not."""


class StoreError(WaverError):
    """The store cannot be used as asked; the message says what to do."""


@dataclass(frozen=True)
class Decoded:
    """What became of one clip."""

    clip_id: str
    path: str
    seconds: float
    outcome: Clip | ClipError


def read_ledger(store: Path) -> pa.Table:
    """What is known of every clip, a row a clip: LEDGER_SCHEMA, `block`, `row` (of its frames; null where it failed).

    Blocks whose clips file is gone or unreadable do not count: ingest finds their clips unknown and decodes them again.

    Raises:
        StoreError: if there is no store.
    """
    read_manifest(store)
    blocks = sorted((file.name for file in fetch_folder(store / "ledger", "*.parquet")), reverse=True)
    if remote_of(store):  # an object is there as it was sent or not at all, so its clips need not be looked at
        blocks = sorted(set(blocks) & set(list_names(store / "clips")), reverse=True)
    with ThreadPoolExecutor() as pool:  # small files, perhaps on a network disk: waiting, not work
        tables = list(pool.map(partial(_read_block_ledger, store), blocks))
    empty = LEDGER_SCHEMA.append(pa.field("block", pa.string())).append(pa.field("row", pa.int32())).empty_table()
    ledger = pa.concat_tables([table for table in tables if table is not None] or [empty])
    # Newest block first already: the newest row of a clip says which file it is. Of the rows with that file a stable sort
    # brings ok to the front, and the first is kept.
    _, newest, clip = np.unique(ledger["clip_id"].to_numpy(), return_index=True, return_inverse=True)
    paths = ledger["path"].to_numpy()
    ledger = ledger.filter(pa.array(paths == paths[newest][clip]))
    failed = pc.not_equal(ledger["status"], "ok").to_numpy()
    ledger = ledger.take(np.argsort(failed, kind="stable"))
    _, first = np.unique(ledger["clip_id"].to_numpy(), return_index=True)
    return ledger.take(first)


def ledger_row(result: Decoded) -> dict:
    """The row of the ledger (LEDGER_SCHEMA) for one clip."""
    row = {"clip_id": result.clip_id, "path": result.path, "seconds": result.seconds}
    if isinstance(result.outcome, ClipError):
        return {**row, "status": result.outcome.status, "error": result.outcome.reason}
    return {**row, "status": "ok", "decoder": result.outcome.decoder}


def _read_block_ledger(store: Path, block: str) -> pa.Table | None:
    """With `block` and `row`; None where the clips file does not hold what the ledger says."""
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


def read_manifest(store: Path) -> dict:
    """Reads manifest.json of a clip store.

    Raises:
        StoreError: if there is no store, or if its manifest is damaged.
    """
    try:
        return read_json(store / "manifest.json")
    except FileNotFoundError:
        raise StoreError(f"there is no clip store in {display_path(store)}: run `waver ingest CONFIG` first") from None
    except ObjectStoreError:
        raise
    except (OSError, ValueError) as error:
        raise StoreError(
            f"{display_path(store / 'manifest.json')} cannot be read ({error}): delete the folder and ingest again"
        ) from None
