"""Locks of folders: with real processes that are killed, and with notes of other machines."""

import contextlib
import dataclasses
import getpass
import json
import multiprocessing
import os
import platform
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from waver.tools import lock
from waver.tools.lock import LockedError, Writer, check_lock, describe_lock, find_lock, hold_lock
from waver.tools.object_store import list_names, local_copy


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(lock, "_RENEW_EVERY_S", 0.1)
    monkeypatch.setattr(lock, "_DEAD_AFTER_S", 0.5)
    monkeypatch.setattr(lock, "_LOOK_EVERY_S", 0.02)


_HOLD = """
import sys, time
from pathlib import Path
from waver.tools.lock import hold_lock

with hold_lock(Path(sys.argv[1]), "training"):
    print("holds", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of tmp_path until its standard input is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "holds\n"
    yield process
    process.kill()
    process.communicate()


def notes(folder: Path) -> list[str]:
    return list_names(folder, "writer-*")


def put_note(folder: Path, **changes) -> Path:
    """Puts the note of a holder of the lock into a folder: this process, unless something is changed."""
    folder.mkdir(parents=True, exist_ok=True)
    writer = dataclasses.replace(lock._this_process("training"), holds=True)
    path = folder / "writer-0123.json"
    path.write_text(json.dumps(dataclasses.asdict(writer) | changes))
    return path


def test_a_second_process_is_refused_until_the_first_ends(tmp_path, other):
    (note,) = notes(tmp_path)
    with pytest.raises(LockedError) as refused, hold_lock(tmp_path, "training", instead="choose another name"):
        pass
    assert re.fullmatch(
        rf"{tmp_path} is in use: training by {getpass.getuser()} on {platform.node()}, process {other.pid}, which began "
        rf"\d s ago and renewed its lock \d s ago. Wait until it has ended, or stop it, or choose another name. "
        rf"If you know that it has ended, delete {tmp_path / note}",
        str(refused.value),
    )
    assert str(refused.value).startswith(describe_lock(tmp_path)[:80])
    assert notes(tmp_path) == [note]
    other.communicate("")
    assert notes(tmp_path) == []
    with hold_lock(tmp_path, "training"):
        assert len(notes(tmp_path)) == 1


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path, other, said):
    other.send_signal(signal.SIGKILL)  # not waited for: a zombie is dead too
    while lock._start_of(other.pid):
        time.sleep(0.01)
    assert len(notes(tmp_path)) == 1
    assert describe_lock(tmp_path) == ""
    with hold_lock(tmp_path, "training"):
        assert len(notes(tmp_path)) == 1
    (line,) = said
    assert f"taking over the lock of a process that is gone (training by {getpass.getuser()} on" in line
    assert f"process {other.pid}; renewed " in line


def test_another_process_with_the_same_number_is_not_the_writer(tmp_path):
    put_note(tmp_path, process_start="1")
    with hold_lock(tmp_path, "training"):
        pass


def test_the_lock_of_another_machine_is_taken_over_if_it_is_not_renewed(tmp_path, said):
    put_note(tmp_path, machine="another", host="node7", process=1, renewed_s=time.time() - 3 * 3600)
    start = time.monotonic()
    with hold_lock(tmp_path, "training"):
        assert time.monotonic() - start >= 0.5
    assert "node7, process 1; renewed 3 h ago). Looking for up to 0.5 s whether writer-0123.json is renewed" in said[0]
    assert "taking over" in said[1]


def test_a_lock_that_another_machine_releases_is_no_longer_waited_for(tmp_path, said, monkeypatch):
    monkeypatch.setattr(lock, "_DEAD_AFTER_S", 30.0)
    path = put_note(tmp_path, machine="another", process=1)
    threading.Timer(0.3, path.unlink).start()
    with hold_lock(tmp_path, "training"):
        pass
    assert ["is locked" in line for line in said] == [True], "and nothing was taken over"


@contextlib.contextmanager
def renewing(path: Path):
    """Rewrites a note as its writer would, whose clock is a day late."""
    ended = threading.Event()
    writer = Writer(**json.loads(path.read_text()))

    def renew() -> None:
        while not ended.wait(0.1):
            lock._write(path, dataclasses.replace(writer, renewed_s=time.time() - 86400))

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_the_lock_of_another_machine_that_is_renewed_is_respected(tmp_path):
    path = put_note(tmp_path, machine="another", host="node7", process=os.getpid(), process_start="1")
    with renewing(path), pytest.raises(LockedError, match=r"in use: training by .* on node7"), hold_lock(tmp_path, "x"):
        pass
    assert path.exists()


@pytest.mark.slow
@pytest.mark.parametrize("content", ["", "[1]", '{"of": "another version"}'])
def test_a_note_without_meaning_is_removed_if_it_does_not_change(tmp_path, content):
    (tmp_path / "writer-0123.json").write_text(content)
    with hold_lock(tmp_path, "training"):
        pass
    assert notes(tmp_path) == []


def test_a_process_that_lost_its_lock_is_stopped(tmp_path):
    def lose_it() -> None:
        with hold_lock(tmp_path, "training"):
            path = find_lock(tmp_path)
            check_lock(path)
            path.unlink()
            with pytest.raises(LockedError, match="this process lost its lock"):
                check_lock(path)
            time.sleep(5)

    start = time.monotonic()
    with pytest.raises(LockedError, match=r"this process lost its lock. writer-\w+.json was deleted, or"):
        lose_it()
    assert time.monotonic() - start < 4


def test_a_lock_is_renewed_and_released_after_an_error(tmp_path):
    def fail() -> None:
        with hold_lock(tmp_path, "training"):
            before = find_lock(tmp_path).read_text()
            time.sleep(0.3)
            after = find_lock(tmp_path).read_text()
            assert json.loads(after)["renewed_s"] > json.loads(before)["renewed_s"]
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert notes(tmp_path) == []
    assert find_lock(tmp_path) is None


def enter_often(folder: Path, results: multiprocessing.Queue) -> None:
    """Takes the lock as often as it gets it, and notes whether another process was inside."""
    for _ in range(8):
        try:
            with hold_lock(folder, "training"):
                inside = os.open(folder / "inside", os.O_CREAT | os.O_EXCL)
                time.sleep(0.01)
                os.close(inside)
                (folder / "inside").unlink()
            results.put("held")
        except LockedError:
            results.put("refused")
        except FileExistsError:
            results.put("two at once")


def test_processes_that_come_at_once_never_hold_the_lock_together(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=enter_often, args=(tmp_path, results)) for _ in range(3)]
    for process in processes:
        process.start()
    outcomes = {results.get(timeout=60) for _ in range(3 * 8)}
    for process in processes:
        process.join()
    assert "held" in outcomes
    assert "two at once" not in outcomes
    assert notes(tmp_path) == []


@pytest.mark.slow
def test_the_lock_of_a_folder_in_an_object_store(s3, tmp_path, said):
    here, there = (local_copy(f"{s3}/run", tmp_path / name) for name in ("here", "there"))
    with hold_lock(here, "training"):
        (note,) = notes(there)
        with pytest.raises(LockedError, match=rf"{s3}/run is in use: .*delete {s3}/run/{note}"), hold_lock(there, "x"):
            pass
        check_lock(find_lock(there))
    assert notes(there) == []
    lock._write(there / "writer-0123.json", dataclasses.replace(lock._this_process("x"), machine="gone", holds=True))
    with hold_lock(here, "training"):
        assert len(notes(there)) == 1
    assert any("taking over" in line for line in said)
