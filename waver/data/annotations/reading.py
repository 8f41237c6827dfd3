"""Reads the files of a data set and collects everything that is wrong with them, for one error at the end."""

import gzip
import json
import re
import reprlib
import unicodedata
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard

from waver.data.annotations.encoding import describe_wrong_bytes, wide_encoding
from waver.data.annotations.repair_commands import iconv_command
from waver.tools.errors import WaverError

MAX_BYTES = 2**30
"""Largest decompressed size of a file, ten times that of the largest annotation file."""
_EXAMPLES = 5
_EXAMPLE_LENGTH = 160

_SURROGATE = re.compile("[\ud800-\udfff]")
_INVISIBLE = ("Cc", "Cf", "Cs", "Mn", "Me", "Zl", "Zp", "Zs")
"""Unicode categories of characters that show nothing by themselves: controls, marks, blanks."""
_BLANK_LETTERS = "\u115f\u1160\u2800\u3164\uffa0"
"""Characters of other categories that show nothing: fillers of Hangul, the empty Braille pattern."""
UNREADABLE = (OSError, EOFError, zlib.error, ValueError)
"""Raised by `read_bytes`."""

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

    def extend(self, others: "Problems") -> None:
        """Adds all problems of another collection."""
        for (kind, remedy), examples in others._examples.items():
            self._examples.setdefault((kind, remedy), []).extend(examples)

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
    if not is_text(caption):
        return "caption that is not text"
    if "\x00" in caption:
        return "caption with a NUL character"
    if is_visible(caption):
        return None
    return "caption of invisible characters only" if caption.strip() else "empty caption"


def is_visible(text: str) -> bool:
    """Returns whether at least one character of a text shows something: is no blank, mark or control character."""
    if text[:1].isascii() and text[:1].isalnum():  # nearly always
        return True
    return any(unicodedata.category(char) not in _INVISIBLE and char not in _BLANK_LETTERS for char in text)


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
        data = read_bytes(path)
        return True, json.loads(data.decode("utf-8-sig"))
    except (*UNREADABLE, RecursionError) as error:
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


def read_bytes(path: Path) -> bytes:
    """Returns the content of a file; that of a `.gz` file is unpacked.

    Raises:
        ValueError: if it unpacks to more than `MAX_BYTES`; see `UNREADABLE` for the errors of damaged and missing files.
    """
    if path.suffix.lower() != ".gz":
        return path.read_bytes()
    with gzip.open(path) as file:
        if len(data := file.read(MAX_BYTES + 1)) > MAX_BYTES:
            raise ValueError(f"it unpacks to more than {MAX_BYTES // 2**20} MiB")
    return data


def read_text(path: Path, problems: Problems) -> str | None:
    """Reads UTF-8, plain or `.gz`, with or without byte order mark.

    Returns:
        The text, or None if the file cannot be read. Bytes that are not UTF-8 are a problem and become U+FFFD, so that the
        rest can still be checked.
    """
    try:
        data = read_bytes(path)
    except UNREADABLE as error:
        reason = getattr(error, "strerror", None) or error
        problems.add("unreadable file", "the file must exist and be readable", f"{path} ({reason})")
        return None
    if encoding := wide_encoding(data):
        remedy = f"convert it, and name the new file: {iconv_command(path, encoding)}"
        problems.add(f"file in {encoding} instead of UTF-8", remedy, path.name)
        return None
    wrong = []
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            line.decode("utf-8")
        except UnicodeDecodeError as error:
            wrong.append(f"{path.name} line {number} (byte 0x{line[error.start]:02x})")
    remedy = describe_wrong_bytes(data, path) if wrong else ""
    for what in wrong:
        problems.add("line that is not UTF-8", remedy, what)
    return data.decode("utf-8-sig", errors="replace")
