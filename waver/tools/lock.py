"""The lock of a folder that one process at a time may write: a run, a sweep, a clip store, a dictionary, knowledge.

A writer puts a note into the folder, `writer-<token>.json`, with its user, host, process and time of start, and rewrites it
every 10 s. It holds the lock if a listing of the folder, made after its note was written, shows no other note. Two writers
that come at once see each other, both withdraw, and try again after random pauses.

A writer that was killed leaves its note, which others remove: at once if they run on its machine, where its process has
ended; elsewhere if the note does not change for 60 s while they look at it, so that clocks that differ do no harm. Names of
notes are unique, so nobody can remove the note of a writer that came in between.

What this guarantees: two processes never hold the lock at the same time, wherever a listing shows every note that was
written before it. Local disks do so, S3, Google Cloud Storage and Azure do, and so does a client of NFS that has just
written to the folder. Neither flock nor conditional writes are needed (Arrow offers no conditional writes). The exception is
a writer that was suspended, or cut off from the folder, for longer than 60 s: another machine may take its lock. When the
writer wakes up, it finds within 10 s that its note is gone, and stops.
"""

import contextlib
import dataclasses
import getpass
import json
import logging
import os
import platform
import random
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from waver.tools.errors import WaverError
from waver.tools.files import read_text, write_json
from waver.tools.object_store import display_path, exists, list_names, remove

logger = logging.getLogger(__name__)

_NOTES = "writer-*.json"
_RENEW_EVERY_S = 10.0
_DEAD_AFTER_S = 60.0
_LOOK_EVERY_S = 1.0
_ATTEMPTS = 30
"""How often a writer tries if others come at the same time."""
_READS = 4
_HIDDEN = "hidden"


class LockedError(WaverError):
    """Another process writes the folder, or has taken over its lock; the message says which and what to do."""


@dataclass(frozen=True)
class Writer:
    """The content of a note: a process, and what it does with the folder."""

    doing: str
    """Such as `training`."""
    user: str
    host: str
    machine: str
    """Two processes with the same value see each other's process ids."""
    process: int
    process_start: str
    """Tells the process from a later one with the same id."""
    began_s: float
    renewed_s: float
    """Unix times of the writer's clock."""
    holds: bool = False
    """Whether it holds the lock, rather than asks for it."""

    def __str__(self) -> str:
        return f"{self.doing} by {self.user} on {self.host}, process {self.process}"


@contextlib.contextmanager
def hold_lock(folder: Path, doing: str, *, instead: str = "") -> Iterator[None]:
    """Holds the lock of a folder while the body runs; the folder is created if it does not exist.

    If the lock is lost (see above) and the body runs in the main thread, it is interrupted. Processes and threads that write
    on behalf of the body ask `check_lock`.

    Args:
        folder: the folder to write.
        doing: what this process does, for the message to others, such as `training`.
        instead: what else a user can do who is refused, such as `choose another name`; empty for nothing.

    Raises:
        LockedError: if another process holds the lock, or takes it over.
    """
    path = folder / _NOTES.replace("*", uuid.uuid4().hex[:12])
    writer = _this_process(doing)
    _acquire(path, writer, instead)
    ended, lost = threading.Event(), threading.Event()
    in_main_thread = threading.current_thread() is threading.main_thread()
    renewer = threading.Thread(
        target=_renew, args=(path, writer, ended, lost, in_main_thread), name="waver-lock", daemon=True
    )
    renewer.start()
    try:
        yield
    except KeyboardInterrupt:
        if lost.is_set():
            raise LockedError(_lost_message(path)) from None
        raise
    finally:
        ended.set()
        renewer.join()
        with contextlib.suppress(OSError):  # a note that stays is removed by the next writer
            remove(path)


def find_lock(folder: Path) -> Path | None:
    """Returns the note of the process that holds the lock of a folder, dead or alive; None if nobody does."""
    notes = (folder / name for name in list_names(folder, _NOTES))
    return next((path for path in notes if (writer := _read(path)) and writer.holds), None)


def check_lock(path: Path) -> None:
    """Checks, for a process that writes on behalf of the holder of a lock, that the lock is not lost.

    Args:
        path: the holder's note, from `find_lock`.

    Raises:
        LockedError: if the note is gone.
    """
    with contextlib.suppress(OSError):  # a disk or store that does not answer takes no lock away
        if _is_gone(path):
            raise LockedError(_lost_message(path))


def describe_lock(folder: Path) -> str:
    """Says who writes a folder, as far as one look can tell; returns an empty text if nobody does."""
    path = find_lock(folder)
    writer = path and _read(path)
    if not path or not writer:
        return ""
    alive = _is_alive(writer)
    if alive is None:
        alive = time.time() - writer.renewed_s < _DEAD_AFTER_S
    return _in_use_message(path, writer, "") if alive else ""


def _acquire(path: Path, writer: Writer, instead: str) -> None:
    """Writes the note of a writer that then holds the lock.

    Raises:
        LockedError: if another process holds it.
    """
    others: list[Path] = []
    for attempt in range(_ATTEMPTS):
        holds = False
        try:
            _write(path, writer)
            others = [path.parent / name for name in list_names(path.parent, _NOTES) if name != path.name]
            if not others:
                _write(path, dataclasses.replace(writer, holds=True))
                holds = True
                return
        finally:
            if not holds:
                remove(path)
        for other in others:
            _pass(other, instead)
        time.sleep(random.uniform(0.02, 0.1) * (1 + attempt))
    raise LockedError(
        f"{display_path(path.parent)}: other processes keep asking for its lock ({', '.join(o.name for o in others)}): run "
        "the same command again"
    )


