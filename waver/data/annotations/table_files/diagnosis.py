"""Says what a file is that cannot be read as a table, with one thing to do. Only called after reading has failed."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from waver.data.annotations.encoding import wide_encoding
from waver.data.annotations.reading import UNREADABLE, read_bytes
from waver.data.annotations.repair_commands import separator_command
from waver.data.annotations.table_files.columns import REQUIRED, resolve_columns
from waver.data.annotations.table_files.delimited import name_shape
from waver.data.annotations.table_files.json_shapes import Diagnosis, describe_json, published_data_set
from waver.tools.file_kinds import NUM_BYTES, describe_bytes

_SEPARATORS = ",;\t|"
_NUM_LINES, _MAX_LINE = 20, 10_000
"""How much of a file is looked at: lines, and characters of each."""
_CLIP_ID = re.compile(r"[\w-]{11}_[0-9]{1,6}_[0-9]{1,6}|[0-9]+@N[0-9]{2}_[0-9]+_[0-9a-f]+\.\w*")
_FILES_OF = {
    "msrvtt": ("MSR-VTT", ("MSRVTT_data.json", "MSR_VTT.json", "MSRVTT_JSFUSION_test.csv", "MSRVTT_train.9k.csv")),
    "msvd": ("MSVD", ("captions_msvd.json", "raw-captions.pkl")),
    "vatex": ("VATEX", ("vatex_training_v1.0.json", "vatex_data.json", "ref_captions.json")),
    "didemo": ("DiDeMo", ("train_data.json", "didemo_train_label.csv")),
}
_REMEDIES = {
    "an Excel workbook": "save it as CSV UTF-8 (File, Save As), and name that file",
    "an old Office document, such as .xls": "save it as CSV UTF-8 (File, Save As), and name that file",
    "a web page": "download the file itself, not the page that shows it",
    "a pointer of Git LFS, not the file itself": "fetch the file itself with `git lfs pull`",
    "a ZIP archive": "unpack it, and name the file in it",
    "a tar archive": "unpack it, and name the file in it",
    "a pickle": "write it as JSON Lines where you trust it, since a pickle can run any program: pandas.read_pickle(...)"
    ".to_json('captions.jsonl', orient='records', lines=True)",
    "an Arrow file": "write it as Parquet: pandas.read_feather(...).to_parquet('captions.parquet')",
}
_OTHERWISE = "name a file in JSONL, CSV, TSV or Parquet"


def diagnose_table(path: Path) -> Diagnosis | None:
    """Returns what a file is that was given as a table; None if it seems to be a table with mistakes, or cannot be read."""
    if path.is_dir():
        return _describe_folder(path)
    try:
        data = read_bytes(path)
    except UNREADABLE:
        return None
    if wide_encoding(data):  # `read_text` has said so
        return None
    suffix = path.suffix.lower()
    if (kind := describe_bytes(data[:NUM_BYTES])) and not (kind == "a Parquet file" and suffix == ".parquet"):
        own_suffix = {"a Parquet file": ".parquet", "a gzip file": f"{path.suffix}.gz"}.get(kind)
        rename = f"give it the name {path.stem}{own_suffix}" if own_suffix else _OTHERWISE
        return Diagnosis(f"file that is {kind}", _REMEDIES.get(kind, rename))
    if suffix == ".parquet" and b"\x00" in data[:NUM_BYTES]:
        return None
    text = data.decode("utf-8-sig", "replace")
    if not text.strip("\ufeff\x00 \t\r\n"):
        return Diagnosis("empty file" if not data else "file of blanks only", "write one row per caption")
    plain_suffix = path.with_suffix("").suffix.lower() if suffix == ".gz" else suffix
    if text.lstrip()[0] in "[{":
        is_json = plain_suffix in (".json", ".jsonl")
        if diagnosis := describe_json(text, path):
            return diagnosis
        return None if is_json else Diagnosis("file that holds JSON Lines", _rename(path, ".jsonl"))
    return _describe_delimited(text, path, plain_suffix)


def _describe_folder(path: Path) -> Diagnosis:
    names = {name.name.removesuffix(".gz") for name in path.iterdir()}
    for data_format, (name, files) in _FILES_OF.items():
        if names & set(files):
            return Diagnosis(f"folder of original files of {name}", f"use format: {data_format}")
    tables = sorted(name for name in names if Path(name).suffix in (".jsonl", ".json", ".csv", ".tsv", ".parquet"))
    found = f", such as {tables[0]}" if tables else ""
    return Diagnosis("folder instead of a file", f"data.annotations is one file for format: table{found}")


def _rename(path: Path, suffix: str) -> str:
    plain, packed = (path.with_suffix(""), ".gz") if path.suffix == ".gz" else (path, "")
    return f"give it the name {plain.stem}{suffix}{packed}"


def _describe_delimited(text: str, path: Path, suffix: str) -> Diagnosis | None:
    """Describes a text that is no JSON."""
    lines = [line[:_MAX_LINE] for line in text.replace("\x00", "").strip().splitlines()[:_NUM_LINES]]
    own = {".csv": ",", ".tsv": "\t"}.get(suffix)
    if match := re.fullmatch(r"sep=(.)", lines[0]):
        if match[1] == own:
            return Diagnosis("first line `sep=...` of Excel", "delete the first line")
        command = separator_command(path, match[1], skipped_lines=1)
        return Diagnosis(f"table separated by {match[1]}", f"write it with commas: {command}")
    tables = {separator: [row for row in csv.reader(lines, delimiter=separator) if row] for separator in _SEPARATORS}
    best = max(tables, key=lambda separator: (*_fitness(tables[separator]), separator == own))
    header = tables[best][0]
    if diagnosis := _describe_original(header, lines[-1], path):
        return diagnosis
    meant_of = [{*resolve_columns(row).values()} for row in tables[own]] if own else []
    if number := next((number for number, meant in enumerate(meant_of) if meant >= {*REQUIRED}), 0):
        return Diagnosis("table whose header is not its first line", f"delete the line{'s' * (number > 1)} before it")
    if len(header) < 2:
        return None
    if best != own:
        return _describe_separator(best, path, suffix)
    below = tables[best][min(1, len(tables[best]) - 1)]
    is_row = any(name_shape(name) == name_shape(under) is not None for name, under in zip(header, below, strict=False))
    if is_row and not resolve_columns(header):
        return Diagnosis(
            "table without a header", "write the names of its columns in the first line, such as video,caption"
        )
    return None


def _fitness(table: Sequence[Sequence[str]]) -> tuple[int, bool, int]:
    """Returns how well a separator fits: columns with known names, whether all rows are as long, number of columns."""
    widths = {len(row) for row in table}
    return len(resolve_columns(table[0])), widths == {len(table[0])} and widths != {1}, min(widths)


def _describe_separator(separator: str, path: Path, suffix: str) -> Diagnosis:
    kind = f"table separated by {separator}".replace("\t", "tabs")
    if separator in ",\t":
        kind = kind if suffix in (".csv", ".tsv") else f"table in a {suffix or 'nameless'} file"
        return Diagnosis(kind, _rename(path, ".csv" if separator == "," else ".tsv"))
    return Diagnosis(kind, f"write it with commas: {separator_command(path, separator)}")


def _describe_original(header: Sequence[str], last_line: str, path: Path) -> Diagnosis | None:
    """Describes the csv files and lists of published data sets."""
    if {"vid_key", "video_id", "sentence"} <= {*header} or (
        list(header) == ["video_id"] and last_line.startswith("video")
    ):
        return published_data_set("msrvtt", "MSR-VTT", path)
    if {"video_path", "text", "formatted_data"} <= {*header}:
        return published_data_set("didemo", "DiDeMo", path)
    if _CLIP_ID.fullmatch(last_line.strip()):
        remedy = f"use the format of that data set, with data.annotations: {path.parent} (the folder of this file)"
        return Diagnosis("list of the clips of MSVD, VATEX or DiDeMo", remedy)
    return None
