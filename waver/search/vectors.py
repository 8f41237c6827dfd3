"""Stores the embeddings of the windows of an index in one file, in the order of its windows.

While `waver index` computes embeddings, it writes them in blocks of 64 windows. A million windows are 15,625 blocks, which
take long to open. At its end, `waver index` therefore moves the embeddings of all windows to one file, and deletes the
blocks. It does not move embeddings of videos that have changed or are gone.

    vectors/manifest.json        the names of the two files, and the digest of their windows
    vectors/<name>.values        all frames of all windows, (frames, D) in the precision of the embedding store
    vectors/<name>.rows      one row per window, `_ROW`

The values are mapped into memory, so opening reads only the rows: 24 bytes per window. A process that has the files open
keeps reading them when they are replaced. Windows that were added later are read from their blocks, so an index can be
searched while it grows.
"""

import hashlib
import logging
import uuid
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, Int32, Int64, UInt64

from waver.data.embedding_store import EmbeddingError, EmbeddingSettings, EmbeddingStore, decode, encode
from waver.search.index import SearchError, found_windows
from waver.tools.files import atomic_write, read_json, write_json

logger = logging.getLogger(__name__)

_ROW = np.dtype([("key", "<u8"), ("start", "<i8"), ("length", "<i4"), ("crc32", "<u4")])
"""key: see `window_keys`; start: place of its first frame among all frames; length: number of its frames; crc32: checksum
of its stored values."""
_CHUNK = 1024
"""Windows that are copied at a time."""
_REWRITTEN_FRACTION = 0.05
"""Share of the windows that may be new or gone before the file is written again."""


@dataclass(frozen=True)
class _File:
    """The two files, open; both are empty if there are none yet."""

    values: np.ndarray
    """Mapped into memory, bytes of (frames, D)."""
    rows: np.ndarray
    names: tuple[str, ...] = ()
    digest: str = ""
    """That of the windows, see `windows_digest`."""


