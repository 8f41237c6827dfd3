"""Shows the progress of a running sweep: a live table on a terminal, else one log line per trial that ends."""

import logging
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live

from waver.config import SweepConfig
from waver.sweeps.folder import TrialState, read_trials
from waver.sweeps.ranking import chance_text, objective_text, rank_trials
from waver.sweeps.tables import trials_table
from waver.tools.names import counted

logger = logging.getLogger(__name__)

_POLL_S = 1.0
_SHOWN = 20


@contextmanager
def follow_sweep(folder: Path, sweep: SweepConfig, *, total: int, what: str = "trial") -> Generator[None, None, None]:
    """Polls the files of the trials and shows their state while the body of the `with` statement runs.

    A thread reads the files, so the sweep itself is not slowed down.

    Args:
        folder: folder of the sweep.
        sweep: configuration of the sweep.
        total: number of trials of the whole sweep.
        what: `trial`, or `fine-tuning`, whose folder is that of the fine-tunings.
    """
    console, stop = Console(stderr=True), threading.Event()
    known = {state.number for state in read_trials(folder) if state.status != "running"}

    def update(live: Live | None) -> None:
        states = read_trials(folder)
        if live:
            title = f"{_title(states, total, what)}{chance_text(states, sweep)}"
            live.update(trials_table(title, rank_trials(states, sweep)[:_SHOWN], sweep))
            return
        for state in states:
            if state.status != "running" and state.number not in known:
                known.add(state.number)
                logger.info(f"{what} {state.number} {_line(state, sweep)}; {_title(states, total, what)}")

    def follow(live: Live | None) -> None:
        took = 0.0
        while not stop.wait(max(_POLL_S, 20 * took)):  # reading the files of a large sweep takes long
            start = time.monotonic()
            update(live)
            took = time.monotonic() - start
        update(live)

    # The live table is removed at the end, when the complete table is printed.
    with Live(console=console, transient=True) if console.is_terminal else _nothing() as live:
        poller = threading.Thread(target=follow, args=(live,), name="waver-sweep-progress", daemon=True)
        poller.start()
        try:
            yield
        finally:
            stop.set()
            poller.join()


@contextmanager
def _nothing() -> Generator[None, None, None]:
    yield None


def _line(state: TrialState, sweep: SweepConfig) -> str:
    point = ", ".join(f"{key}={value}" for key, value in state.point.items())
    what = f"failed ({state.error})" if state.status == "failed" else f"{state.status} after {state.epochs} epochs"
    value = f"{objective_text(state, sweep)}{chance_text([state], sweep)}"
    return f"{what}, {sweep.objective.metric} {value}, {state.seconds:.0f} s: {point}"


def _title(states: list[TrialState], total: int, what: str) -> str:
    by_status = {
        name: sum(state.status == name for state in states) for name in ("running", "finished", "stopped", "failed")
    }
    counts = [f"{count} {name}" for name, count in by_status.items() if count]
    return f"{', '.join(counts) or 'none started'} of {counted(total, what)}"
