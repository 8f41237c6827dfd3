"""Records which results people judge good or bad, and turns the good ones into a test set for `waver evaluate`.

    judgements.jsonl            the test set: one row per query and window whose last verdict is good, see `load_table`
    judgements.verdicts.jsonl   all verdicts in their order; the last one on a query and a window holds

A verdict is appended and synced to disk before the server confirms it, so neither a crash nor a second server loses one.
Bad results are in the second file only: a test set lists right answers, and counts all other windows as wrong.
"""

import fcntl
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO, Literal

from waver.data.annotations.table import is_caption
from waver.tools.errors import WaverError
from waver.tools.files import can_write, write_text

logger = logging.getLogger(__name__)

Verdict = Literal["good", "bad"]


class JudgementError(WaverError):
    """A verdict cannot be recorded."""


@dataclass(frozen=True)
class Judged:
    """The query and the window that a verdict is about. The window has the same path and times in each index."""

    query: str
    path: str
    """Absolute, of the video."""
    start_s: float | None
    end_s: float | None


@dataclass(frozen=True)
class _Entry:
    """A line of the file of verdicts."""

    judged: Judged
    video_id: str
    verdict: Verdict | None
    """None if an earlier verdict was withdrawn."""

    @classmethod
    def parse(cls, line: bytes) -> "_Entry":
        """Parses a line of the file of verdicts.

        Raises:
            ValueError: if the line is not a verdict.
        """
        try:
            row = json.loads(line)
            judged = Judged(*(row[name] for name in ("query", "path", "start_s", "end_s")))
            if row["verdict"] not in ("good", "bad", None):
                raise ValueError(f"unknown verdict {row['verdict']!r}")
            return cls(judged, row["video_id"], row["verdict"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no verdict: {error!r}") from error


class Judgements:
    """The files of verdicts; several threads and servers may use them at the same time.

    Args:
        path: path of the test set, a JSON lines file. If it exists, `waver serve` must have made it.

    Attributes:
        path: path of the test set.
        verdicts_path: path of the file with all verdicts.

    Raises:
        JudgementError: if another program made the file, or its folder cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path.absolute()
        self.verdicts_path = self.path.with_name(f"{self.path.stem}.verdicts.jsonl")
        self._lock = threading.Lock()
        if self.path.suffix != ".jsonl":
            raise JudgementError(f"--judgements {path}: name a file that ends in .jsonl, such as judgements.jsonl")
        if self.path.exists() and not self.verdicts_path.exists():
            raise JudgementError(
                f"--judgements {path} exists, but not {self.verdicts_path.name} beside it, so waver serve has not made it: "
                "name another file"
            )
        if not self.path.parent.is_dir() or not can_write(self.path.parent):
            raise JudgementError(
                f"verdicts cannot be written to the folder {self.path.parent}: name a file in another folder "
                "(--judgements FILE)"
            )
        if self.verdicts_path.exists():  # perhaps the last server was killed between the two files
            self.record(None)

    def record(self, entry: "tuple[Judged, str, Verdict | None] | None") -> None:
        """Records a verdict, and brings the test set up to date.

        Args:
            entry: query and window, id of the video, and the verdict; a verdict of None withdraws the earlier one. An entry
                of None only brings the test set up to date.

        Raises:
            JudgementError: if the query cannot be a caption of a test set.
        """
        if entry is not None and not is_caption(entry[0].query):
            raise JudgementError("This query cannot be a caption of a test set: write a sentence.")
        with self._lock, self.verdicts_path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed
            if entry is not None:
                _append(file, {**asdict(entry[0]), "video_id": entry[1], "verdict": entry[2]})
            rows = _test_set(self._read(file))
            write_text(self.path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))

    def of_query(self, query: str) -> dict[Judged, Verdict]:
        """Returns the verdicts that hold for a query."""
        if not self.verdicts_path.exists():
            return {}
        with self._lock, self.verdicts_path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            latest = _latest(self._read(file))
        return {
            judged: entry.verdict
            for judged, entry in latest.items()
            if judged.query == query and entry.verdict is not None
        }

    def _read(self, file: BinaryIO) -> Iterator[_Entry]:
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                yield _Entry.parse(line)
            except ValueError as error:  # the server was killed while it wrote this verdict, and never confirmed it
                logger.warning(f"{self.verdicts_path}, line {number}: damaged, and left out ({error})")


def _append(file: BinaryIO, row: Mapping[str, Any]) -> None:
    """Appends a line and waits until it is on disk; a line that a crash left unfinished is ended first."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    ending = b"" if file.read(1) in (b"", b"\n") else b"\n"
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    file.write(ending + json.dumps({**row, "time": now}, ensure_ascii=False).encode() + b"\n")
    file.flush()
    os.fsync(file.fileno())


def _latest(entries: Iterator[_Entry]) -> dict[Judged, _Entry]:
    return {entry.judged: entry for entry in entries}


def _test_set(entries: Iterator[_Entry]) -> Iterator[dict[str, Any]]:
    """Yields the rows of the test set: query and window of each good result, in the order of their first verdicts."""
    names: dict[str, str] = {}  # path -> id; two indexes may have the same name for different files
    for judged, entry in _latest(entries).items():
        if entry.verdict == "good":
            taken = entry.video_id in names.values()
            video_id = names.setdefault(judged.path, judged.path if taken else entry.video_id)
            row = {"video": judged.path, "caption": judged.query, "start_s": judged.start_s, "end_s": judged.end_s}
            yield {**row, "split": "test", "video_id": video_id}
