"""The embedding store: embeddings of frames and captions by frozen towers, computed once and read by every run.

A store is a folder that several processes may read and write at the same time. It holds the frames of clips, or the tokens
of captions, never both:

    manifest.json            what the values depend on, and the counts of the last embedding
    items/<block>.parquet    one row per clip or caption

A block is written under a temporary name and then gets a unique name. Items are computed in batches of one size, so that the
bits of an item do not depend on the other items of its block. If two writers embed the same item, their rows are equal.

A row names the source that it was computed from. The source of a clip is the name of its block in the clip store. A clip
that was decoded again is in a block with another name: its old row counts as missing, and the clip is embedded again.

Any program can read the files as Parquet. The values of a file lie uncompressed in one page, and waver maps them into
memory. Processes of a node thus share them through the page cache, and each holds only an index.
"""

import dataclasses
import logging
import mmap
import time
import uuid
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float32, Int32

import waver
from waver.tools.errors import WaverError
from waver.tools.files import atomic_write, read_manifest, write_json
from waver.tools.object_store import ObjectStoreError, display_path, exists, fetch_once, list_names

logger = logging.getLogger(__name__)

Precision = Literal["fp16", "bf16", "fp32"]

ITEMS_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("crc32", pa.uint32(), nullable=False),
        pa.field("values", pa.binary(), nullable=False),
    ]
)
"""id: clip id, or the caption itself. source: see above; empty for captions. length: number of frames or tokens. crc32:
checksum of `values`. values: (length, width) in the precision of the store, little-endian."""
_PREFIX_BYTES = 4
"""Parquet writes the length of a binary value before it."""
_DTYPES: Mapping[Precision, str] = {"fp16": "<f2", "bf16": "<u2", "fp32": "<f4"}


class EmbeddingError(WaverError):
    """An embedding store is missing, damaged, or belongs to other clips, weights or settings."""


@dataclass(frozen=True)
class EmbeddingSettings:
    """What the values of a store depend on."""

    kind: Literal["frames", "tokens", "windows"]
    width: int
    """D, dimension of an embedding."""
    precision: Precision
    """Precision of the stored values; they are computed in fp32."""
    tower: str
    """Hash of architecture, weights and preprocessing of the tower."""
    inputs: dict[str, Any]
    """How the inputs of the tower are made: settings of the clip store, or prompt and length of captions."""

    @property
    def bytes_per_position(self) -> int:
        """Size of a stored frame or token."""
        return self.width * np.dtype(_DTYPES[self.precision]).itemsize


def create_embeddings(folder: Path, settings: EmbeddingSettings) -> None:
    """Creates a store, or checks that an existing one has the same settings.

    Raises:
        EmbeddingError: if the store has other settings.
    """
    (folder / "items").mkdir(parents=True, exist_ok=True)
    if not exists(folder / "manifest.json"):
        write_json(folder / "manifest.json", _manifest(settings, complete=False, num_items=0))
    check_settings(folder, read_settings(folder), settings)


def check_settings(folder: Path, there: EmbeddingSettings, asked: EmbeddingSettings) -> None:
    """Checks that the settings `there`, of a store, equal those that are `asked` for.

    Raises:
        EmbeddingError: if they differ, with both values of each setting that does.
    """
    then, now = dataclasses.asdict(there), dataclasses.asdict(asked)
    different = [f"{name}: {then[name]} in the store, {now[name]} requested" for name in now if then[name] != now[name]]
    if different:
        raise EmbeddingError(
            f"{display_path(folder)} was made from something else ({'; '.join(different)}): delete the folder, and run "
            "`waver embed CONFIG`"
        )


def read_settings(folder: Path) -> EmbeddingSettings:
    """Reads the settings of a store.

    Raises:
        EmbeddingError: if there is no store, or its manifest is damaged.
    """
    try:
        return EmbeddingSettings(**_read_manifest(folder)["settings"])
    except (KeyError, TypeError) as error:
        raise EmbeddingError(
            f"{display_path(folder / 'manifest.json')} cannot be read ({error}): delete the folder, and run "
            "`waver embed CONFIG`"
        ) from error


