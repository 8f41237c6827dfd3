"""Shows the progress of long work: a bar on a terminal, otherwise a line every few seconds.

A training run is followed by reading the metrics that its first worker writes, so that training is not slowed down.
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
"""Interval for a run in an object store."""
_LINE_EVERY_S = 10.0
"""Interval between lines where there is no terminal."""
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
    """Yields results unchanged, and shows on standard error how many items are done.

    Args:
        results: results, each of one or more items.
        doing: name of the work, such as "decoding".
        unit: name of the items, in the plural.
        total: number of items in all results.
        size: returns the number of items in a result.
        note: returns a text to append after a result, such as ", 3 failed".
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
    """While the body runs, shows a bar of the steps of a run on a terminal, and logs the metrics after each epoch.

    Args:
        folder: folder of the run.
        num_steps: number of optimizer steps of the whole run.
    """
    path, stop = folder / "metrics.jsonl", threading.Event()
    poll_s = _POLL_STORE_S if remote_of(folder) else _POLL_S
    start = fetch(path).stat().st_size if exists(path) else 0
    console = Console(stderr=True)
    with _bar("training", "steps, {task.fields[state]}", console, console.is_terminal) as bar:
        task = bar.add_task("", total=num_steps, state="starting")

        def watch() -> None:
            position, last = start, {}
            while True:
                is_last = stop.is_set()
                with suppress(ObjectStoreError):  # retried at the next poll
                    fetch(path)
                rows, position = _new_rows(path, position)
                for row in rows:
                    if "split" in row:
                        logger.info(_epoch_line(row, last))
                    else:
                        last = row
                        bar.update(task, completed=row["step"], state=_step_line(row))
                if is_last:
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
        file.seek(max(0, position - 1))
        if position and file.read(1) != b"\n":
            file.seek(0)
            position = file.read(position).rfind(b"\n") + 1
            file.seek(position)
        whole, newline, _ = file.read().rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines()], position + len(whole) + len(newline)


def _step_line(row: dict) -> str:
    return f"epoch {row['epoch']}, loss {row['loss/total']:.3f}, {row['clips_per_s']:.0f} clips/s"


def _epoch_line(row: dict, last: dict) -> str:
    loss = f"loss {last['loss/total']:.3f}, " if last else ""
    before = " (zero-shot, before training)" if row["epoch"] == 0 else ""
    t2v, v2t, num_clips = row["t2v/R@1"], row["v2t/R@1"], row.get("gallery_size")
    # Rows of earlier versions have no size of the gallery.
    beside = f" (chance {100 / num_clips:.1f}, {num_clips} clip{'s' if num_clips > 1 else ''})" if num_clips else ""
    return (
        f"epoch {row['epoch']}{before}: {loss}validation R@1 {t2v:.1f} text to video, {v2t:.1f} video to text{beside}"
    )
