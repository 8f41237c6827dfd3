"""Joining or starting a Ray cluster, and the nodes in it."""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import MappingProxyType
from typing import Any

import ray
from ray.exceptions import RayError

from waver.config import ResourcesConfig
from waver.on_ray.cluster.loopback import loopback_only
from waver.on_ray.cluster.reachability import cannot_join, check_reachable, check_temporary_folder


@contextmanager
def connect(*, num_cpus: int | None = None, dashboard: bool = False) -> Iterator[str]:
    """Joins a running Ray cluster, or starts one on this machine for the time of the body.

    Uses the Ray of this process if it is initialised; else the cluster of RAY_ADDRESS (which Ray sets in a job); else
    starts a single-node cluster that other machines cannot reach, see `loopback_only`.

    Args:
        num_cpus: of a cluster that is started; None for all CPUs of the machine.
        dashboard: whether a cluster that is started has a dashboard. Early stopping of Ray Train inside Ray Tune needs it.

    Yields:
        A sentence for the user that says which cluster is used.

    Raises:
        ClusterUnreachableError: if the cluster of RAY_ADDRESS does not answer or refuses the connection.
        TemporaryFolderError: if Ray cannot be started because of the folder for temporary files.
    """
    if ray.is_initialized():
        yield f"using the Ray of this process ({cluster_size()})"
        return
    # Output of workers goes to Ray's log files; results and errors bring back what a user must know.
    quiet = {"logging_level": logging.WARNING, "configure_logging": True, "log_to_driver": False}
    address = cluster_address()
    if not address:
        check_temporary_folder()
    with nullcontext() if address else loopback_only(dashboard=dashboard) as port:
        if address:
            _join(address, **quiet)
        else:
            # Ray's core would print a notice about arguments kept in memory for each pool of actors. Errors that matter
            # are exceptions.
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
            ray.init(address="local", num_cpus=num_cpus, include_dashboard=dashboard, dashboard_port=port, **quiet)
        try:
            where = f"joined Ray at {address}" if address else "started Ray on this machine"
            yield f"{where} ({cluster_size()})"
        finally:
            ray.shutdown()


def cluster_address() -> str | None:
    """Returns RAY_ADDRESS; None if it is unset or `local`, which means that Ray is started on this machine."""
    address = os.environ.get("RAY_ADDRESS")
    return None if address == "local" else address or None


def runs_in_process(resources: ResourcesConfig) -> bool:
    """Returns whether a stage needs no Ray: it has one worker, which may run on this machine, and no cluster is named."""
    import torch  # imported here, since actors that decode videos import this module and need no torch

    return (
        resources.max_workers == 1
        and (resources.gpus_per_worker or 0) <= torch.cuda.device_count()
        and not resources.node_labels
        and cluster_address() is None
    )


def _join(address: str, **options: Any) -> None:
    check_reachable(address)
    try:
        ray.init(address=address, **options)
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        raise cannot_join(f"RAY_ADDRESS={address}", error) from error


Labels = Mapping[str, str]
"""Labels that a node must have, as given to `ray start --labels`; an empty mapping selects every node."""


def nodes(labels: Labels = MappingProxyType({})) -> list[dict[str, float]]:
    """Returns the resources of each node that is alive and has these labels."""
    return list(nodes_by_id(labels).values())


def nodes_by_id(labels: Labels = MappingProxyType({})) -> dict[str, dict[str, float]]:
    """Returns the resources of each node that is alive and has these labels, by Ray's node id."""
    alive = (node for node in ray.nodes() if node["Alive"] and labels.items() <= node["Labels"].items())
    return {node["NodeID"]: node["Resources"] for node in alive}


def local_node_label() -> dict[str, str]:
    """Returns the label that places an actor on the node of this process. Ray gives every node such a label.

    A soft NodeAffinitySchedulingStrategy is only a preference: half of the actors without CPUs were placed elsewhere.
    """
    return {"ray.io/node-id": ray.get_runtime_context().get_node_id()}


def gpus_per_worker(resources: ResourcesConfig) -> float:
    """Returns resources.gpus_per_worker; by default 1 if a node with resources.node_labels has a GPU, else 0."""
    if resources.gpus_per_worker is not None:
        return resources.gpus_per_worker
    return float(any(node.get("GPU", 0) > 0 for node in nodes(resources.node_labels)))


def cluster_size(labels: Labels = MappingProxyType({})) -> str:
    """Returns a description of the cluster: nodes, CPUs and GPUs; with labels, those of the nodes that have them."""
    all_nodes, counted = nodes(), nodes(labels)
    text = "1 node" if len(all_nodes) == 1 else f"{len(all_nodes)} nodes"
    if labels:
        required = ", ".join(f"{label}={value}" for label, value in labels.items())
        text = f"of {text}, {len(counted)} {'has' if len(counted) == 1 else 'have'} {required}"
    cpus, gpus = (sum(node.get(name, 0) for node in counted) for name in ("CPU", "GPU"))
    return f"{text}, {cpus:g} CPUs, {gpus:g} GPUs"
