"""node_actor."""

import os
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray

from waver.runs.environment import environment
from waver.tools.object_store import fetch, remove, upload

_CONNECT_S = 5.0


_SEEN_S = 10.0
"""After so long what one node wrote is seen by the others: network disks remember for some seconds what was not there."""


class _OnNode:
    """Answers for its node."""

    def __init__(self, ray_has_gpus: bool):
        self._has_gpus = ray_has_gpus

    def ready(self) -> bool:
        return True

    def time(self) -> float:
        return time.time()

    def environment(self) -> dict[str, Any]:
        return {**environment(), "ray_has_gpus": self._has_gpus}

    def write(self, folder: Path) -> str:
        """Returns what was refused."""
        try:
            _write(folder, _own_name())
        except OSError as error:
            return f"{type(error).__name__}: {error.strerror or error}"
        return ""

    def read(self, folder: Path, names: list[str]) -> list[str]:
        """Returns the names whose files are not there."""
        return _unseen(folder, names)

    def remove(self, folder: Path) -> None:
        _remove(folder)

    def listen(self) -> tuple[str, int]:
        self._listening = socket.create_server((ray.util.get_node_ip_address(), 0))
        threading.Thread(target=_accept, args=(self._listening,), daemon=True).start()
        return self._listening.getsockname()[:2]

    def connect(self, places: dict[str, tuple[str, int]]) -> list[str]:
        """Returns the names that are not reached."""
        unreached: list[str] = []

        def reach(name: str) -> None:
            try:
                socket.create_connection(places[name], timeout=_CONNECT_S).close()
            except OSError:
                unreached.append(name)

        threads = [threading.Thread(target=reach, args=(name,)) for name in places]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(unreached)


def _own_name() -> str:
    return f"{ray.util.get_node_ip_address()} ({ray.get_runtime_context().get_node_id()[:8]})"


def _accept(server: socket.socket) -> None:
    while True:
        server.accept()[0].close()


def _write(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        file.write(name)
        file.flush()
        os.fsync(file.fileno())
    upload(folder / name)


def _unseen(folder: Path, names: Sequence[str]) -> list[str]:
    deadline = time.monotonic() + _SEEN_S
    while unseen := [name for name in names if not _holds(folder / name, name)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return unseen


def _holds(file: Path, text: str) -> bool:
    try:
        return fetch(file).read_text() == text
    except OSError:
        return False


def _remove(folder: Path) -> None:
    with suppress(OSError):
        remove(folder)
    with suppress(OSError):  # another preflight may be in it
        folder.parent.rmdir()
