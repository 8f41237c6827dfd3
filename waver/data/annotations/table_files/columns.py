"""The columns of a user's own table, and the other names that they often have."""

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from waver.data.annotations.reading import Problems
from waver.data.annotations.repair_commands import keep_columns_command

REQUIRED = ("video", "caption")
OPTIONAL = ("start_s", "end_s", "split", "style", "video_id")
KNOWN = (*REQUIRED, *OPTIONAL)

_OTHER_NAMES: Mapping[str, str] = {
    "video": "videos filepath videopath videofile videoname videofilename filename file path relpath mp4 media mediapath "
    "clip clippath clipname vid uri url videourl",
    "caption": "captions sentence sentences text texts description descriptions query queries title en encap captiontext "
    "annotation utterance transcript label",
    "start_s": "start starts starttime startsec startsecs startseconds begin begintime tstart from",
    "end_s": "end ends endtime endsec endsecs endseconds stop stoptime tend to",
    "split": "set subset partition fold phase",
    "style": "writingstyle writer author annotator",
    "video_id": "videoid vidid",
}
"""Column -> names that others give to it, in small letters without anything between them, the most certain first."""
_OTHER_UNITS = re.compile(r"(start|begin|end|stop|t?start|t?end)(time)?(ms|msec|millis|milliseconds|frame|frames|idx)")
_NO_TYPO = re.compile(f"[0-9]|^{_OTHER_UNITS.pattern}$")
"""Names that are no misspelling, though similar: of numbered values, and of times in other units."""
_TYPO = 0.75
"""Similarity of two names from which one is taken for a misspelling of the other."""


def resolve_columns(columns: Sequence[str]) -> dict[str, str]:
    """Finds which columns of a table are meant.

    Args:
        columns: as they are in the file.

    Returns:
        Column in the file -> known column: itself, or the one that it seems to be, if the table has no such column.
    """
    meant = {column: column for column in columns if column in KNOWN}

    def take(known: str, column: str | None) -> None:
        if column is not None and known not in meant.values():
            meant[column] = known

    for other_names in ({known: _plain(known) for known in KNOWN}, _OTHER_NAMES):
        for known, names in other_names.items():
            left = {_plain(column): column for column in reversed(columns) if column not in meant}
            take(known, next((left[name] for name in names.split() if name in left), None))
    for known in KNOWN:
        left = [column for column in columns if column not in meant and not _NO_TYPO.search(_plain(column))]
        take(known, next(iter(difflib.get_close_matches(known, left, 1, _TYPO)), None))
    return meant


def check_columns(
    columns: Sequence[str], has_rows: bool, path: Path, problems: Problems, *, required: Sequence[str] = REQUIRED
) -> dict[str, str]:
    """Adds a problem for each column that has another name, is unknown, repeated or missing.

    Args:
        columns: as they are in the file; none if it could not be read.
        has_rows: whether a row could be read.
        path: the file, for the command that drops columns.
        problems: receives the problems.
        required: columns that the table must have.

    Returns:
        As `resolve_columns`.
    """
    meant = resolve_columns(columns)
    unknown = [column for column in dict.fromkeys(columns) if column not in meant]
    for column, count in Counter(columns).items():
        if column in unknown:
            remedy = f"known columns: {', '.join(KNOWN)}"
            if meant:
                remedy = f"delete them: {keep_columns_command(path, list(meant))}"
            problems.add("unknown column", remedy, f"{column!r}{_hint(column)}")
        elif count > 1:
            problems.add("repeated column", "keep one of them", column)
        elif meant[column] != column:
            problems.add(
                "column with another name", "rename each to the name in brackets", f"{column!r} ({meant[column]})"
            )
    for column in [known for known in required if known not in meant.values()] if columns or has_rows else ():
        remedy = f"a table needs {' and '.join(required).replace('video', 'video (path)')}"
        if column == "video" and "video_id" in meant.values():
            remedy += "; if video_id has the names of the files, rename it to video"
        problems.add("missing column", remedy, column)
    return meant


def _hint(column: str) -> str:
    if not column.strip():
        return " (it has no name: pandas writes such an index unless index=False)"
    if column.startswith("__index_level_"):
        return " (the index of pandas: to_parquet(index=False) leaves it out)"
    if _OTHER_UNITS.fullmatch(_plain(column)):
        return " (start_s and end_s are in seconds)"
    near = difflib.get_close_matches(column, KNOWN, 1, _TYPO)
    return f" (did you mean {near[0]}?)" if near else ""


def _plain(name: str) -> str:
    """Returns the letters and digits of a name, in small letters."""
    return re.sub(r"[\W_]", "", name.casefold())
