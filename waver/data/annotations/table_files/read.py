"""Reads the file of a user's own table: JSON Lines, CSV, TSV or Parquet."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from waver.data.annotations.reading import Problems, read_text
from waver.data.annotations.table_files.columns import REQUIRED, check_columns
from waver.data.annotations.table_files.delimited import read_csv
from waver.data.annotations.table_files.diagnosis import diagnose_table
from waver.data.annotations.table_files.json_lines import read_jsonl
from waver.data.annotations.table_files.parquet import read_parquet

_EXAMPLE = '{"video": ..., "caption": ...}'

Row = Mapping[str, Any]


def read_table_file(
    path: Path, problems: Problems, *, required: Sequence[str] = REQUIRED
) -> tuple[set[str], list[tuple[str, Row]]]:
    """Reads every row of a table.

    Args:
        path: a `.jsonl` (or `.json`, one object a line), `.csv` or `.tsv` file, each also as `.gz`, or a `.parquet` file.
        problems: receives what is wrong with the file as a whole, its lines and its columns. If the file turns out to be
            something else, this is the only problem.
        required: columns that the table must have.

    Returns:
        The known columns that could be read, and every row with its place in the file ("line 2") and its values by known
        column. Rows that cannot be read are left out; columns with another name count as what they seem to be, so that
        their values can be checked too.
    """
    own = Problems()
    columns, rows = _read(path, own)
    meant = check_columns(columns, bool(rows), path, own, required=required)
    if not rows and not len(own):
        own.add("table without rows", f"write one row per {required[-1]}, with {' and '.join(required)}", path.name)
    # One row may be a whole table in another form.
    if (len(own) or len(rows) == 1) and (diagnosis := diagnose_table(path)):
        problems.add(diagnosis.kind, diagnosis.remedy, path.name)
        return set(), []
    problems.extend(own)
    header = {column: column for column in columns}
    if repeated := [where for where, row in rows if row == header]:
        rows = [(where, row) for where, row in rows if row != header]
    for where in repeated:
        problems.add("header in the middle of the file", "delete this line", where)
    if meant != header:
        rows = [
            (where, {meant[column]: value for column, value in row.items() if column in meant}) for where, row in rows
        ]
    return {column for _, row in rows for column in row}, list(rows)


def _read(path: Path, problems: Problems) -> tuple[list[str], Sequence[tuple[str, Row]]]:
    """Returns the columns and the rows of the file."""
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if path.name.lower().endswith(".parquet"):
        return read_parquet(path, problems)
    if suffix not in (".jsonl", ".json", ".csv", ".tsv"):
        kinds = "JSONL (.jsonl), CSV (.csv), TSV (.tsv), each also as .gz, and Parquet (.parquet) are read"
        problems.add("unknown kind of file", kinds, path.name)
        return [], []
    if (text := read_text(path, problems)) is None:
        return [], []
    text = text.replace("\n\ufeff", "\n")  # the byte order mark of a second file that was joined to the first
    if suffix in (".jsonl", ".json"):
        return read_jsonl(text, _EXAMPLE, problems)
    return read_csv(text, problems, delimiter="\t" if suffix == ".tsv" else ",")