def write_items(
    folder: Path, settings: EmbeddingSettings, items: Iterable[tuple[str, str, Float32[np.ndarray, "_ D"]]]
) -> None:
    """Writes embeddings as a new block.

    Args:
        folder: folder of the store.
        settings: settings of the store.
        items: (id, source, values) of each item, at least one.

    Raises:
        EmbeddingError: if a value is NaN or infinite, or too large for the precision of the store.
        OSError: if the block cannot be written; no part of it remains.
    """
    rows = []
    for item, source, values in items:
        assert values.shape[1] == settings.width, "all embeddings of a store have its width"
        encoded = encode(values, settings.precision)
        if not np.isfinite(decode(encoded.tobytes(), settings.precision)).all():
            remedy = " in fp16: set embeddings.precision to bf16 or fp32"
            if not np.isfinite(values).all():
                remedy = ": the weights are probably damaged; set model.weights to an intact copy"
            raise EmbeddingError(f"the embedding of {item!r} has values that are NaN or infinite{remedy}")
        data = encoded.tobytes()
        rows.append((item, source, len(values), zlib.crc32(data), data))
    columns = [list(column) for column in zip(*rows, strict=True)]
    block = f"{time.time_ns():020d}-{uuid.uuid4().hex[:12]}.parquet"
    # One page of plain, uncompressed values, which can be mapped into memory.
    plain = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    with atomic_write(folder / "items" / block) as file:
        table = pa.table(columns, schema=ITEMS_SCHEMA)
        pq.write_table(table, file, **plain, data_page_size=2**30, write_batch_size=2**20, row_group_size=2**20)


def mark_complete(folder: Path) -> None:
    """Writes into the manifest that the store is complete: it has all items that were asked for."""
    write_json(
        folder / "manifest.json",
        _manifest(read_settings(folder), complete=True, num_items=len(EmbeddingStore(folder))),
    )


def _manifest(settings: EmbeddingSettings, *, complete: bool, num_items: int) -> dict[str, Any]:
    return {
        "waver": waver.__version__,
        "settings": dataclasses.asdict(settings),
        "complete": complete,
        "num_items": num_items,
    }


def _read_manifest(folder: Path) -> dict[str, Any]:
    return read_manifest(folder, what="embedding store", command="waver embed CONFIG", error=EmbeddingError)


def encode(values: Float32[np.ndarray, "L D"], precision: Precision) -> np.ndarray:
    """Rounds values to the nearest ones of a precision, ties to even. A bf16 value is the upper half of a float32."""
    if precision != "bf16":
        with np.errstate(over="ignore"):  # reported by the caller, with the name of the item
            return values.astype(_DTYPES[precision])
    bits = values.astype("<f4").view("<u4")
    rounded = bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))
    return np.where(np.isnan(values), 0x7FC0, rounded >> 16).astype("<u2")


def decode(data: bytes | memoryview, precision: Precision) -> Float32[np.ndarray, " n"]:
    """Converts stored values to float32."""
    stored = np.frombuffer(data, _DTYPES[precision])
    if precision == "bf16":
        return (stored.astype("<u4") << 16).view("<f4")
    return stored.astype("<f4")


