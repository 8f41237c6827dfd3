"""The actor that runs the checks of one node: installed packages, clock, shared storage, connections."""

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

CONNECT_TIMEOUT_S = 5.0
VISIBLE_TIMEOUT_S = 10.0
"""Other nodes must see a new file within this time: network file systems cache its absence for seconds."""


class NodeActor:
    """Runs the checks of the node that the actor is placed on.

    Args:
        ray_has_gpus: whether Ray counts GPUs on the node.
    """

    def __init__(self, ray_has_gpus: bool):
        self._has_gpus = ray_has_gpus

    def ready(self) -> bool:
        """Returns True; the answer shows that the actor has started."""
        return True

    def time(self) -> float:
        """Returns the clock of the node, in seconds since the epoch."""
        return time.time()

    def environment(self) -> dict[str, Any]:
        """Returns versions and hardware of the node, and as `ray_has_gpus` whether Ray counts GPUs on it."""
        return {**environment(), "ray_has_gpus": self._has_gpus}

    def write(self, folder: Path) -> str:
        """Writes a probe with the name of the node; returns the error, or an empty string."""
        try:
            write_probe(folder, _node_name())
        except OSError as error:
            return f"{type(error).__name__}: {error.strerror or error}"
        return ""

    def find_missing(self, folder: Path, names: list[str]) -> list[str]:
        """Returns the names whose probes this node does not see."""
        return missing_probes(folder, names)

    def remove(self, folder: Path) -> None:
        """Removes all probes."""
        remove_probes(folder)

    def listen(self) -> tuple[str, int]:
        """Accepts connections at a free port; returns address and port."""
        self._listening = socket.create_server((ray.util.get_node_ip_address(), 0))
        threading.Thread(target=_accept, args=(self._listening,), daemon=True).start()
        return self._listening.getsockname()[:2]

    def connect(self, addresses: dict[str, tuple[str, int]]) -> list[str]:
        """Connects to the address and port of each node; returns the names of the nodes that it cannot reach."""
        unreached: list[str] = []

        def reach(name: str) -> None:
            try:
                socket.create_connection(addresses[name], timeout=CONNECT_TIMEOUT_S).close()
            except OSError:
                unreached.append(name)

        threads = [threading.Thread(target=reach, args=(name,)) for name in addresses]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sorted(unreached)


def node_name(address: str, node_id: str) -> str:
    """Returns the name of a node in findings, such as `10.0.0.5 (3f2a9c1e)`."""
    return f"{address} ({node_id[:8]})"


def write_probe(folder: Path, name: str) -> None:
    """Writes a file with this name and content to the shared storage.

    Raises:
        OSError: if it cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w") as file:
        file.write(name)
        file.flush()
        os.fsync(file.fileno())
    upload(folder / name)


def missing_probes(folder: Path, names: Sequence[str]) -> list[str]:
    """Returns the names whose probes are still absent, or have other content, after `VISIBLE_TIMEOUT_S`."""
    deadline = time.monotonic() + VISIBLE_TIMEOUT_S
    while missing := [name for name in names if not _has_content(folder / name, name)]:
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    return missing


def remove_probes(folder: Path) -> None:
    """Removes the folder of the probes, and its parent folder if that is empty."""
    with suppress(OSError):
        remove(folder)
    with suppress(OSError):  # not empty while another `waver doctor` runs
        folder.parent.rmdir()


def _node_name() -> str:
    return node_name(ray.util.get_node_ip_address(), ray.get_runtime_context().get_node_id())


def _accept(server: socket.socket) -> None:
    while True:
        server.accept()[0].close()


def _has_content(file: Path, text: str) -> bool:
    try:
        return fetch(file).read_text() == text
    except OSError:
        return False
