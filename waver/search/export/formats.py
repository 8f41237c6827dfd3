"""Writes embeddings into files for other programs: NumPy (npz), Parquet or safetensors.

A file has one row per item: its names, its token embeddings with mask and weights, and one pooled vector. Token embeddings
are those of the words of a text or of the frames of a video. They are written part by part: memory holds one part, and the
weights, masks and pooled vectors of all items.
"""

import json
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32

from waver.tools.files import atomic_write

Format = Literal["npz", "parquet", "safetensors"]
FORMATS: tuple[Format, ...] = get_args(Format)

_SAFETENSORS_TYPES = {"int64": "I64", "float64": "F64", "float32": "F32", "bool": "BOOL"}


@dataclass(frozen=True)
class Part:
    """Some consecutive items of a file."""

    values: Float32[np.ndarray, "B L D"]
    """Token embeddings; 0 at masked positions."""
    mask: Bool[np.ndarray, "B L"]
    """True for valid tokens."""
    weights: Float32[np.ndarray, "B L"]
    """Importance of each token; sums to 1 over the valid tokens of an item, and is 0 elsewhere."""
    pooled: Float32[np.ndarray, "B D"]
    """A unit vector for the whole item."""


@dataclass(frozen=True)
class Items:
    """The items of one file."""

    names: pa.Table
    """One row per item: its names, times and the like, in columns of text, int64 or float64."""
    num_tokens: int
    """L, the number of positions of each item."""
    width: int
    """D, dimension of an embedding."""
    parts: Iterable[Part]
    """All items, in order; they can be read only once."""

    @property
    def num_bytes(self) -> int:
        """Size of the embeddings in the file, without the names."""
        return len(self.names) * (4 * self.width * (self.num_tokens + 1) + 5 * self.num_tokens)


def write_items(folder: Path, name: str, items: Items, format: Format) -> list[str]:
    """Writes a file of items, and returns the names of the files written.

    Args:
        folder: folder of the files.
        name: name of the file, without its ending. A safetensors file can hold only numbers, so a second file,
            `<name>.jsonl`, has the names of the items.
        items: the items.
        format: one of `FORMATS`.
    """
    path = folder / f"{name}.{format}"
    with atomic_write(path) as file:
        {"npz": _write_npz, "parquet": _write_parquet, "safetensors": _write_safetensors}[format](file, items)
    if format != "safetensors":
        return [path.name]
    with atomic_write(folder / f"{name}.jsonl") as file:
        for batch in items.names.to_batches(max_chunksize=1024):
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist()).encode())
    return [path.name, f"{name}.jsonl"]


def _write_npz(file: BinaryIO, items: Items) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        rest = _Rest()
        with archive.open("values.npy", "w", force_zip64=True) as member:
            shape = (len(items.names), items.num_tokens, items.width)
            np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": shape})
            for values in rest.collect(items.parts):
                member.write(values.astype("<f4", order="C").tobytes())
        for name, array in (rest.arrays() | _to_numpy(items.names)).items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _write_safetensors(file: BinaryIO, items: Items) -> None:
    """Writes the arrays in the order of their alignment: first those of 8 bytes, then of 4 bytes, then of 1 byte."""
    number, length, width = len(items.names), items.num_tokens, items.width
    numbers = {name: array for name, array in _to_numpy(items.names).items() if array.dtype.kind in "if"}
    shapes = {
        **{name: (array.dtype, array.shape) for name, array in numbers.items()},
        "values": (np.dtype("<f4"), (number, length, width)),
        "weights": (np.dtype("<f4"), (number, length)),
        "pooled": (np.dtype("<f4"), (number, width)),
        "mask": (np.dtype(bool), (number, length)),
    }
    header, stop = {}, 0
    for name, (dtype, shape) in shapes.items():
        start, stop = stop, stop + dtype.itemsize * int(np.prod(shape))
        header[name] = {"dtype": _SAFETENSORS_TYPES[dtype.name], "shape": shape, "data_offsets": (start, stop)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for array in numbers.values():
        file.write(array.tobytes())
    rest = _Rest()
    for values in rest.collect(items.parts):
        file.write(values.astype("<f4", order="C").tobytes())
    for name in ("weights", "pooled", "mask"):
        file.write(rest.arrays()[name].tobytes())


def _write_parquet(file: BinaryIO, items: Items) -> None:
    """Writes a row group per part. Lists have fixed sizes, which vector databases need, and a matrix is one flat list."""
    sizes = {
        "values": (pa.float32(), items.num_tokens * items.width),
        "mask": (pa.bool_(), items.num_tokens),
        "weights": (pa.float32(), items.num_tokens),
        "pooled": (pa.float32(), items.width),
    }
    lists = [pa.field(name, pa.list_(pa.field("item", kind), size)) for name, (kind, size) in sizes.items()]
    schema = pa.schema([*items.names.schema, *lists])
    strings = [field.name for field in items.names.schema if pa.types.is_string(field.type)]
    with pq.ParquetWriter(file, schema, use_dictionary=strings) as writer:
        start = 0
        for part in items.parts:
            names = items.names.slice(start, len(part.values))
            start += len(names)
            arrays = [
                pa.FixedSizeListArray.from_arrays(
                    pa.array(getattr(part, name).reshape(-1), kind), type=schema.field(name).type
                )
                for name, (kind, _) in sizes.items()
            ]
            writer.write_table(pa.table([*names.columns, *arrays], schema=schema))


class _Rest:
    """Collects masks, weights and pooled vectors while the token embeddings are written."""

    def __init__(self) -> None:
        self._parts: dict[str, list[np.ndarray]] = {"weights": [], "pooled": [], "mask": []}

    def collect(self, parts: Iterable[Part]) -> Iterator[np.ndarray]:
        """Yields the token embeddings of each part, and keeps its other arrays."""
        for part in parts:
            for name, kept in self._parts.items():
                kept.append(getattr(part, name))
            yield part.values

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns what was collected, for all items."""
        return {name: np.concatenate(kept) for name, kept in self._parts.items()}


def _to_numpy(names: pa.Table) -> dict[str, np.ndarray]:
    """Returns columns as arrays without objects, which NumPy would pickle: a missing text is "", a missing number NaN."""
    return {
        field.name: np.array(names[field.name].fill_null("").to_pylist(), dtype=str)
        if pa.types.is_string(field.type)
        else names[field.name].to_numpy()
        for field in names.schema
    }
