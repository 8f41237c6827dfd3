"""A Ray of this machine alone: it listens on the loopback interface, and asks its own processes for a token.

Whoever reaches a port of Ray can run programs as the user who started it. By itself Ray listens on every interface of a
Linux machine, and so does the store in which the workers of torch.distributed find each other.
"""

import importlib
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray.train.torch import TorchConfig
from torch.distributed import TCPStore

from waver.on_ray.cluster.ray_internals import reload_authentication, single_node_cluster
from waver.tools.environment import environment_variables

LOOPBACK = "127.0.0.1"
_DASHBOARD = "RAY_API_SERVER_ADDRESS"
_INTERFACES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


@contextmanager
def loopback_only(*, dashboard: bool) -> Iterator[int | None]:
    """Makes a Ray that is started within it, and all its processes, keep to the loopback interface.

    Other users of the machine reach that as well, therefore the token: a random one, in the environment of this process and
    those that it starts, and nowhere else. What the user has set (RAY_AUTH_MODE, GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)
    stays; everything is put back at the end.

    Args:
        dashboard: whether Ray is to have one.

    Yields:
        The port for the dashboard, None without one.
    """
    # Where several Rays run on a machine, their processes would not know whose dashboard to ask.
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


def torch_config(*, timeout_s: int) -> TorchConfig:
    """How the workers of this Ray find each other: on the loopback interface, if Ray keeps to it.

    Args:
        timeout_s: of one operation of the process group.
    """
    alone = ray.util.get_node_ip_address() == LOOPBACK
    return (_LoopbackTorchConfig if alone else TorchConfig)(timeout_s=timeout_s)


class _LoopbackTorchConfig(TorchConfig):
    @property
    def backend_cls(self) -> type:
        return _LoopbackBackend


class _LoopbackBackend(TorchConfig().backend_cls):
    def on_start(self, worker_group, backend_config) -> None:
        worker_group.execute(_keep_stores_on_loopback)
        super().on_start(worker_group, backend_config)


def _keep_stores_on_loopback() -> None:
    """Torch has no setting for it; its stores take a socket that listens already."""
    # `torch.distributed.rendezvous` is a function as well, which hides the module.
    importlib.import_module("torch.distributed.rendezvous").TCPStore = _loopback_store


def _loopback_store(host_name: str, port: int, *, is_master: bool, **settings: object) -> TCPStore:
    if is_master:
        settings["master_listen_fd"] = socket.create_server((LOOPBACK, port)).detach()  # which the store closes
    return TCPStore(host_name, port, is_master=is_master, **settings)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]
