"""The process group of Ray Train's workers. On a single-node Ray its store listens on the loopback interface only.

By default, the TCPStore through which the workers of torch.distributed find each other listens on every interface.
"""

import importlib
import socket

import ray
from ray.train.torch import TorchConfig
from torch.distributed import TCPStore

from waver.on_ray.cluster.loopback import LOOPBACK


def torch_config(*, timeout_s: int) -> TorchConfig:
    """Returns Ray Train's configuration of the process group; its store listens on loopback if this Ray does.

    Args:
        timeout_s: of one operation of the process group.
    """
    is_loopback = ray.util.get_node_ip_address() == LOOPBACK
    return (_LoopbackTorchConfig if is_loopback else TorchConfig)(timeout_s=timeout_s)


class _LoopbackTorchConfig(TorchConfig):
    @property
    def backend_cls(self) -> type:
        return _LoopbackBackend


class _LoopbackBackend(TorchConfig().backend_cls):
    def on_start(self, worker_group, backend_config) -> None:
        worker_group.execute(_keep_stores_on_loopback)
        super().on_start(worker_group, backend_config)


def _keep_stores_on_loopback() -> None:
    """Replaces torch's TCPStore, which has no setting for its interface but accepts a listening socket."""
    # The attribute `torch.distributed.rendezvous` is a function, which hides the module of that name.
    importlib.import_module("torch.distributed.rendezvous").TCPStore = _loopback_store


def _loopback_store(host_name: str, port: int, *, is_master: bool, **settings: object) -> TCPStore:
    if is_master:
        settings["master_listen_fd"] = socket.create_server((LOOPBACK, port)).detach()  # the store closes it
    return TCPStore(host_name, port, is_master=is_master, **settings)