class Vectors:
    """Reads the embeddings of some windows by their numbers. Threads may share it.

    Args:
        folder: folder of the index.
        settings: of its embeddings.
        windows: the windows that a search can return; the number of a window is its row.

    Attributes:
        settings: as given.

    Raises:
        SearchError: if the files are damaged.
    """

    def __init__(self, folder: Path, settings: EmbeddingSettings, windows: pa.Table):
        self._folder, self.settings, self._windows = folder, settings, windows
        self._file = _open(folder, settings)
        self._in_order = self._file.digest == windows_digest(windows)
        self._checked = np.zeros(len(self._file.rows), bool)

    def __len__(self) -> int:
        return len(self._windows)

    @cached_property
    def _places(self) -> Int64[np.ndarray, " windows"]:
        """The row of each window in the file; -1 for windows that are still in a block."""
        if self._in_order:
            return np.arange(len(self._windows))
        stored, keys = self._file.rows["key"], window_keys(self._windows)
        if not len(stored):
            return np.full(len(keys), -1)
        order = np.argsort(stored)
        found = order[np.searchsorted(stored, keys, sorter=order).clip(max=len(stored) - 1)]
        return np.where(stored[found] == keys, found, -1)

    @cached_property
    def _blocks(self) -> EmbeddingStore:
        return EmbeddingStore(self._folder / "embeddings")

    @property
    def num_changed(self) -> int:
        """Number of windows that are not in the file, and of rows of the file that belong to no window."""
        num_moved = int((self._places >= 0).sum())
        return len(self._windows) - num_moved + len(self._file.rows) - num_moved

    def missing(self) -> list[int]:
        """Returns the numbers of windows whose embeddings are neither in the file nor in a block."""
        elsewhere = np.flatnonzero(self._places < 0)
        if not len(elsewhere):
            return []
        rows = self._windows.take(pa.array(elsewhere))
        items = zip(rows["window_id"].to_pylist(), rows["source"].to_pylist(), strict=True)
        return [
            int(number)
            for number, (item, source) in zip(elsewhere, items, strict=True)
            if self._blocks.missing({item: source})
        ]

    def read(
        self, numbers: Sequence[int], max_length: int
    ) -> tuple[Float32[np.ndarray, "B L D"], Int32[np.ndarray, " B"]]:
        """Reads the embeddings of windows, in the given order.

        Args:
            numbers: numbers of B windows.
            max_length: L, the number of positions of the result.

        Returns:
            The embeddings, zero after the last frame of each window, and the number of frames of each window.

        Raises:
            SearchError: if the embeddings of a window are missing or damaged.
        """
        chosen = np.asarray(numbers, np.int64)
        places = self._places[chosen]
        values = np.zeros((len(chosen), max_length, self.settings.width), np.float32)
        lengths = np.zeros(len(chosen), np.int32)
        moved = places >= 0
        if moved.any():
            self._read_file(places[moved], moved, values, lengths)
        if not moved.all():
            rows = self._windows.take(pa.array(chosen[~moved]))
            items = list(zip(rows["window_id"].to_pylist(), rows["source"].to_pylist(), strict=True))
            try:
                values[~moved], lengths[~moved] = self._blocks.read(items, max_length)
            except EmbeddingError as error:  # its remedy is that of an embedding store of an experiment
                raise SearchError(
                    f"embeddings of {self._folder} cannot be read: search again if `waver index` was running; "
                    f"otherwise run it again, which embeds what is missing ({str(error).partition(':')[0]})"
                ) from error
        return values, lengths

    def _read_file(
        self,
        places: Int64[np.ndarray, " b"],
        into: Bool[np.ndarray, " B"],
        values: Float32[np.ndarray, "B L D"],
        lengths: Int32[np.ndarray, " B"],
    ) -> None:
        rows = self._file.rows[places]
        lengths[into] = rows["length"]
        for row, place, position in zip(rows, places, np.flatnonzero(into), strict=True):
            data = memoryview(self._file.values)[_span(row, self.settings)]
            if not self._checked[place] and zlib.crc32(data) != row["crc32"]:
                raise _damaged(self._folder / "vectors", "the values of a window have changed")
            self._checked[place] = True
            values[position, : row["length"]] = decode(data, self.settings.precision).reshape(row["length"], -1)


def lost_windows(folder: Path, settings: EmbeddingSettings) -> set[str]:
    """Returns the ids of windows whose embeddings are gone, for example because damaged files were deleted.

    Raises:
        SearchError: if the files are damaged.
    """
    windows = found_windows(folder)
    numbers = Vectors(folder, settings, windows).missing()
    return set(windows["window_id"].take(pa.array(numbers, pa.int64())).to_pylist())


def move_embeddings(folder: Path, settings: EmbeddingSettings, windows: pa.Table, max_length: int) -> None:
    """Moves the embeddings of all windows from their blocks to the file.

    If few windows have changed, it moves nothing: these windows stay in their blocks. Blocks are deleted only when the file
    is complete, so an interruption loses nothing. The next command then deletes the blocks and files that are left over.

    Args:
        folder: folder of the index, whose lock the caller holds.
        settings: of its embeddings.
        windows: the windows that a search can return.
        max_length: most frames of a window.

    Raises:
        SearchError: if an embedding is missing or damaged.
        OSError: if the file cannot be written; the blocks are still there.
    """
    _delete_left_over(folder, settings)
    vectors = Vectors(folder, settings, windows)
    num_changed = vectors.num_changed
    if not len(windows) or 0 < num_changed <= _REWRITTEN_FRACTION * len(windows):
        return
    blocks = sorted((folder / "embeddings" / "items").glob("*.parquet"))
    if num_changed:
        logger.info(f"moving the embeddings of {len(windows):,} windows into one file")
        write_vectors(folder, settings, windows, _all_values(vectors, len(windows), max_length))
    for block in blocks:
        block.unlink()


