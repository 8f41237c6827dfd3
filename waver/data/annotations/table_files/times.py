"""Reads the start and the end of a segment from a row of a user's own table."""

import datetime
import math
import re
from collections.abc import Collection
from typing import Any

from waver.data.annotations.reading import Problems, excerpt
from waver.data.annotations.table_files.read import Row

_CLOCK = re.compile(r"(?:([0-9]+):)?([0-9]{1,2}):([0-9]{1,2}(?:[.,][0-9]+)?)")
_THOUSANDS = re.compile(r"[1-9][0-9]{0,2},[0-9]{3}\b.*")
"""A number such as 1,500, whose comma may separate thousands or decimals."""
_WITH_UNIT = re.compile(r"([0-9]+(?:[.,][0-9]+)?) ?(?:s|sec|secs|seconds?)?")


def parse_segment(
    row: Row, columns: Collection[str], where: str, problems: Problems
) -> tuple[float | None, float | None]:
    """Reads `start_s` and `end_s` of a row.

    Args:
        row: values of the row by column.
        columns: columns of the table.
        where: place of the row in the file, for messages.
        problems: receives the mistakes in the times.

    Returns:
        Start and end in seconds; (None, None) for the whole video, and an end of None for the end of the video.
    """
    start_s, end_s = (
        _seconds(row, name, where, problems) if name in columns else None for name in ("start_s", "end_s")
    )
    if start_s is None and end_s is not None:
        start_s = 0.0
    if start_s is not None and start_s < 0:
        problems.add("negative start_s", "seconds count from the beginning of the video", f"{where}: {start_s:g}")
    elif start_s is not None and end_s is not None and start_s >= end_s:
        segment = f"{where}: {start_s:g} to {end_s:g}"
        problems.add("segment that ends before it starts", "end_s must be after start_s", segment)
    return start_s, end_s


def _seconds(row: Row, column: str, where: str, problems: Problems) -> float | None:
    value = row.get(column)
    if value is None or value == "":
        return None
    try:
        # Python reads 1_000 as a thousand.
        seconds = math.nan if isinstance(value, bool) or "_" in str(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if math.isfinite(seconds):
        return seconds + 0.0  # -0.0 becomes 0.0
    where = f"{where}: {excerpt(value)}"
    if (meant := _guess_seconds(value)) is not None:
        problems.add(f"{column} that is not in seconds", "write the number in brackets", f"{where} ({meant:.12g})")
    else:
        problems.add(f"{column} that is not a number", "write seconds, or nothing", where)
    return None


def _guess_seconds(value: Any) -> float | None:
    """Returns the seconds that a time such as 00:01:30 or 2,5 s means; None if that is not clear."""
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, datetime.time):
        value = value.isoformat()
    if not isinstance(value, str):
        return None
    text = value.strip().lower()
    if match := _CLOCK.fullmatch(text):
        hours, minutes, seconds = match.groups()
        return 3600 * int(hours or 0) + 60 * int(minutes) + float(seconds.replace(",", "."))
    match = None if _THOUSANDS.fullmatch(text) else _WITH_UNIT.fullmatch(text)
    return float(match[1].replace(",", ".")) if match else None
