"""Checks before Ray starts or is joined, in seconds. Ray itself would try for minutes, or fail in words of its own."""

import datetime
import os
import socket
import sys
from pathlib import Path

from ray.exceptions import AuthenticationError, RayError

from waver.on_ray.cluster.ray_internals import check_cluster_state, check_local_node, find_head
from waver.tools.errors import WaverError
from waver.tools.files import can_write
from waver.tools.network import call_within

_CONNECT_S = 10.0
_ANSWER_S = 5.0
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""The first bytes of a client of HTTP/2, in which Ray's processes talk (gRPC): the preface and empty settings."""
_MAX_SOCKET_BYTES = 103 if sys.platform == "darwin" else 107
"""Longest path of a Unix socket."""
_SET_ADDRESS = (
    "set RAY_ADDRESS to the address of the head, such as 10.0.0.1:6379, or to `auto` on a node of the cluster; or unset "
    "RAY_ADDRESS to use this machine alone"
)


class ClusterUnreachableError(WaverError):
    """The cluster does not answer at its address, or refuses the connection."""


class TemporaryFolderError(WaverError):
    """Ray cannot keep its files in the folder for temporary files."""


def check_reachable(address: str) -> None:
    """Checks that a Ray cluster can be joined from this machine.

    Args:
        address: value of RAY_ADDRESS.

    Raises:
        ClusterUnreachableError: if it is no address of a cluster, nothing or something else answers there, or this machine
            is not a node of the cluster; within about 25 s.
    """
    if address.startswith("ray://"):
        raise ClusterUnreachableError(
            f"RAY_ADDRESS={address} is an address of Ray Client, which waver does not support: run the command on a node "
            "of the cluster, with RAY_ADDRESS=HEAD:6379, or submit it with `waver submit`"
        )
    if address.startswith(("http://", "https://")):
        raise ClusterUnreachableError(f"RAY_ADDRESS={address} is the address of a dashboard: {_SET_ADDRESS}")
    try:
        head = call_within(_CONNECT_S, find_head, address)
    except (ConnectionError, OSError, ValueError) as error:
        raise ClusterUnreachableError(
            f"RAY_ADDRESS={address} leads to no Ray cluster ({error}): start it, {_SET_ADDRESS}"
        ) from error
    named = f"RAY_ADDRESS={address}" + (f" (found: {head})" if address == "auto" else "")
    _check_greeting(address, head, named)
    try:
        check_cluster_state(head)
    except AuthenticationError as error:
        raise cannot_join(named, error) from error
    except (RayError, RuntimeError, OSError) as error:
        raise ClusterUnreachableError(
            f"what answers at {named} is not the head of a Ray cluster ({_first_line(error)}): {_SET_ADDRESS}"
        ) from error
    try:
        check_local_node(head)
    except (RayError, RuntimeError) as error:
        raise ClusterUnreachableError(
            f"this machine is not a node of the Ray cluster at {named}: run the command on one of its nodes, make this "
            f"machine one with `ray start --address={head}`, or submit the command with `waver submit`"
        ) from error


def cannot_join(named: str, error: Exception) -> ClusterUnreachableError:
    """Returns the error for a cluster that answers, but refuses the connection; `named` says where it is."""
    return ClusterUnreachableError(
        f"the Ray cluster at {named} cannot be joined ({_first_line(error)}): {_SET_ADDRESS}. If the cluster requires a "
        "token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"
    )


def _check_greeting(address: str, head: str, named: str) -> None:
    """Raises ClusterUnreachableError unless the server at the head's `host:port` greets as Ray's do."""
    try:
        greeting = _greeting(head)
    except OSError as error:
        # Ray takes this machine's address in the network for localhost; a dashboard may listen at localhost alone.
        if address in ("auto", head) or not _something_else_answers(address):
            raise ClusterUnreachableError(
                f"no Ray cluster answers at {named} ({error}): start it, correct the address, or unset RAY_ADDRESS to use "
                "this machine alone"
            ) from error
        greeting = b"HTTP/1.1"
    if os.environ.get("RAY_USE_TLS", "0") != "0":  # only the handshake of TLS would be answered
        return
    if not greeting:
        raise ClusterUnreachableError(f"what listens at {named} says nothing within {_ANSWER_S:g} s: {_SET_ADDRESS}")
    if not _is_of_ray(greeting):
        raise ClusterUnreachableError(
            f"another server answers at {named}, perhaps the cluster's dashboard, and not its head: {_SET_ADDRESS}"
        )


def _something_else_answers(address: str) -> bool:
    try:
        greeting = _greeting(address)
    except OSError:
        return False
    return bool(greeting) and not _is_of_ray(greeting)


def _is_of_ray(greeting: bytes) -> bool:
    """Returns whether a server greets in HTTP/2: with a frame of type 4 (settings) on stream 0."""
    return greeting[3:4] == b"\x04" and greeting[5:9] == bytes(4)


def _greeting(address: str) -> bytes:
    """Returns the beginning of the answer to a client of HTTP/2; empty if there is none in time.

    Raises:
        OSError: if nothing listens at the address.
    """
    host, _, port = address.rpartition(":")
    with call_within(_CONNECT_S, socket.create_connection, (host.strip("[]"), int(port)), _CONNECT_S) as connection:
        connection.settimeout(_ANSWER_S)
        try:
            connection.sendall(_GREETING)
            return connection.recv(64)
        except OSError:
            return b""


def check_temporary_folder() -> None:
    """Checks that a Ray that is started on this machine can create its sockets.

    Raises:
        TemporaryFolderError: if the paths of the sockets would be too long, or the folder cannot be written to. Names the
            variable.
    """
    names = ("RAY_TMPDIR", "TMPDIR") if sys.platform.startswith("linux") else ("RAY_TMPDIR",)
    variable = next((name for name in names if name in os.environ), None)
    folder = Path(os.environ[variable] if variable else "/tmp").absolute()
    named = f"{variable}={folder}" if variable else str(folder)
    session = f"session_{datetime.datetime.now():%Y-%m-%d_%H-%M-%S_%f}_{os.getpid()}"
    num_bytes = len(os.fsencode(folder / "ray" / session / "sockets" / "plasma_store"))
    if (excess := num_bytes - _MAX_SOCKET_BYTES) > 0:
        raise TemporaryFolderError(
            f"{named} is {excess} bytes too long: the path of a Unix socket has at most {_MAX_SOCKET_BYTES} bytes, and "
            f"Ray's would have {num_bytes}. Set RAY_TMPDIR to a shorter folder, such as RAY_TMPDIR=/tmp"
        )
    existing = next(path for path in (folder / "ray", folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not can_write(existing):
        problem = "cannot be written to" if existing.is_dir() else "is a file"
        raise TemporaryFolderError(
            f"{named}: {existing} {problem}, and Ray keeps its files there: change its permissions, or set RAY_TMPDIR to "
            "another folder with a short name"
        )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
