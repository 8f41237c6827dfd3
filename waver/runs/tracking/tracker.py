"""Writes metrics.jsonl and TensorBoard events.

Only the first worker writes. When a run resumes, entries after its checkpoint are removed first, so every step occurs once.

After the constructor, no write error stops training. If events cannot be written, the tracker warns and writes no more
events. Rows of metrics.jsonl, which decide which checkpoint is the best, stay in memory until they can be written. A failed
upload to an object store is repeated.
"""

import errno
import json
import os
import warnings
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from waver.runs.tracking.tags import layout, pairs_tag_of, tag_of
from waver.runs.tracking.uploader import Uploader
from waver.tools.files import write_text
from waver.tools.object_store import display_path, fetch


class Tracker:
    """Logs the scalars of a run by optimizer step.

    Args:
        folder: run folder; events are written to its subfolder `events/`.
        resume_step: optimizer step of the checkpoint from which the run resumes; later entries are removed.
        resume_pairs: caption-clip pairs seen up to that step.

    Attributes:
        local_folder: folder on this machine with the current metrics.jsonl and events: the run folder, or a temporary one
            if the run folder is in an object store.

    Raises:
        OSError: from the constructor, if entries of an earlier attempt cannot be read or removed.
    """

    def __init__(self, folder: Path, *, resume_step: int = 0, resume_pairs: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._uploader = folder, Uploader(folder)
        self.local_folder = self._uploader.local_folder
        self._path = self.local_folder / "metrics.jsonl"
        self._rows: list[str] = []
        self._writers: tuple[SummaryWriter, SummaryWriter] | None = None
        """Of the series by step and of the series by pairs; None if events cannot be written."""
        self._charted: set[str] = set()
        # An error here ends the run: without the earlier rows it would overwrite them, or log steps twice.
        _truncate(fetch(folder / "metrics.jsonl"), self._path, resume_step)
        with self._or_stop_events():
            events = self.local_folder / "events"
            # Two writers, because TensorBoard applies a purge step to all series of a writer, and these differ in unit.
            self._writers = (
                SummaryWriter(str(events), purge_step=resume_step + 1),
                SummaryWriter(str(events / "by_pairs"), purge_step=resume_pairs + 1),
            )

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def log(self, step: int, scalars: Mapping[str, float], *, pairs: int | None = None, **labels: str | int) -> None:
        """Logs the scalars of a step.

        Args:
            step: optimizer steps so far.
            scalars: name -> value.
            pairs: caption-clip pairs seen so far; some scalars get a second series by pairs in TensorBoard.
            labels: further columns of metrics.jsonl, such as epoch and split.
        """
        self._rows.append(json.dumps({"step": step, **labels, **scalars}) + "\n")
        self._write_rows()

        def write(events: SummaryWriter, by_pairs: SummaryWriter) -> None:
            if new := scalars.keys() - self._charted:
                self._charted |= new
                events.add_custom_scalars(layout(sorted(self._charted)))
            for name, value in scalars.items():
                events.add_scalar(tag_of(name), value, step)
                if pairs is not None and (tag := pairs_tag_of(name)):
                    by_pairs.add_scalar(tag, value, pairs)

        self._write(write)
        if self._uploader.is_due():
            self.flush(wait=False)

    def write_events(self, write: Callable[[SummaryWriter], Any]) -> None:
        """Calls `write` with the event writer, unless events cannot be written."""
        self._write(lambda events, _: write(events))

    def flush(self, *, wait: bool = True) -> None:
        """Writes everything logged so far to disk, and uploads it if the run is in an object store.

        Args:
            wait: whether to return only after the upload.
        """
        self._write_rows(sync=True)
        self._write(lambda events, by_pairs: (events.flush(), by_pairs.flush()))
        with self._or_warn("metrics and events"):
            self._uploader.upload(wait=wait)

    def close(self) -> None:
        """Writes and uploads everything logged; the tracker cannot be used afterwards."""
        self._write_rows(sync=True)
        self._write(lambda events, by_pairs: (events.close(), by_pairs.close()))
        with self._or_warn("metrics and events"):
            self._uploader.close()

    def _write(self, write: Callable[[SummaryWriter, SummaryWriter], Any]) -> None:
        with self._or_stop_events():
            if self._writers:
                write(*self._writers)

    def _write_rows(self, *, sync: bool = False) -> None:
        if not self._rows and not sync:
            return
        with self._or_warn("metrics.jsonl"):
            _append(self._path, "".join(self._rows), sync=sync)
            self._rows.clear()

    @contextmanager
    def _or_warn(self, what: str) -> Generator[None, None, None]:
        try:
            yield
        except OSError as error:
            kept = f"; {len(self._rows)} rows are kept in memory for the next attempt" if self._rows else ""
            warnings.warn(
                f"{what} of {display_path(self._folder)} cannot be written ({error}){kept}. Training continues",
                stacklevel=3,
            )

    @contextmanager
    def _or_stop_events(self) -> Generator[None, None, None]:
        try:
            yield
        except OSError as error:
            self._writers = None
            warnings.warn(
                f"events of {display_path(self._folder)} cannot be written ({error}): TensorBoard shows nothing new of this "
                "run until it resumes. Training continues, and metrics.jsonl is still written",
                stacklevel=3,
            )


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Reads the rows of a run's metrics.jsonl, oldest first, without a last line that a crash truncated."""
    return _read_rows(fetch(folder / "metrics.jsonl"))


def _read_rows(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return [json.loads(line) for line in lines[:-1]]  # a complete line ends in a newline


def _append(path: Path, text: str, *, sync: bool) -> None:
    """Appends all of a text or, on a full disk, nothing."""
    with path.open("ab", buffering=0) as file:  # a buffer would write a part later, after the error
        size, content = file.seek(0, os.SEEK_END), text.encode()
        try:
            if file.write(content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        except OSError:
            file.truncate(size)
            raise
        if sync:
            os.fsync(file.fileno())


def _truncate(path: Path, target: Path, step: int) -> None:
    """Writes the rows of `path` up to `step` to `target`."""
    if path.exists():
        kept = "".join(json.dumps(row) + "\n" for row in _read_rows(path) if row["step"] <= step)
        if path != target or path.read_text(encoding="utf-8") != kept:
            write_text(target, kept)
