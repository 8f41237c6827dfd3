"""Writes metrics.jsonl and the events of TensorBoard.

Only the first worker writes. A run that is resumed continues both where its checkpoint was: what a killed run had logged
beyond it is taken back first, so every step stands there once.

Once it has begun, nothing of it stops training. Events that cannot be written are given up, with a warning; rows of
metrics.jsonl, which the choice of the best checkpoint rests on, are kept until they can be. An object store that does not
answer is sent both later.
"""

import errno
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from waver.runs.tracking.outbox import Outbox
from waver.runs.tracking.tags import layout, pairs_tag_of, tag_of
from waver.tools.files import write_text
from waver.tools.object_store import display_path, fetch


class Tracker:
    """Writes what a run says of itself, by optimizer step.

    Args:
        folder: of the run; TensorBoard's events go to `events/` in it.
        resume_step: optimizer steps of the checkpoint that the run continues; later entries are removed.
        resume_pairs: pairs seen by then.

    Attributes:
        here: folder on this machine that has both as they are now: that of the run, unless it is in an object store.
    """

    def __init__(self, folder: Path, *, resume_step: int = 0, resume_pairs: int = 0):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._outbox = folder, Outbox(folder)
        self.here = self._outbox.here
        self._path = self.here / "metrics.jsonl"
        self._rows: list[str] = []
        self._events: SummaryWriter | None = None
        self._by_pairs: SummaryWriter | None = None
        self._charted: set[str] = set()
        # Here a store that does not tell what was before ends the run, and so does a full disk: going on would overwrite
        # what was logged, or log steps twice.
        _truncate(fetch(folder / "metrics.jsonl"), self._path, resume_step)
        with self._or_give_up():
            self._events = SummaryWriter(str(self.here / "events"), purge_step=resume_step + 1)
            # A run of its own to TensorBoard: what a resumed run takes back, it takes back in all of its series.
            self._by_pairs = SummaryWriter(str(self.here / "events" / "by_pairs"), purge_step=resume_pairs + 1)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def log(self, step: int, scalars: Mapping[str, float], *, pairs: int | None = None, **labels: str | int) -> None:
        """Writes scalars of a step.

        Args:
            step: optimizer steps so far.
            scalars: name -> value.
            pairs: seen so far, for the second series of some scalars in TensorBoard.
            labels: epoch, split; they stand beside the scalars in metrics.jsonl only.
        """
        self._rows.append(json.dumps({"step": step, **labels, **scalars}) + "\n")
        self._write_rows()

        def write(events: SummaryWriter) -> None:
            if new := scalars.keys() - self._charted:
                self._charted |= new
                events.add_custom_scalars(layout(sorted(self._charted)))
            for name, value in scalars.items():
                events.add_scalar(tag_of(name), value, step)
                if pairs is not None and (tag := pairs_tag_of(name)):
                    self._by_pairs.add_scalar(tag, value, pairs)

        self.draw(write)
        if self._outbox.is_due():
            self.flush(wait=False)

    def draw(self, write: Callable[[SummaryWriter], Any]) -> None:
        """Lets a function write to the events, if they can be written at all."""
        with self._or_give_up():
            if self._events:
                write(self._events)

    def flush(self, *, wait: bool = True) -> None:
        """Makes everything visible that was logged so far; what goes to an object store, soon, or before this returns."""
        self._write_rows(sync=True)
        self.draw(lambda events: (events.flush(), self._by_pairs.flush()))
        with self._or_warn("what was logged"):
            self._outbox.send(wait=wait)

    def close(self) -> None:
        """Nothing is logged after this."""
        self._write_rows(sync=True)
        self.draw(lambda events: (events.close(), self._by_pairs.close()))
        with self._or_warn("what was logged"):
            self._outbox.close()

    def _write_rows(self, *, sync: bool = False) -> None:
        if not self._rows and not sync:
            return
        with self._or_warn("metrics.jsonl"):
            _append(self._path, "".join(self._rows), sync=sync)
            self._rows.clear()

    @contextmanager
    def _or_warn(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            waiting = f"; {len(self._rows)} rows wait for the next try" if self._rows else ""
            warnings.warn(
                f"{what} of {display_path(self._folder)} cannot be written ({error}){waiting}. Training goes on",
                stacklevel=3,
            )

    @contextmanager
    def _or_give_up(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._events = None
            warnings.warn(
                f"events of {display_path(self._folder)} cannot be written ({error}): TensorBoard shows no more of this run "
                "until it is resumed. Training goes on, and so does metrics.jsonl",
                stacklevel=3,
            )


def read_metrics(folder: Path) -> Iterable[dict]:
    """The rows of a run's metrics.jsonl, oldest first; a last line that a crash cut short is left out."""
    return _read_rows(fetch(folder / "metrics.jsonl"))


def _read_rows(path: Path) -> list[dict]:
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return [json.loads(line) for line in lines[:-1]]  # every whole line ends in a newline


def _append(path: Path, text: str, *, sync: bool) -> None:
    """All of it or, on a full disk, nothing."""
    with path.open("ab", buffering=0) as file:  # what a buffer holds would be written later, wherever that is
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
    if path.exists():
        kept = "".join(json.dumps(row) + "\n" for row in _read_rows(path) if row["step"] <= step)
        if path != target or path.read_text(encoding="utf-8") != kept:
            write_text(target, kept)
