"""A real TensorBoard, started as a user starts it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from waver.runs import board as board_module
from waver.runs.board import BoardError, event_folders, start_board
from waver.runs.tracking import Tracker
from waver.tools.files import write_text
from waver.tools.object_store import local_copy, remove

NUM_STEPS, NUM_EVALUATIONS = 3000, 50
"""More than TensorBoard keeps by default: 1,000 scalars, 10 images."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name in ("a", "b"):
        with SummaryWriter(str(folder / name / "events")) as writer:
            for step in range(1, NUM_STEPS + 1):
                writer.add_scalar("loss", 1 / step, step)
            for evaluation in range(1, NUM_EVALUATIONS + 1):
                step = evaluation * NUM_STEPS // NUM_EVALUATIONS
                writer.add_image("image", torch.zeros(3, 2, 2), step)
                writer.add_text("text", f"**{evaluation}**", step)
                writer.add_pr_curve("curve", torch.tensor([0, 1, 1]), torch.tensor([0.1, 0.4, 0.9]), step)
                writer.add_histogram("histogram", torch.arange(4.0), step)
            writer.add_custom_scalars({"all": {"losses": ["Multiline", ["loss"]]}})
            writer.add_embedding(torch.eye(3), tag="clips")
    return folder


@pytest.fixture(scope="module")
def board(runs):
    """(process, URL, first line of its log)."""
    command = [sys.executable, "-m", "waver", "board", str(runs), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    said = process.stderr.readline()
    found = re.search(r"http://\S+/", said)
    yield process, found and found.group(), said
    if process.poll() is None:
        process.kill()
    process.wait()


def ask(url: str):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=20) as response:
        return json.load(response)


def count(url: str, expected: int) -> int:
    """Counts entries, waiting for `expected`: the data server is still reading when it lists the runs."""
    deadline, number = time.monotonic() + 10, -1
    while number != expected and time.monotonic() < deadline:
        try:
            number = len(ask(url))
        except OSError:  # 404 until it has read the tag
            time.sleep(0.1)
    return number


@pytest.mark.slow
def test_announces_its_url_when_it_answers(board):
    _, url, said = board
    assert said.startswith("2 runs of ")
    assert url.startswith("http://127.0.0.1:")
    assert ask(f"{url}data/runs") == ["a/events", "b/events"]


def test_listens_on_loopback_only(board):
    pids = [board[0].pid, *children_of(board[0].pid)]
    sockets = {str(file.readlink()) for pid in pids for file in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [row.split() for kind in ("tcp", "tcp6") for row in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]]
    listening = [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in sockets]
    assert listening
    assert all(address.startswith("0100007F:") for address in listening), listening


@pytest.mark.slow
def test_keeps_every_point_of_every_tag(board):
    url = board[1] + "data/plugin"
    run = "run=b/events&tag="
    assert count(f"{url}/scalars/scalars?{run}loss", NUM_STEPS) == NUM_STEPS
    assert count(f"{url}/images/images?{run}image&sample=0", NUM_EVALUATIONS) == NUM_EVALUATIONS
    assert count(f"{url}/text/text?{run}text/text_summary", NUM_EVALUATIONS) == NUM_EVALUATIONS
    assert count(f"{url}/histograms/histograms?{run}histogram", NUM_EVALUATIONS) == NUM_EVALUATIONS
    assert len(ask(f"{url}/pr_curves/pr_curves?run=b/events&tag=curve")["b/events"]) == NUM_EVALUATIONS


def test_every_dashboard_has_its_data(board):
    url = board[1] + "data/plugin"
    assert ask(f"{url}/custom_scalars/layout")["category"][0]["title"] == "all"
    assert ask(f"{url}/projector/runs") == ["a/events", "b/events"]
    assert ask(f"{url}/projector/info?run=a/events")["embeddings"][0]["tensorShape"] == [3, 3]


def test_ctrl_c_ends_it_and_its_children(board):
    process, url, _ = board
    # If Ctrl-C interrupts Rich between writing the first line and clearing its buffer, the line is printed again.
    ask(f"{url}data/runs")
    children = children_of(process.pid)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=10) == 0
    assert process.stderr.read() == "ended\n"
    deadline = time.monotonic() + 5
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in children if alive(pid)]


def children_of(pid: int) -> list[int]:
    return [int(child) for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_event_folders_are_found_below_and_at_the_folder(runs):
    assert event_folders(runs) == [runs / "a" / "events", runs / "b" / "events"]
    assert event_folders(runs / "a" / "events") == [runs / "a" / "events"]


@pytest.fixture
def linked(runs, tmp_path):
    """A folder of links: to two runs, to itself, to nowhere."""
    for name, target in (("a", runs / "a"), ("b", runs / "b" / "events"), ("circle", tmp_path), ("gone", "nowhere")):
        (tmp_path / name).symlink_to(target)
    return tmp_path


def test_event_folders_are_found_through_links(linked):
    assert event_folders(linked) == [linked / "a" / "events", linked / "b"]


@pytest.mark.slow
def test_shows_runs_behind_links(linked):
    assert ask(f"{start_board(linked, port=0).url}data/runs") == ["a/events", "b"]


def test_links_that_lead_nowhere_are_named(tmp_path):
    (tmp_path / "a").symlink_to("storage/runs/a")
    with pytest.raises(BoardError, match=r"1 links lead nowhere, such as .*/a to storage/runs/a, relative to its own"):
        event_folders(tmp_path)


def test_folder_without_events_is_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("typo", "does not exist"),
        ("file", "is a file"),
        ("empty", "no TensorBoard events in or below"),
    ):
        with pytest.raises(BoardError, match=message):
            start_board(tmp_path / name)


def test_port_in_use_is_refused(runs):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(BoardError, match=r"port \d+ is in use.*choose another with --port"):
            start_board(runs, port=other.getsockname()[1])


@pytest.mark.slow
def test_shows_runs_of_an_object_store(s3, tmp_path, monkeypatch):
    """Another machine than the one that trains shows them, finds a run that starts later, and drops one that is deleted."""
    monkeypatch.setattr(board_module, "_RELOAD_S", 1.0)
    here, there = (local_copy(f"{s3}/runs", tmp_path / machine) for machine in ("here", "there"))
    for name in ("a", "b"):
        with Tracker(here / name) as tracker:
            tracker.log(1, {"loss/total": 1.0})
    url = start_board(there, port=0).url
    assert ask(f"{url}data/runs") == ["a/events", "a/events/by_pairs", "b/events", "b/events/by_pairs"]
    with Tracker(here / "c") as tracker:
        tracker.log(1, {"loss/total": 1.0})
    remove(here / "a")
    deadline = time.monotonic() + 20
    while (runs := {path.relative_to(there).parts[0] for path in event_folders(there)}) != {"b", "c"}:
        assert time.monotonic() < deadline, runs
        time.sleep(0.1)


def test_object_store_without_runs_is_refused(s3):
    with pytest.raises(BoardError, match=r"s3://waver/.*/typo does not exist"):
        start_board(local_copy(f"{s3}/typo"))
    write_text(local_copy(f"{s3}/empty/x"), "1")
    with pytest.raises(BoardError, match=r"no TensorBoard events in or below s3://waver/.*/empty"):
        start_board(local_copy(f"{s3}/empty"))
