"""Finds out the encoding of a text file that is not UTF-8, for messages that say how to convert it."""

import re
from pathlib import Path

from waver.data.annotations.repair_commands import iconv_command

_MARKS: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_HIGH_BYTES = re.compile(rb"[\x80-\xff]+")
_WESTERN_RUN = 3
"""Longest run of accented letters and quotation marks in Western European texts."""


def wide_encoding(data: bytes) -> str | None:
    """Returns the encoding, in the words of `iconv`, of a text with two or four bytes a character; None for others."""
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return encoding
    begins = data[:1000]
    for place, encoding in ((1, "UTF-16LE"), (0, "UTF-16BE")):
        # In Western texts one of the two bytes is nearly always 0.
        if len(begins) > 3 and begins[place::2].count(0) > 0.8 * (len(begins) // 2):
            return encoding
    return None


def describe_wrong_bytes(data: bytes, path: Path) -> str:
    """Returns what to do about the bytes of a file that are not UTF-8.

    Args:
        data: the content, which is no UTF-8.
        path: the file.
    """
    if any(not line.isascii() and _decodes(line, "utf-8") for line in data.split(b"\n")):
        return "correct these lines: others are UTF-8, so the file is a mixture, which no program can convert"
    is_western = all(len(run) <= _WESTERN_RUN for run in _HIGH_BYTES.findall(data))
    if is_western and _decodes(data, "cp1252"):
        return f"save the file in UTF-8; it seems to be Windows-1252: {iconv_command(path, 'CP1252')}"
    return f"save the file in UTF-8, or convert it from its encoding, such as GBK: {iconv_command(path, 'GBK')}"


def _decodes(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True
