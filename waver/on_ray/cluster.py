"""Joining or starting a Ray cluster, and asking whether it is large enough."""

import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import MappingProxyType

import ray
import torch
from ray.autoscaler.sdk import request_resources

from waver.config import ResourcesConfig
from waver.on_ray.loopback import loopback_only

_POLL_S = 1.0
_CONNECT_S = 10.0


class ClusterUnreachable(ValueError):
    """Nobody answers at the address of the cluster."""


class ClusterTooSmall(ValueError):
    """The cluster has not what the run asks for; the message says what there is."""


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
    """
    if ray.is_initialized():
        yield f"using the Ray of this process ({cluster_size()})"
        return
    # What workers print goes to Ray's log files; what a user must know comes back in results and errors.
    quiet = {"logging_level": logging.WARNING, "configure_logging": True, "log_to_driver": False}
    address = os.environ.get("RAY_ADDRESS")
    with nullcontext() if address else loopback_only(dashboard=dashboard) as port:
        if address:
            _check_reachable(address)
            ray.init(address=address, **quiet)
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


Labels = Mapping[str, str]
"""Of nodes, as given to `ray start --labels`; none stand for every node."""


def require(
    workers: int,
    *,
    cpus_per_worker: float,
    gpus_per_worker: float = 0.0,
    wait_s: float = 0.0,
    labels: Labels = MappingProxyType({}),
) -> None:
    """Checks that the nodes of the cluster, idle, have room for all workers.

    Args:
        workers: wanted at the same time.
        cpus_per_worker: of one node.
        gpus_per_worker: of the same node.
        wait_s: how long a cluster may take to grow to that size.
        labels: of the nodes that count.

    Raises:
        ClusterTooSmall: if it has not, after `wait_s`.
    """
    bundle = {"CPU": cpus_per_worker} | ({"GPU": gpus_per_worker} if gpus_per_worker else {})

    def room() -> int:
        return slots(nodes(labels), cpus_per_worker, gpus_per_worker)

    if not _grows(lambda: room() >= workers, [bundle] * workers, labels, wait_s):
        raise too_small(workers, cpus_per_worker, gpus_per_worker, room(), wait_s, cluster_size(labels))


def _grows(is_enough: Callable[[], bool], bundles: list[dict[str, float]], labels: Labels, wait_s: float) -> bool:
    """Whether a cluster is large enough, or becomes so in time; one that grows by itself is asked for what is missing."""
    if is_enough():
        return True
    if not wait_s:
        return False
    deadline = time.monotonic() + wait_s
    request_resources(bundles=bundles, bundle_label_selectors=[dict(labels)] * len(bundles) if labels else None)
    try:
        while not (enough := is_enough()) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return enough
    finally:
        # It would outlive this process, and keep nodes that nobody uses. Those that came stay until they are idle for long.
        request_resources(bundles=[])


def too_small(workers: int, cpus: float, gpus: float, room: int, wait_s: float, size: str) -> ClusterTooSmall:
    """What to say of a cluster that has room for fewer workers."""
    each = f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
    waited = f" after {wait_s:g} s" if wait_s else ""
    return ClusterTooSmall(
        f"{workers} workers with {each} each are asked for, and the cluster has room for {room}{waited} "
        f"({size}): lower resources.workers or what each takes (resources.cpus_per_worker, gpus_per_worker, "
        "loaders_per_worker), or add nodes (and raise resources.wait_s where the cluster grows by itself)"
    )


def slots(nodes: Iterable[Mapping[str, float]], cpus: float, gpus: float) -> int:
    """Workers with so many CPUs and GPUs each that fit at the same time, none of them across nodes."""
    wanted = {"CPU": cpus, "GPU": gpus}
    return sum(
        min(int(node.get(name, 0) / amount + 1e-9) for name, amount in wanted.items() if amount) for node in nodes
    )


def nodes(labels: Labels = MappingProxyType({})) -> list[dict[str, float]]:
    """Resources of each node that is alive and has these labels."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"] and labels.items() <= node["Labels"].items()]


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


def num_cpus(labels: Labels = MappingProxyType({}), *, wait_s: float = 0.0) -> int:
    """CPUs of all nodes with these labels, at least 1.

    Raises:
        ClusterTooSmall: if they have none after `wait_s`.
    """

    def cpus() -> int:
        return sum(int(node.get("CPU", 0)) for node in nodes(labels))

    if not _grows(lambda: cpus() > 0, [{"CPU": 1.0}], labels, wait_s):
        waited = f" after {wait_s:g} s" if wait_s else ""
        mend = "add such nodes or correct ingest.node_labels" if labels else "add nodes"
        raise ClusterTooSmall(
            f"the cluster has no CPU for this work{waited} ({cluster_size(labels)}): {mend} (and raise resources.wait_s "
            "where the cluster grows by itself)"
        )
    return cpus()


def _check_reachable(address: str) -> None:
    """Ray itself would try for minutes, and then abort the process."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "/" in host:  # `auto`, `ray://...`
        return
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except OSError as error:
        raise ClusterUnreachable(
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
