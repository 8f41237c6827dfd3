"""Reads the files of a data set and collects everything that is wrong with them, for one error at the end."""

import csv
import gzip
import io
import json
import re
import reprlib
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from waver.tools.errors import WaverError

MAX_BYTES = 2**30
"""Largest decompressed size of a file, ten times that of the largest annotation file."""
_EXAMPLES = 5
_EXAMPLE_LENGTH = 160

_SURROGATE = re.compile("[\ud800-\udfff]")

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = _shortened.maxlong = _EXAMPLE_LENGTH


class AnnotationError(WaverError):
    """The annotations cannot be used; the message lists every kind of problem."""


class Problems:
    """The problems of a data set, grouped by kind and remedy. Its length is the number of problems so far."""

    def __init__(self) -> None:
        self._examples: dict[tuple[str, str], list[str]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._examples.values()))

    def add(self, kind: str, remedy: str, example: object) -> None:
        """Adds one problem; problems with the same kind and remedy are reported together."""
        self._examples.setdefault((kind, remedy), []).append(str(example))

    def raise_if_any(self, source: Path) -> None:
        """Raises AnnotationError with all problems of `source`, if there are any."""
        if not self._examples:
            return
        lines = [f"{source}: {'1 problem' if len(self) == 1 else f'{len(self)} problems'}"]
        for (kind, remedy), examples in self._examples.items():
            shown = [text if len(text) <= _EXAMPLE_LENGTH else f"{text[:_EXAMPLE_LENGTH]}..." for text in examples]
            more = ", ..." if len(shown) > _EXAMPLES else ""
            lines += [f"  {len(shown)} x {kind}: {', '.join(shown[:_EXAMPLES])}{more}", f"      {remedy}"]
        # File names may contain bytes that are not UTF-8, which cannot be printed.
        raise AnnotationError("\n".join(lines).encode("utf-8", "backslashreplace").decode())


def excerpt(value: Any) -> str:
    """Returns the shortened `repr` of a value from a file, which may be large or deeply nested."""
    return _shortened.repr(value)


def is_text(value: Any) -> TypeGuard[str]:
    """Returns whether a value is a string that UTF-8 can encode; JSON strings may contain lone surrogates."""
    return isinstance(value, str) and not _SURROGATE.search(value)


def caption_defect(caption: Any) -> str | None:
    """Returns the kind of problem that a caption has, or None if it is valid."""
    if not isinstance(caption, str) or _SURROGATE.search(caption):
        return "caption that is not text"
    return None if caption.strip() else "empty caption"


def check_folder(folder: Path, content: str, problems: Problems) -> None:
    """Raises AnnotationError if `folder` is a file; the message says which files (`content`) the folder should hold."""
    if folder.is_file():
        problems.add("file instead of a folder of annotations", f"name the folder with {content}", folder)
        problems.raise_if_any(folder)


def find_file(folder: Path, names: Sequence[str]) -> Path | None:
    """Returns the first of some files that exists, plain or compressed (`.gz`)."""
    candidates = (folder / f"{name}{ending}" for name in names for ending in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def read_json(path: Path, problems: Problems) -> tuple[bool, Any]:
    """Returns whether a JSON file, plain or `.gz`, could be read, and its content."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                if len(data := file.read(MAX_BYTES + 1)) > MAX_BYTES:
                    raise ValueError(f"it unpacks to more than {MAX_BYTES // 2**20} MiB")
        else:
            data = path.read_bytes()
        return True, json.loads(data.decode("utf-8-sig"))
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        problems.add("unreadable JSON file", "copy or download it again", f"{path.name} ({error})")
        return False, None


def report_unknown_schema(path: Path, content: Any, understood: str, problems: Problems) -> None:
    """Adds the problem that the schema of a JSON file is none of those that are `understood`."""
    if isinstance(content, dict):
        keys = ", ".join(list(content)[:5]) + (", ..." if len(content) > 5 else "")
        found = f"keys {keys or '(none)'}"
    else:
        found = type(content).__name__
    problems.add("unknown JSON schema", understood, f"{path.name} has {found}")


def read_text(path: Path, problems: Problems) -> str | None:
    """Reads UTF-8, with or without byte order mark.

    Returns:
        The text, or None if the file cannot be read. Bytes that are not UTF-8 are a problem and become U+FFFD, so that the
        rest can still be checked.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        problems.add("unreadable file", "the file must exist and be readable", f"{path} ({error.strerror})")
        return None
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            what = f"{path.name} line {number} (byte 0x{line[error.start]:02x})"
            problems.add("line that is not UTF-8", "save the file in UTF-8", what)
    return data.decode("utf-8-sig", errors="replace")


def read_csv(text: str, problems: Problems, source: str = "") -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """Reads comma-separated values with a header.

    Args:
        text: the content.
        problems: receives rows that cannot be parsed.
        source: name of the file, for messages about more than one file.

    Returns:
        The header; for every row, the place where it begins ("line 2" or "line 2 of <source>") and its values by column.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    rows: list[tuple[str, dict[str, str]]] = []
    for line, values in _numbered(reader, problems, source):
        if not header:
            header = values
        elif len(values) != len(header):
            remedy = f"every row needs the {len(header)} fields of the header; put a field with a comma in quotes"
            problems.add("row with a wrong number of fields", remedy, f"{line} ({len(values)})")
        else:
            rows.append((line, dict(zip(header, values, strict=True))))
    return header, rows


def read_jsonl(text: str, example: str, problems: Problems) -> tuple[list[str], list[tuple[str, dict[str, Any]]]]:
    """Reads JSON Lines: one object per line.

    Args:
        text: the content.
        example: an example of a line, for messages.
        problems: receives lines that cannot be parsed.

    Returns:
        The keys of all objects; for every object, its place ("line 2") and the object.
    """
    if text.lstrip().startswith("["):
        problems.add("JSON array", "write one object a line, without brackets and commas around them", "line 1")
        return [], []
    rows: list[tuple[str, dict[str, Any]]] = []
    # str.splitlines would also split at characters that JSON allows inside a string (U+2028, U+0085).
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.add(
                "line that is not JSON", "write one object a line", f"line {number} ({getattr(error, 'msg', error)})"
            )
            continue
        if isinstance(row, dict):
            rows.append((f"line {number}", row))
        else:
            problems.add("line that is not a JSON object", f"write {example}", f"line {number}")
    return list({column: None for _, row in rows for column in row}), rows


def _numbered(reader: Any, problems: Problems, source: str) -> Iterator[tuple[str, list[str]]]:
    """Yields the nonblank records of a csv.reader, each with the line where it begins, up to the first syntax error."""
    while True:
        line = f"line {reader.line_num + 1}" + (f" of {source}" if source else "")
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            remedy = "correct its quotes; the rest of the file was not read"
            problems.add("record that is not CSV", remedy, f"{line} ({error})")
            return
        if values:
            yield line, values
