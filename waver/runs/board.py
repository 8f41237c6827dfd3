"""TensorBoard over the runs of a folder, set up so that nothing of a run is left out.

It listens on this machine alone: whoever is elsewhere reaches it through `ssh -L`. TensorBoard runs in this process, and its
data server, which ends when its standard input does, can outlive it in no way.
"""

import contextlib
import io
import json
import logging
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tensorboard import default, program
from tensorboard.util import tb_logging

from waver.tools.errors import WaverError
from waver.tools.object_store import ObjectStoreError, display_path, exists, fetch_folder, remote_of

logger = logging.getLogger(__name__)


DEFAULT_PORT = 6006
_HOST = "127.0.0.1"
_RELOAD_S = 5.0
_SAMPLES = {"scalars": 20_000, "images": 100, "histograms": 500, "text": 100, "pr_curves": 100}
"""Kept of each tag of each run. TensorBoard by itself keeps 1,000 steps of a curve and 10 images, drawn by lot."""
_WAIT_S = 60.0
_EVENTS = "*events*"
"""What is brought of runs in an object store: the folders `events`, and whatever is called so."""


class BoardError(WaverError):
    """TensorBoard cannot show what is asked."""


@dataclass(frozen=True)
class Board:
    """A TensorBoard that answers."""

    url: str
    runs: tuple[str, ...]
    """Those it shows already, by the name of the folder of their events; it finds others as they come."""


def event_folders(folder: Path) -> list[Path]:
    """Folders below (or at) one that hold events of TensorBoard, in order.

    Raises:
        BoardError: where there is none; says whether the folder is there at all.
    """
    _bring_events(folder)
    if not folder.is_dir() and (not exists(folder) or not remote_of(folder)):
        what = "is a file, not a folder" if folder.exists() else "is not there"
        raise BoardError(f"{display_path(folder)} {what}: name the folder of one run, or of many, such as storage/runs")
    found = sorted({path.parent for path in folder.rglob("*tfevents*") if path.is_file()})
    if not found:
        raise BoardError(
            f"{display_path(folder)} holds no events of TensorBoard, in none of its folders: a run has them in "
            f"events/ as soon as "
            "training has begun (`waver train CONFIG`)"
        )
    return found


def start_board(folder: Path, *, port: int = DEFAULT_PORT) -> Board:
    """Starts TensorBoard in this process, where it stays until the process ends, and waits until it shows runs.

    Args:
        folder: of a run, of several, or of a sweep.
        port: 0 for any that is free.

    Raises:
        BoardError: see `event_folders`; or the port is in use, or TensorBoard does not answer.
    """
    expected = len(event_folders(folder))
    board = program.TensorBoard(plugins=default.get_plugins())
    board.configure(
        logdir=str(folder.absolute()),
        host=_HOST,
        port=port,
        # The data server reads events some hundred times as fast as Python does; where no wheel has it, Python reads them.
        load_fast="auto",
        reload_interval=_RELOAD_S,
        samples_per_plugin=_SAMPLES,
        window_title=folder.absolute().name,
    )
    tb_logging.get_logger().setLevel("ERROR")  # that a run is read again after resuming is no news to anybody
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # where it tells of the data server as of an experiment
            url = board.launch()
    except program.TensorBoardPortInUseError as error:
        raise BoardError(
            f"port {port} is in use, perhaps by another TensorBoard: name a free one with --port, or let --port 0 find one"
        ) from error
    except program.TensorBoardServerException as error:
        raise BoardError(f"TensorBoard cannot listen on port {port}: {error}") from error
    if remote_of(folder):
        threading.Thread(target=_keep_fresh, args=(folder,), name="waver-board", daemon=True).start()
    return Board(url, _wait_for_runs(url, expected))


def show_board(folder: Path, *, port: int) -> None:
    """Shows the runs of a folder until Ctrl-C.

    Args:
        folder: see `start_board`.
        port: see `start_board`.

    Raises:
        BoardError: see `start_board`.
    """
    try:
        board = start_board(folder, port=port)
        number = f"{len(board.runs)} run{'' if len(board.runs) == 1 else 's'}"
        logger.info(
            f"{number} of {display_path(folder)} at {board.url}  (new ones are found every {_RELOAD_S:g} s; Ctrl-C ends it)"
        )
        threading.Event().wait()
    except KeyboardInterrupt:
        logger.info("ended")


def _bring_events(folder: Path) -> None:
    """Of runs in an object store; those of a run that was deleted go, lest they are shown with another of its name."""
    if remote_of(folder):
        there = fetch_folder(folder, _EVENTS)
        here = {path for path in folder.rglob("*tfevents*") if path.suffix != ".part"}
        for gone in here - set(there):
            gone.unlink(missing_ok=True)


def _keep_fresh(folder: Path) -> None:
    while True:
        time.sleep(_RELOAD_S)
        with contextlib.suppress(ObjectStoreError):  # what was brought stays, and the store is asked again
            _bring_events(folder)


def _wait_for_runs(url: str, expected: int) -> tuple[str, ...]:
    """The runs that it shows: all that are expected, or those that it has after a while without news."""
    deadline, runs, since = time.monotonic() + _WAIT_S, (), time.monotonic()
    for answer in _ask(f"{url}data/runs", deadline):
        if answer is not None and tuple(answer) != runs:
            runs, since = tuple(answer), time.monotonic()
        if len(runs) >= expected or (runs and time.monotonic() - since > _RELOAD_S):
            return runs
    if not runs:
        raise BoardError(f"TensorBoard at {url} showed nothing within {_WAIT_S:.0f} s")
    return runs


def _ask(address: str, deadline: float) -> Iterator[list[str] | None]:
    """What an address answers, again and again; None where it does not answer."""
    while time.monotonic() < deadline:
        try:
            # No proxy stands between a process and itself.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(address, timeout=5) as response:
                yield json.load(response)
        except (urllib.error.URLError, OSError, ValueError):
            yield None
        time.sleep(0.1)
