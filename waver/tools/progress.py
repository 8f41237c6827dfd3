"""Shows long work while it goes on: a bar on a terminal, a line now and then elsewhere.

A training run is watched by reading what its first worker writes: nothing slows down for those who watch.
"""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from waver.tools.object_store import ObjectStoreError, exists, fetch, remote_of

logger = logging.getLogger(__name__)


_POLL_S = 0.5
_POLL_STORE_S = 5.0
"""An object store is asked less often."""
_LINE_EVERY_S = 10.0
"""How often progress is reported where there is no terminal to draw a bar on."""
_MAX_ROW_BYTES = 2**20
"""More than a row of metrics.jsonl has."""
_T = TypeVar("_T")


def track_progress(
    results: Iterable[_T],
    *,
    doing: str,
    unit: str,
    total: int,
    size: Callable[[_T], int],
    note: Callable[[_T], str] = lambda result: "",
    enabled: bool = True,
) -> Iterator[_T]:
    """Passes results on and shows, on standard error, how many of the items in them are done.

    Args:
        results: as they come, each of some items.
        doing: with them.
        unit: what an item is, in the plural.
        total: items in all.
        size: items in a result.
        note: what else to say after a result, such as ", 3 failed".
        enabled: whether to show anything.
    """
    console = Console(stderr=True, quiet=not enabled)
    draws = enabled and console.is_terminal
    started = last_line = time.monotonic()
    done = 0
    with _bar(doing, f"{unit}, {{task.fields[state]}}", console, draws) as bar:
        task = bar.add_task("", total=total, state="starting")
        for result in results:
            done += size(result)
            now = time.monotonic()
            speed = done / (now - started)
            state = f"{speed:.1f}/s{note(result)}"
            bar.update(task, completed=done, state=state)
            if not draws and (now - last_line > _LINE_EVERY_S or done == total):
                last_line = now
                console.print(f"{doing}: {done}/{total} {unit}, {state}, {(total - done) / speed:.0f} s left")
            yield result


@contextmanager
def follow_run(folder: Path, *, num_steps: int) -> Iterator[None]:
    """Draws a bar of the steps of a run on a terminal, and says the metrics after each epoch, while the body runs.

    Args:
        folder: of the run.
        num_steps: of the whole run.
    """
    path, stop = folder / "metrics.jsonl", threading.Event()
    poll_s = _POLL_STORE_S if remote_of(folder) else _POLL_S
    start = fetch(path).stat().st_size if exists(path) else 0
    console = Console(stderr=True)
    with _bar("training", "steps, {task.fields[state]}", console, console.is_terminal) as bar:
        task = bar.add_task("", total=num_steps, state="starting the workers")

        def watch() -> None:
            position, last = start, {}
            while True:
                last_look = stop.is_set()
                with suppress(ObjectStoreError):  # it is asked again
                    fetch(path)
                rows, position = _new_rows(path, position)
                for row in rows:
                    if row.get("split") == "validation":
                        logger.info(_epoch_line(row, last))
                    else:
                        last = row
                        bar.update(task, completed=row["step"], state=_step_line(row))
                if last_look:
                    return
                stop.wait(poll_s)

        watcher = threading.Thread(target=watch, name="waver-progress", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            stop.set()
            watcher.join()


def _bar(doing: str, text: str, console: Console, enabled: bool) -> Progress:
    columns = (
        TextColumn(doing),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(text),
        TimeRemainingColumn(compact=True),
    )
    return Progress(*columns, console=console, disable=not enabled)


def _new_rows(path: Path, position: int) -> tuple[list[dict], int]:
    """Returns the rows that were written since the file had `position` bytes, and where they end.

    A run that resumes shortens the file to its checkpoint and appends other rows. So `position` may lie within a row, or
    beyond the end. Within a row, reading begins at the start of that row.
    """
    if not path.exists():
        return [], 0
    with path.open("rb") as file:
        position = min(position, file.seek(0, 2))
        file.seek(max(0, position - _MAX_ROW_BYTES))
        before = file.read(position - file.tell())
        position -= len(before) - (before.rfind(b"\n") + 1)
        file.seek(position)
        whole, newline, _ = file.read().rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines()], position + len(whole) + len(newline)


def _step_line(row: dict) -> str:
    return f"epoch {row['epoch']}, loss {row['loss/total']:.3f}, {row['clips_per_s']:.0f} clips/s"


def _epoch_line(row: dict, last: dict) -> str:
    loss = f"loss {last['loss/total']:.3f}, " if last else ""
    t2v, v2t = row["t2v/R@1"], row["v2t/R@1"]
    return f"epoch {row['epoch']}: {loss}validation R@1 {t2v:.1f} text to video, {v2t:.1f} video to text"
