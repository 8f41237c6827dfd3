"""Serves TensorBoard for the runs of a folder, with sample limits high enough to show every point of a run.

TensorBoard listens on the loopback address only; use `ssh -L` to reach it from another machine. It runs in this process. Its
data server is a child process that exits when its standard input closes, so it never outlives this process.
"""

# pyright: reportMissingTypeStubs=false
# (TensorBoard has no stubs.)

import contextlib
import io
import json
import logging
import os
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tensorboard import program
from tensorboard.util import tb_logging

from waver.tools.errors import WaverError
from waver.tools.object_store import ObjectStoreError, display_path, exists, fetch_folder, remote_of

logger = logging.getLogger(__name__)

DEFAULT_PORT = 6006
_HOST = "127.0.0.1"
_RELOAD_S = 5.0
_SAMPLES = {"scalars": 20_000, "images": 100, "histograms": 500, "text": 100, "pr_curves": 100}
"""Points kept of each tag of each run. TensorBoard's default keeps a random sample of 1,000 scalars and 10 images."""
_WAIT_S = 60.0
_EVENTS = "*events*"
"""Files to download of runs in an object store: everything in `events/`."""


class BoardError(WaverError):
    """TensorBoard cannot show the folder, or cannot be started."""


@dataclass(frozen=True)
class Board:
    """A running TensorBoard."""

    url: str
    runs: tuple[str, ...]
    """Runs it shows already, named by the folder of their events. It finds new ones later."""


def event_folders(folder: Path) -> list[Path]:
    """Returns all folders at or below `folder` that hold TensorBoard events, sorted.

    Raises:
        BoardError: if there are none, or the folder does not exist.
    """
    _download_events(folder)
    if not folder.is_dir() and (not exists(folder) or not remote_of(folder)):
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise BoardError(f"{display_path(folder)} {what}: name a run folder or a folder of runs, such as storage/runs")
    found = sorted(
        path for path, files in _walk(folder) if any("tfevents" in name and (path / name).is_file() for name in files)
    )
    if not found:
        raise BoardError(
            f"no TensorBoard events in or below {display_path(folder)}: a run writes them to events/ once training has "
            f"begun{_broken_links(folder)}"
        )
    return found


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Yields every folder with the names of its files, also behind links to folders, but not around a circle of links."""
    above: dict[Path, tuple[Path, ...]] = {folder: ()}
    for name, folders, files in os.walk(folder, followlinks=True):
        path = Path(name)
        places = (*above.pop(path), path.resolve())
        folders[:] = [
            below for below in folders if not (path / below).is_symlink() or (path / below).resolve() not in places
        ]
        above |= {path / below: places for below in folders}
        yield path, files


def _broken_links(folder: Path) -> str:
    broken = [path / name for path, files in _walk(folder) for name in files if not (path / name).exists()]
    if not broken:
        return ""
    return (
        f". {len(broken)} links lead nowhere, such as {broken[0]} to {broken[0].readlink()}, relative to its own folder"
    )


def start_board(folder: Path, *, port: int = DEFAULT_PORT) -> Board:
    """Starts TensorBoard in a thread that runs until this process ends, and waits until it shows runs.

    Args:
        folder: folder of one run, of several runs, or of a sweep.
        port: port to listen on; 0 takes any free one.

    Raises:
        BoardError: see `event_folders`; also if the port is in use, or TensorBoard does not respond.
    """
    expected = len(event_folders(folder))
    board = program.TensorBoard()
    board.configure(
        logdir=str(folder.absolute()),
        host=_HOST,
        port=port,
        # Use the data server, about a hundred times as fast as Python, on platforms that have it.
        load_fast="auto",
        reload_interval=_RELOAD_S,
        samples_per_plugin=_SAMPLES,
        window_title=folder.absolute().name,
    )
    tb_logging.get_logger().setLevel("ERROR")  # it warns whenever a resumed run is read again
    os.environ.setdefault("RUST_LOG", "error")  # the data server warns of a circle of links at every reload
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # it says that the data server is experimental
            url = board.launch()
    except program.TensorBoardPortInUseError as error:
        raise BoardError(
            f"port {port} is in use, perhaps by another TensorBoard: choose another with --port (0: any free one)"
        ) from error
    except program.TensorBoardServerException as error:
        raise BoardError(f"TensorBoard cannot listen on port {port}: {error}") from error
    if remote_of(folder):
        threading.Thread(target=_download_repeatedly, args=(folder,), name="waver-board", daemon=True).start()
    return Board(url, _wait_for_runs(url, expected))


def show_board(folder: Path, *, port: int) -> None:
    """Runs TensorBoard until Ctrl-C. Arguments and errors are those of `start_board`."""
    try:
        board = start_board(folder, port=port)
        number = f"{len(board.runs)} run{'' if len(board.runs) == 1 else 's'}"
        logger.info(
            f"{number} of {display_path(folder)} at {board.url}  (looks for new ones every {_RELOAD_S:g} s; Ctrl-C ends it)"
        )
        threading.Event().wait()
    except KeyboardInterrupt:
        logger.info("ended")


def _download_events(folder: Path) -> None:
    """Downloads the events of runs in an object store, and deletes local copies of those that the store no longer has.

    The copies of a deleted run would otherwise be shown together with a new run of the same name.
    """
    if remote_of(folder):
        stored = fetch_folder(folder, _EVENTS)
        local = {path for path in folder.rglob("*tfevents*") if path.suffix != ".part"}
        for stale in local - set(stored):
            stale.unlink(missing_ok=True)


def _download_repeatedly(folder: Path) -> None:
    while True:
        time.sleep(_RELOAD_S)
        with contextlib.suppress(ObjectStoreError):  # keep what was downloaded, and try again
            _download_events(folder)


def _wait_for_runs(url: str, expected: int) -> tuple[str, ...]:
    """Waits until TensorBoard lists `expected` runs, or lists some and finds no more for a while; returns their names."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy for the loopback address
    runs: tuple[str, ...] = ()
    changed_s = time.monotonic()
    deadline_s = changed_s + _WAIT_S
    while time.monotonic() < deadline_s:
        with contextlib.suppress(OSError, ValueError), opener.open(f"{url}data/runs", timeout=5) as response:
            listed = tuple(json.load(response))
            if listed != runs:
                runs, changed_s = listed, time.monotonic()
        if len(runs) >= expected or (runs and time.monotonic() - changed_s > _RELOAD_S):
            return runs
        time.sleep(0.1)
    if not runs:
        raise BoardError(f"TensorBoard at {url} showed no run within {_WAIT_S:.0f} s")
    return runs
