"""Joining or starting a Ray cluster, and what is in it."""

import logging
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import MappingProxyType
from typing import Any

import ray
import torch
from ray.exceptions import RayError

from waver.config import ResourcesConfig
from waver.on_ray.cluster.loopback import loopback_only
from waver.tools.errors import WaverError

_CONNECT_S = 10.0


class ClusterUnreachableError(WaverError):
    """Nobody answers at the address of the cluster, or does not let us in."""


@contextmanager
def connect(*, num_cpus: int | None = None, dashboard: bool = False) -> Iterator[str]:
    """Joins Ray where it runs, or starts it on this machine and ends it afterwards.

    Already initialised Ray is used as it is; then the cluster of RAY_ADDRESS (a job has it); else a cluster of this
    machine alone, which nobody else can reach, see `loopback_only`.

    Args:
        num_cpus: of a cluster that is started; None for all CPUs of the machine.
        dashboard: of a cluster that is started. Early stopping of Ray Train inside Ray Tune needs it.

    Yields:
        A sentence on where we are, for the user.

    Raises:
        ClusterUnreachableError: for the cluster of RAY_ADDRESS.
    """
    if ray.is_initialized():
        yield f"using the Ray of this process ({cluster_size()})"
        return
    # What workers print goes to Ray's log files; what a user must know comes back in results and errors.
    quiet = {"logging_level": logging.WARNING, "configure_logging": True, "log_to_driver": False}
    address = cluster_address()
    with nullcontext() if address else loopback_only(dashboard=dashboard) as port:
        if address:
            _join(address, **quiet)
        else:
            # Ray's core would print, for each pool of actors, that their arguments are kept in memory. Errors that matter
            # are exceptions.
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
            ray.init(address="local", num_cpus=num_cpus, include_dashboard=dashboard, dashboard_port=port, **quiet)
        try:
            where = f"joined Ray at {address}" if address else "started Ray on this machine"
            yield f"{where} ({cluster_size()})"
        finally:
            ray.shutdown()


def cluster_address() -> str | None:
    """Of the cluster that RAY_ADDRESS names; None for none, and for `local`, which is what we do without."""
    address = os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address or None


def _join(address: str, **how: Any) -> None:
    _check_reachable(address)
    try:
        ray.init(address=address, **how)
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ClusterUnreachableError(
            f"the Ray cluster at RAY_ADDRESS={address} cannot be joined ({reason}): it is the address of a head, such as "
            "10.0.0.1:6379, or `auto` on one of its nodes; one that wants a token finds it by RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH. Unset RAY_ADDRESS to use this machine alone"
        ) from error


Labels = Mapping[str, str]
"""Of nodes, as given to `ray start --labels`; none stand for every node."""


def nodes(labels: Labels = MappingProxyType({})) -> list[dict[str, float]]:
    """Resources of each node that is alive and has these labels."""
    return list(nodes_by_id(labels).values())


def nodes_by_id(labels: Labels = MappingProxyType({})) -> dict[str, dict[str, float]]:
    """The same, by Ray's id of the node."""
    alive = (node for node in ray.nodes() if node["Alive"] and labels.items() <= node["Labels"].items())
    return {node["NodeID"]: node["Resources"] for node in alive}


def this_node() -> dict[str, str]:
    """Label by which actors come to the node of this process: Ray gives it to every node.

    A soft NodeAffinitySchedulingStrategy is only a wish: of actors that take no CPU, half went elsewhere.
    """
    return {"ray.io/node-id": ray.get_runtime_context().get_node_id()}


def gpus_per_worker(resources: ResourcesConfig) -> float:
    """GPUs that each worker takes: what was asked for, else 1 where its nodes have some."""
    asked = resources.gpus_per_worker
    have = any(node.get("GPU", 0) > 0 for node in nodes(resources.node_labels))
    return float(have) if asked is None else asked


def own_device(resources: ResourcesConfig) -> torch.device:
    """Where this process computes: on a GPU if it sees one, unless none was asked for."""
    return torch.device("cuda" if torch.cuda.is_available() and resources.gpus_per_worker != 0 else "cpu")


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes, and then abort the process."""
    if address.startswith("ray://"):
        raise ClusterUnreachableError(
            f"RAY_ADDRESS={address} is that of Ray's client, which knows too little of a cluster: run the command on one of "
            "its nodes, with RAY_ADDRESS=HEAD:6379, or send it there with `waver submit`"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:  # `auto`, and what Ray itself refuses
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise ClusterUnreachableError(
            f"no Ray cluster answers at RAY_ADDRESS={address} ({error}): start it, correct the address, or unset "
            "RAY_ADDRESS to use this machine alone"
        ) from error


def cluster_size(labels: Labels = MappingProxyType({})) -> str:
    """Nodes, CPUs and GPUs of the cluster; with labels, of the nodes that have them."""
    all_nodes, counted = nodes(), nodes(labels)
    text = "1 node" if len(all_nodes) == 1 else f"{len(all_nodes)} nodes"
    if labels:
        wanted = ", ".join(f"{label}={value}" for label, value in labels.items())
        text = f"of {text}, {len(counted)} {'has' if len(counted) == 1 else 'have'} {wanted}"
    cpus, gpus = (sum(node.get(name, 0) for node in counted) for name in ("CPU", "GPU"))
    return f"{text}, {cpus:g} CPUs, {gpus:g} GPUs"