def _pass(other: Path, instead: str) -> None:
    """Removes the note of a writer that is dead; leaves that of one that only asks for the lock.

    Raises:
        LockedError: if the writer is alive and holds the lock.
    """
    writer, folder = _read(other), display_path(other.parent)
    alive = _is_alive(writer) if writer else None
    if alive is None and exists(other):
        by = (
            f"{writer}; renewed {_duration(time.time() - writer.renewed_s)} ago" if writer else "a note without content"
        )
        logger.info(f"{folder} is locked ({by}). Looking for up to {_DEAD_AFTER_S:g} s whether {other.name} is renewed")
        alive, writer = _watch(other, writer)
    if alive and writer and writer.holds:
        raise LockedError(_in_use_message(other, writer, instead))
    if not alive and exists(other):  # else it was released meanwhile
        if writer and writer.holds:
            age = _duration(time.time() - writer.renewed_s)
            logger.warning(f"{folder}: taking over the lock of a process that is gone ({writer}; renewed {age} ago)")
        remove(other)


def _watch(path: Path, before: Writer | None) -> tuple[bool, Writer | None]:
    """Looks at a note until it is renewed, gone or too old; returns whether its writer is alive, and the newest note."""
    deadline = time.monotonic() + _DEAD_AFTER_S
    while time.monotonic() < deadline and exists(path):
        now = _read(path)
        if now and now != before:
            return True, now
        time.sleep(_LOOK_EVERY_S)
    return False, before


def _renew(path: Path, writer: Writer, ended: threading.Event, lost: threading.Event, interrupts: bool) -> None:
    """Rewrites a note until `ended`. If it is gone, sets `lost`, and interrupts the main thread if asked to."""
    failed = False
    while not ended.wait(_RENEW_EVERY_S):
        try:
            if _is_gone(path):
                lost.set()
                logger.error(_lost_message(path))
                if interrupts:
                    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
                return
            _write(path, dataclasses.replace(writer, holds=True, renewed_s=time.time()))
            failed = False
        except OSError as error:
            if not failed:
                logger.warning(
                    f"the lock {display_path(path)} cannot be renewed ({error}): another machine may take it over after "
                    f"{_DEAD_AFTER_S:g} s"
                )
            failed = True


def _is_gone(path: Path) -> bool:
    """Returns whether a note is gone, by two looks: the consequences are heavy."""
    if exists(path):
        return False
    time.sleep(_LOOK_EVERY_S)
    return not exists(path)


def _this_process(doing: str) -> Writer:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without a name for its user
        user = f"user {os.getuid()}"
    now = time.time()
    return Writer(doing, user, platform.node(), _machine(), os.getpid(), _start_of(os.getpid()), now, now)


def _is_alive(writer: Writer) -> bool | None:
    """Returns whether the process of a writer is alive; None if that cannot be seen from here."""
    if writer.machine != _machine():
        return None
    if not psutil.pid_exists(writer.process):
        return False
    start = _start_of(writer.process)
    return None if start == _HIDDEN else start == writer.process_start


def _machine() -> str:
    """Returns host, boot and namespace of process ids: one host name may stand for several machines or containers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{platform.node()} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux
        return f"{platform.node()} {psutil.boot_time():.0f}"


def _start_of(process: int) -> str:
    """Returns what tells a process from a later one with its id; empty if it has ended, or `_HIDDEN`."""
    try:
        if not Path("/proc/self/stat").exists():  # no Linux
            return str(psutil.Process(process).create_time())
        # The title, which may hold anything, is in brackets. psutil's time would change whenever the clock is set.
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except (ProcessLookupError, psutil.NoSuchProcess):
        return ""
    except (OSError, psutil.AccessDenied):  # of another user
        return _HIDDEN
    state, start_in_ticks = fields[0], fields[19]
    return "" if state in "ZX" else start_in_ticks


def _read(path: Path) -> Writer | None:
    """Reads a note; returns None if it is gone, or was truncated by a power failure, or is of another version."""
    for _ in range(_READS):
        try:
            return Writer(**json.loads(read_text(path)))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):  # an object store answers in two requests, perhaps of two versions
            time.sleep(random.uniform(0.01, 0.1))
    return None


def _write(path: Path, writer: Writer) -> None:
    write_json(path, dataclasses.asdict(writer))


def _in_use_message(path: Path, writer: Writer, instead: str) -> str:
    now = time.time()
    began, renewed = _duration(now - writer.began_s), _duration(now - writer.renewed_s)
    return (
        f"{display_path(path.parent)} is in use: {writer}, which began {began} ago and renewed its lock {renewed} ago. Wait "
        f"until it has ended, or stop it{', or ' * bool(instead)}{instead}. If you know that it has ended, delete "
        f"{display_path(path)}"
    )


def _lost_message(path: Path) -> str:
    return (
        f"{display_path(path.parent)}: this process lost its lock. {path.name} was deleted, or another machine took the "
        f"process for dead because it had not renewed the lock for {_DEAD_AFTER_S:g} s. It stops, so that no two processes "
        "write the folder. See that no other one does, and run the same command again"
    )


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