def write_vectors(
    folder: Path, settings: EmbeddingSettings, windows: pa.Table, values: Iterable[Float32[np.ndarray, "L D"]]
) -> None:
    """Writes the file from the embeddings of the frames of each window, and deletes the former one.

    Args:
        folder: folder of the index.
        settings: of its embeddings.
        windows: the windows; their order is that of `values`.
        values: unpadded frames of a window each.
    """
    before, name = _open(folder, settings).names, uuid.uuid4().hex[:12]
    names = (f"{name}.values", f"{name}.rows")
    rows = np.zeros(len(windows), _ROW)
    rows["key"] = window_keys(windows)
    start = 0
    with atomic_write(folder / "vectors" / names[0]) as file:
        for row, of_window in zip(rows, values, strict=True):
            data = encode(of_window, settings.precision).tobytes()
            row["start"], row["length"], row["crc32"] = start, len(of_window), zlib.crc32(data)
            start += len(of_window)
            file.write(data)
    with atomic_write(folder / "vectors" / names[1]) as file:
        file.write(rows.tobytes())
    write_json(folder / "vectors" / "manifest.json", {"files": names, "windows": windows_digest(windows)})
    for old in before:
        (folder / "vectors" / old).unlink()


def _delete_left_over(folder: Path, settings: EmbeddingSettings) -> None:
    """Deletes files that are left over from commands that were stopped while they replaced the file."""
    kept = {"manifest.json", *_open(folder, settings).names}
    for path in (folder / "vectors").glob("*"):
        if path.name not in kept:
            path.unlink()


def window_keys(windows: pa.Table) -> UInt64[np.ndarray, " windows"]:
    """Returns a 64-bit hash of the id and the source of each window.

    Two of 10 million windows have the same hash with a probability below 10^-5.
    """
    joined = _joined(windows).to_pylist()
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8).digest() for text in joined)
    return np.frombuffer(digests, "<u8")


def windows_digest(windows: pa.Table) -> str:
    """Returns a digest of windows: it changes with their ids, their sources or their order."""
    digest = hashlib.sha256()
    for chunk in _joined(windows).chunks:
        digest.update(pc.binary_length(chunk).to_numpy(zero_copy_only=False).tobytes())
        starts = np.frombuffer(chunk.buffers()[1], np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
        digest.update(memoryview(chunk.buffers()[2])[starts[0] : starts[-1]] if len(chunk) else b"")
    return digest.hexdigest()[:32]


def _joined(windows: pa.Table) -> pa.ChunkedArray:
    table = windows.select(["source", "window_id"]).combine_chunks()  # one chunk: the digest depends on the rows alone
    joined = pc.binary_join_element_wise(table["source"], table["window_id"], "\0")
    return joined if isinstance(joined, pa.ChunkedArray) else pa.chunked_array([joined])


def _all_values(vectors: Vectors, number: int, max_length: int) -> Iterator[Float32[np.ndarray, "L D"]]:
    """Yields the frames of each window."""
    for first in range(0, number, _CHUNK):
        numbers = range(first, min(first + _CHUNK, number))
        for values, length in zip(*vectors.read(numbers, max_length), strict=True):
            yield values[:length]


def _span(row: np.void, settings: EmbeddingSettings) -> slice:
    start, length, size = int(row["start"]), int(row["length"]), settings.bytes_per_position
    return slice(start * size, (start + length) * size)


def _open(folder: Path, settings: EmbeddingSettings) -> _File:
    """Opens the files of an index; both are empty if there are none yet."""
    place = folder / "vectors"
    if not (place / "manifest.json").exists():
        return _File(np.empty(0, np.uint8), np.empty(0, _ROW))
    try:
        manifest = read_json(place / "manifest.json")
        names = tuple(manifest["files"])
        rows = np.fromfile(place / names[1], _ROW)
        values = np.memmap(place / names[0], np.uint8, mode="r")
        if not len(rows) or _span(rows[-1], settings).stop != len(values):
            raise ValueError("it is cut off")
        return _File(values, rows, names, manifest["windows"])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise _damaged(place, str(error)) from error


def _damaged(place: Path, what: str) -> SearchError:
    return SearchError(
        f"{place} is damaged ({what}): delete this folder, and run `waver index` again, which embeds its windows again"
    )
