"""Reading a data set's files while collecting what is wrong with them, for one error at the end."""

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VIDEO_SUFFIXES = frozenset(
    [".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".3gp", ".ts"]
)

_EXAMPLES = 5
_EXAMPLE_LENGTH = 160


class AnnotationError(ValueError):
    """The annotations cannot be used; the message lists every kind of problem."""


class Problems:
    """What is wrong with a data set, by kind.

    Its length is the number of problems so far.
    """

    def __init__(self) -> None:
        self._examples: dict[tuple[str, str], list[str]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._examples.values()))

    def add(self, kind: str, remedy: str, example: object) -> None:
        """Notes one problem; those with the same kind and remedy are reported together."""
        self._examples.setdefault((kind, remedy), []).append(str(example))

    def raise_if_any(self, source: Path) -> None:
        """Raises AnnotationError with everything noted about `source`, if anything was."""
        if not self._examples:
            return
        lines = [f"{source}: {'1 problem' if len(self) == 1 else f'{len(self)} problems'}"]
        for (kind, remedy), examples in self._examples.items():
            shown = [text if len(text) <= _EXAMPLE_LENGTH else f"{text[:_EXAMPLE_LENGTH]}..." for text in examples]
            more = ", ..." if len(shown) > _EXAMPLES else ""
            lines += [f"  {len(shown)} x {kind}: {', '.join(shown[:_EXAMPLES])}{more}", f"      {remedy}"]
        raise AnnotationError("\n".join(lines))


def is_text(value: Any) -> bool:
    """Whether a value is a string that can be stored: JSON can hold halves of characters, UTF-8 cannot."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def index_videos(videos: Path, problems: Problems) -> list[Path]:
    """Finds the video files in a folder and its subfolders, links included, sorted by path."""
    if not videos.is_dir():
        problems.add("missing folder of videos", "put the video files there, or say where they are", videos)
        return []
    found, pending, visited, num_problems = [], [videos], set(), len(problems)
    while pending:
        folder = pending.pop()
        # A linked folder may contain the link.
        if (real := folder.resolve()) in visited:
            continue
        visited.add(real)
        try:
            with os.scandir(folder) as scan:
                entries = sorted((entry.name, entry.is_dir(), entry.is_file()) for entry in scan)
        except OSError as error:
            problems.add(
                "unreadable folder of videos", "make it readable, or take it out", f"{folder} ({error.strerror})"
            )
            continue
        for name, is_folder, is_file in entries:
            if is_folder:
                pending.append(folder / name)
            elif is_file and Path(name).suffix.lower() in VIDEO_SUFFIXES:
                found.append(folder / name)
    if not found and len(problems) == num_problems:
        suffixes = ", ".join(sorted(VIDEO_SUFFIXES))
        problems.add("folder without video files", f"put the video files there ({suffixes})", videos)
    return sorted(found)


def read_text(path: Path, problems: Problems) -> str | None:
    """Reads UTF-8, with or without byte order mark.

    Returns:
        The text, with U+FFFD where a line was not UTF-8 (which is a problem), so that the rest can still be checked;
        None if there is nothing to read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        problems.add("unreadable file", "it must exist and be readable", f"{path} ({error.strerror})")
        return None
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            what = f"{path.name} line {number} (byte 0x{line[error.start]:02x})"
            problems.add("line that is not UTF-8", "save the file in UTF-8", what)
    return data.decode("utf-8-sig", errors="replace")


def read_csv(text: str, problems: Problems, of: str = "") -> tuple[list[str], list[tuple[str, dict[str, str]]]]:
    """Reads comma-separated values with a header.

    Args:
        text: the content.
        problems: receives what is wrong.
        of: follows every "line 2"; the file, where there are several.

    Returns:
        The header, and for every row where it begins ("line 2") and its values by column.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    rows: list[tuple[str, dict[str, str]]] = []
    for line, values in _numbered(reader, problems, of):
        if not header:
            header = values
        elif len(values) != len(header):
            remedy = f"every row needs the {len(header)} fields of the header; a field with a comma is put in quotes"
            problems.add("row with a wrong number of fields", remedy, f"{line} ({len(values)})")
        else:
            rows.append((line, dict(zip(header, values, strict=True))))
    return header, rows


def read_jsonl(text: str, example: str, problems: Problems) -> tuple[list[str], list[tuple[str, dict[str, Any]]]]:
    """Reads an object a line.

    Args:
        text: the content.
        example: how a line looks.
        problems: receives what is wrong.

    Returns:
        The names in the objects, and for every object where it stands ("line 2") and itself.
    """
    if text.lstrip().startswith("["):
        problems.add("JSON array", "write one object a line, without brackets and commas around them", "line 1")
        return [], []
    rows: list[tuple[str, dict[str, Any]]] = []
    # Not splitlines: it also splits at characters that JSON allows inside a string (U+2028, U+0085).
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


def _numbered(reader: Any, problems: Problems, of: str) -> Iterator[tuple[str, list[str]]]:
    """The records of a csv.reader that are not blank, each with the line in which it begins, up to the first defect."""
    while True:
        line = f"line {reader.line_num + 1}{of}"
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            remedy = "mend its quotes; nothing after it was read"
            problems.add("record that is not CSV", remedy, f"{line} ({error})")
            return
        if values:
            yield line, values
