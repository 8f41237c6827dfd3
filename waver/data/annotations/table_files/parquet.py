"""Reads the rows of a Parquet file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from waver.data.annotations.reading import MAX_BYTES, Problems
from waver.data.annotations.repair_commands import explode_command
from waver.data.annotations.table_files.columns import resolve_columns

_ROWS_AT_A_TIME = 256
_MAX_ROWS = 20_000_000


def read_parquet(path: Path, problems: Problems) -> tuple[list[str], list[tuple[str, Mapping[str, Any]]]]:
    """Returns all columns, and every row with its place ("row 2") and its values in the columns that are meant.

    Args:
        path: the file.
        problems: receives a file that cannot be read, and columns that hold lists or structs.
    """
    try:
        with pq.ParquetFile(path) as file:
            schema, metadata = file.schema_arrow, file.metadata
        meant = resolve_columns(schema.names)
        nested = [
            name for name in meant if schema.names.count(name) == 1 and pa.types.is_nested(schema.field(name).type)
        ]
        for name in nested:
            problems.add(*_describe_nested(path, name, schema.field(name).type))
        read = [name for name in meant if name not in nested and schema.names.count(name) == 1]
        _check_declared_size(metadata)
        rows = _read_rows(path, read, metadata) if read else []
        return schema.names, [(f"row {number}", row) for number, row in enumerate(rows, 1)]
    # ValueError: text that is not UTF-8. OverflowError: years that Python cannot represent.
    except (OSError, pa.ArrowException, ValueError, OverflowError) as error:
        problems.add("unreadable file", "the file must exist, be readable and be Parquet", f"{path} ({error})")
        return [], []


def _read_rows(path: Path, columns: list[str], metadata: pq.FileMetaData) -> list[dict[str, Any]]:
    # Dictionaries keep equal texts once: a small file can repeat a long text millions of times.
    repeating = [name for name in columns if name not in _delta_encoded_columns(metadata)]
    rows, size = [], 0
    with pq.ParquetFile(path, read_dictionary=repeating) as file:
        for batch in file.iter_batches(batch_size=_ROWS_AT_A_TIME, columns=columns):
            values = {name: _as_python(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)}
            size += sum(len(value) if isinstance(value, str) else 8 for column in values.values() for value in column)
            if size > MAX_BYTES:
                raise ValueError(f"it unpacks to more than {MAX_BYTES // 2**20} MiB")
            rows += [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
    return rows


def _describe_nested(path: Path, name: str, kind: pa.DataType) -> tuple[str, str, str]:
    """Returns kind, remedy and example of a column whose values are no single values."""
    if pa.types.is_struct(kind) or pa.types.is_map(kind) or pa.types.is_union(kind):
        return "column that holds structs", "write one value in each row", f"{name} ({kind})"
    return "column that holds lists", f"write one row for each value: {explode_command(path, name)}", f"{name} ({kind})"


def _check_declared_size(metadata: pq.FileMetaData) -> None:
    """Raises ValueError if the metadata declares a file that is too large; reading it stops at the same size anyway."""
    size = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    if size > MAX_BYTES or metadata.num_rows > _MAX_ROWS:
        raise ValueError(
            f"its {metadata.num_rows} rows unpack to {size // 2**20} MiB; at most {_MAX_ROWS} rows and "
            f"{MAX_BYTES // 2**20} MiB are read"
        )


def _delta_encoded_columns(metadata: pq.FileMetaData) -> set[str]:
    """Returns the columns with a delta encoding (texts stored as differences), which Arrow cannot read as a dictionary."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    columns = (group.column(number) for group in groups for number in range(group.num_columns))
    return {column.path_in_schema for column in columns if any(name.startswith("DELTA") for name in column.encodings)}


def _as_python(column: pa.Array) -> list[Any]:
    """Returns the values; equal values of a dictionary-encoded column are one object.

    Raises:
        ArrowInvalid: if an index of a damaged column lies outside of its dictionary.
    """
    if not pa.types.is_dictionary(column.type):
        return column.to_pylist()
    column.validate(full=True)  # a negative index would otherwise take a value from the end
    values = column.dictionary.to_pylist()
    return [None if index is None else values[index] for index in column.indices.to_pylist()]
