"""Reads rows of a clips file of the clip store, and encodes and decodes JPEG frames.

Raw frames are read directly from their place in the file, and everything else with pyarrow.

A row group holds one clip. In the files that waver writes, the column chunk of `clip_id` is followed by that of `frames`,
both plain and uncompressed:

    page header, levels, length, clip_id | page header, levels, length, pixels, length, pixels, ...

One system call reads both chunks and puts the pixels of each frame where the caller wants them. The rest of a row, without
the clip_id and the lengths of its frames, is its `Envelope`: a few dozen bytes. The caller trusts a row that was read in
this way only if its clip_id and lengths are right, and if an equal envelope has been verified: pyarrow has read a row with
that envelope and found the same frames. pyarrow interprets equal bytes equally, so that it need not read the row again.
"""

import io
import os
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

_LENGTH_BYTES = 4
"""Bytes of the length before each value of a plain column of strings or bytes (little-endian)."""
_MAX_FRAMES = 500
"""Largest number of frames that are read at their place: a system call fills at most 1,024 buffers, two for each frame."""
_MAX_ENVELOPE_BYTES = 4096
_NAMES = ["clip_id", "frames", "num_frames"]
_COLUMNS = (("clip_id", 1, 0), ("frames.list.element", 3, 1))
"""Path, and maximal definition and repetition level (of Parquet), of the columns that are read at their place."""


class Envelope(NamedTuple):
    """What a row has besides its clip_id and its frames."""

    before_clip_id: bytes
    after_clip_id: bytes
    num_frames: int


class ClipsFile:
    """An open clips file. It closes itself when nothing refers to it; several threads may read it at the same time.

    Args:
        path: the file.
        layout: `layout` of the same file when it was opened earlier; None to read it from the file.

    Attributes:
        layout: int64 (rows, 4), one row per clip: the bytes of the file at which its chunk of `clip_id` begins and ends, and
            at which the following chunk of `frames` ends; the number of its frames. All are -1 if the row cannot be read at
            its place.

    Raises:
        pa.ArrowInvalid: if the file is damaged.
        OSError: if it cannot be opened.
    """

    def __init__(self, path: Path, layout: np.ndarray | None = None):
        self._path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._parquet: pq.ParquetFile | None = None
        self._lock = threading.Lock()  # a ParquetFile is not thread-safe
        self.layout = _read_layout(path) if layout is None else layout

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def read_at_place(self, row: int, clip_id: str, target: np.ndarray) -> Envelope | None:
        """Reads the raw frames of a row into the first frames of `target`.

        Args:
            row: number of the row.
            clip_id: expected clip of the row.
            target: uint8 (F, height, width, 3), contiguous. Its content is arbitrary if None is returned.

        Returns:
            The envelope of the row. None if the row holds another clip, frames of another size or more than F frames, or if
            it was written in a layout that cannot be read at its place.
        """
        start, clip_id_end, end, num_frames = self.layout[row].tolist() if row < len(self.layout) else (-1,) * 4
        frame_bytes = target[0].nbytes
        rest = end - start - num_frames * (_LENGTH_BYTES + frame_bytes)
        name = clip_id.encode()
        name_start = clip_id_end - start - len(name)
        if start < 0 or num_frames > min(len(target), _MAX_FRAMES) or not 0 <= name_start < rest <= _MAX_ENVELOPE_BYTES:
            return None
        head, lengths = bytearray(rest), np.empty((num_frames, 1), "<u4")
        buffers = [head, *(part for pair in zip(lengths, target, strict=False) for part in pair)]
        if os.preadv(self._descriptor, buffers, start) != end - start:
            return None
        before, found, after = head[:name_start], head[name_start:][: len(name)], head[name_start + len(name) :]
        if found != name or (lengths != frame_bytes).any():
            return None
        return Envelope(bytes(before), bytes(after), num_frames)

    def read_with_pyarrow(self, row: int, clip_id: str) -> pa.Array:
        """Returns the frames of a row as they are stored, one binary value each.

        Raises:
            pa.ArrowException: if the file is damaged, or the row is another clip.
            OSError: if the file cannot be read.
        """
        with self._lock:
            if self._parquet is None:
                # Not mapped into memory: if the file were truncated meanwhile, reading past its end would kill the process.
                self._parquet = pq.ParquetFile(self._path)
            clip = self._parquet.read_row_group(row, columns=_NAMES, use_threads=False)
        if clip["clip_id"].to_pylist() != [clip_id]:
            raise pa.ArrowInvalid(f"row {row} is another clip")
        values = clip["frames"].chunk(0).flatten()
        if [len(values)] != clip["num_frames"].to_pylist() or values.null_count:
            raise pa.ArrowInvalid(f"row {row} has another number of frames than it claims")
        return values


def _read_layout(path: Path) -> np.ndarray:
    """Returns the `layout` of a clips file from its metadata."""
    metadata = pq.read_metadata(path)
    layout = np.full((metadata.num_row_groups, 4), -1, np.int64)
    columns = [metadata.schema.column(index) for index in range(min(2, metadata.num_columns))]
    found = tuple((column.path, column.max_definition_level, column.max_repetition_level) for column in columns)
    if found != _COLUMNS:
        return layout
    for row, place in enumerate(layout):
        group = metadata.row_group(row)
        clip_id, frames = group.column(0), group.column(1)
        is_plain = not any(
            chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page or chunk.physical_type != "BYTE_ARRAY"
            for chunk in (clip_id, frames)
        )
        clip_id_end = clip_id.data_page_offset + clip_id.total_compressed_size
        if is_plain and group.num_rows == clip_id.num_values == 1 and frames.data_page_offset == clip_id_end:
            end = clip_id_end + frames.total_compressed_size
            place[:] = clip_id.data_page_offset, clip_id_end, end, frames.num_values
    return layout


def encode_jpeg(frame: np.ndarray, *, quality: int) -> bytes:
    """Returns a frame, uint8 (height, width, 3), as a JPEG file of a quality from 1 to 95."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def decode_jpeg(value: pa.Buffer, *, size: int) -> np.ndarray:
    """Returns the frame of a JPEG file, uint8 (size, size, 3).

    Raises:
        ValueError: if the frame has another size.
        OSError: if the file is damaged.
    """
    with Image.open(io.BytesIO(value), formats=["JPEG"]) as image:  # some of Pillow's other formats start programs
        if image.size != (size, size):
            raise ValueError(f"a frame of {image.width} x {image.height} pixels")
        return np.asarray(image)
