"""A single-node Ray that listens on the loopback interface only, and requires a token.

Anyone who can connect to a port of Ray can run programs as the user who started it. By default, Ray listens on every
interface of a Linux machine.
"""

import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from waver.on_ray.cluster.ray_internals import reload_authentication, single_node_cluster
from waver.tools.environment import environment_variables

LOOPBACK = "127.0.0.1"
_DASHBOARD = "RAY_API_SERVER_ADDRESS"
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@contextmanager
def loopback_only(*, dashboard: bool) -> Iterator[int | None]:
    """Restricts a Ray that is started within the body, with all its processes, to the loopback interface.

    Other users of the machine can reach that interface, therefore Ray also requires a token. The token is random, and is
    only in the environment of this process and of the processes that it starts. RAY_AUTH_MODE, GLOO_SOCKET_IFNAME and
    NCCL_SOCKET_IFNAME keep their values if the user has set them. The environment is restored at the end.

    Args:
        dashboard: whether Ray will have a dashboard.

    Yields:
        The port for the dashboard; None without a dashboard.
    """
    # If several Rays run on a machine, their processes do not know which dashboard is theirs.
    port = _free_port() if dashboard else None
    settings = {_DASHBOARD: f"http://{LOOPBACK}:{port}"} if dashboard else {}
    if "RAY_AUTH_MODE" not in os.environ:
        settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    settings |= {variable: name for variable in _INTERFACES if variable not in os.environ for name in names[:1]}
    with environment_variables(settings), single_node_cluster():
        reload_authentication()
        yield port
    reload_authentication()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]
