import os
import socket
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from waver.on_ray.cluster import reachability
from waver.on_ray.cluster.connection import connect
from waver.on_ray.cluster.reachability import (
    ClusterUnreachableError,
    TemporaryFolderError,
    check_reachable,
    check_temporary_folder,
)


@pytest.fixture(scope="session", autouse=True)
def ray_session():
    """Starts no Ray: nothing can be joined."""


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("ray://127.0.0.1:9", r"ray://127\.0\.0\.1:9 is an address of Ray Client.*submit it with `waver submit`"),
        (
            "http://127.0.0.1:8265",
            r"RAY_ADDRESS=http://127\.0\.0\.1:8265 is the address of a dashboard: set RAY_ADDRESS to",
        ),
        ("127.0.0.1:9", r"no Ray cluster answers at RAY_ADDRESS=127\.0\.0\.1:9 .*refused.*unset RAY_ADDRESS"),
        ("nowhere.invalid:6379", r"no Ray cluster answers at RAY_ADDRESS=nowhere\.invalid:6379"),
        ("head", r"RAY_ADDRESS=head leads to no Ray cluster \(Invalid address format: head\)"),
    ],
)
def test_an_address_without_cluster_is_an_error_at_once(address, expected):
    start = time.monotonic()
    with pytest.raises(ClusterUnreachableError, match=expected):
        check_reachable(address)
    assert time.monotonic() - start < 5


def test_a_server_that_is_silent_is_given_up(monkeypatch):
    monkeypatch.setattr(reachability, "_ANSWER_S", 0.2)
    told = pytest.raises(ClusterUnreachableError, match=r"says nothing within 0\.2 s")
    with socket.create_server(("0.0.0.0", 0)) as silent, told:
        check_reachable(f"127.0.0.1:{silent.getsockname()[1]}")


def test_a_web_server_is_named_as_such_before_ray_is_asked(monkeypatch):
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.server_port}")
        with pytest.raises(ClusterUnreachableError, match=r"another server answers at .* and not its head"), connect():
            pass
        server.shutdown()


def test_a_temporary_folder_that_is_too_long_for_sockets_is_named_with_its_variable(monkeypatch, tmp_path):
    fits = 107 - len(f"/ray/session_2026-01-01_00-00-00_000000_{os.getpid()}/sockets/plasma_store")
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * (fits - len("/tmp/")))
    check_temporary_folder()
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * (fits - len("/tmp/") + 1))
    with pytest.raises(
        TemporaryFolderError, match=r"^TMPDIR=/tmp/x+ is 1 bytes too long: .* at most 107 bytes, .* 108\."
    ):
        check_temporary_folder()
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    check_temporary_folder()
    (tmp_path / "file").touch()
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    with pytest.raises(TemporaryFolderError, match=r"^RAY_TMPDIR=/"), connect():
        pass
    monkeypatch.setenv("RAY_TMPDIR", "/proc/nowhere")
    with pytest.raises(TemporaryFolderError, match=r"^RAY_TMPDIR=/proc/nowhere: /proc cannot be written to"):
        check_temporary_folder()