class EmbeddingStore:
    """Reads the items of a store, as of its opening, in any order. It can be pickled; threads may share it.

    Files that are damaged are left out, with a warning: their items count as missing.

    Attributes:
        path: folder of the store.
        manifest: content of manifest.json.
        settings: what the values depend on.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.manifest = _read_manifest(self.path)
        self.settings = read_settings(self.path)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_rows"}

    @cached_property
    def _rows(self) -> "_Rows":
        with ThreadPoolExecutor() as pool:  # perhaps on a network disk: latency dominates
            opened = pool.map(self._open, list_names(self.path / "items", "*.parquet"))
            blocks = [block for block in opened if block is not None]
        keys = [key for block in blocks for key in block.keys]
        numbers = np.repeat(np.arange(len(blocks)), [len(block.keys) for block in blocks])
        empty = np.empty(0, np.int64)
        starts, lengths, crcs = (
            np.concatenate([empty, *(getattr(block, name) for block in blocks)]).astype(np.int64)
            for name in ("starts", "lengths", "crcs")
        )
        return _Rows(dict(zip(keys, range(len(keys)), strict=True)), blocks, numbers, starts, lengths, crcs)

    def __len__(self) -> int:
        """Returns the number of items; an item that was embedded from several sources counts once for each source."""
        return len(self._rows.of_key)

    def missing(self, sources: Mapping[str, str]) -> list[str]:
        """Returns those items of `sources` (id -> source) that are not stored, or only from another source."""
        return [item for item, source in sources.items() if _key(item, source) not in self._rows.of_key]

    def read(
        self, items: Sequence[tuple[str, str]], max_length: int
    ) -> tuple[Float32[np.ndarray, "B L D"], Int32[np.ndarray, " B"]]:
        """Reads items, in the given order.

        Args:
            items: id and source of each of B items.
            max_length: L, the number of positions of the result.

        Returns:
            values, zero after the last position of each item; length, the number of positions of each item.

        Raises:
            EmbeddingError: if an item is missing, or its values are damaged.
        """
        values = np.zeros((len(items), max_length, self.settings.width), np.float32)
        lengths = np.empty(len(items), np.int32)
        for position, (item, source) in enumerate(items):
            row = self._rows.of_key.get(_key(item, source))
            if row is None:
                raise EmbeddingError(
                    f"{item!r} has no embedding in {display_path(self.path)}: run `waver embed CONFIG` to embed what is "
                    "missing"
                )
            start, length = int(self._rows.starts[row]), int(self._rows.lengths[row])
            block = self._rows.blocks[self._rows.block_numbers[row]]
            data = block.mapped[start : start + length * self.settings.bytes_per_position]
            if zlib.crc32(data) != self._rows.crcs[row]:
                raise EmbeddingError(
                    f"{block.name} is damaged (the values of {item!r} have changed): delete it and run "
                    "`waver embed CONFIG`, which embeds its items again"
                )
            values[position, :length] = decode(data, self.settings.precision).reshape(length, -1)
            lengths[position] = length
        return values, lengths

    def _open(self, name: str) -> "_Block | None":
        """Opens a block; returns None if it is damaged."""
        path = self.path / "items" / name
        try:
            fetch_once(path)
            with pq.ParquetFile(path, memory_map=True) as parquet:
                table = parquet.read(columns=ITEMS_SCHEMA.names[:-1], use_threads=False)
            with path.open("rb") as file:
                mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
            lengths = table["length"].to_numpy()
            starts = _starts_of_values(path, mapped, lengths.astype(np.int64) * self.settings.bytes_per_position)
        except ObjectStoreError:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            logger.warning(f"{display_path(path)} is damaged ({error}): delete it. Its items count as missing")
            return None
        keys = [_key(*pair) for pair in zip(table["id"].to_pylist(), table["source"].to_pylist(), strict=True)]
        return _Block(display_path(path), mapped, keys, starts, lengths, table["crc32"].to_numpy())


@dataclass(frozen=True)
class _Block:
    """A block that is mapped into memory: its values stay on disk until they are read."""

    name: str
    mapped: memoryview
    """The mapped file."""
    keys: list[str]
    starts: np.ndarray
    """First byte of the values of each row."""
    lengths: np.ndarray
    crcs: np.ndarray


@dataclass(frozen=True)
class _Rows:
    """The rows of all blocks."""

    of_key: dict[str, int]
    """Key of an item (see `_key`) -> its row. If blocks have equal rows of an item, it is any of them."""
    blocks: list[_Block]
    block_numbers: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    crcs: np.ndarray


def _key(item: str, source: str) -> str:
    return f"{source}\0{item}" if source else item


def _starts_of_values(path: Path, mapped: memoryview, num_bytes: np.ndarray) -> np.ndarray:
    """Returns the first byte of each value of a block.

    Raises:
        ValueError: if the values do not lie in one page of plain, uncompressed values.
    """
    metadata = pq.read_metadata(path)
    if metadata.num_row_groups != 1:
        raise ValueError(f"{metadata.num_row_groups} row groups instead of one")
    column = metadata.row_group(0).column(metadata.num_columns - 1)
    if column.compression != "UNCOMPRESSED" or column.has_dictionary_page:
        raise ValueError("its values are compressed")
    sizes = num_bytes + _PREFIX_BYTES
    # The page ends where the column ends. Its header precedes the values and varies in size: so count from the end.
    first = column.data_page_offset + column.total_compressed_size - int(sizes.sum())
    starts = first + np.concatenate([[0], np.cumsum(sizes)[:-1]]) + _PREFIX_BYTES
    for row in (0, len(starts) - 1):
        prefix = mapped[starts[row] - _PREFIX_BYTES : starts[row]]
        if int.from_bytes(prefix, "little") != num_bytes[row]:
            raise ValueError("its values are not where they should be")
    return starts
