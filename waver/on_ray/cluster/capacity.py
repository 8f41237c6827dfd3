"""The capacity of a cluster for workers: in total, free now, or after waiting for it.

A worker takes all its resources from one node, so nodes are counted one by one. Their total resources decide whether a run
could ever start; their free resources decide whether it starts now.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from ray.autoscaler.sdk import request_resources
from ray.exceptions import RayError

from waver.config import ExperimentConfig
from waver.on_ray.cluster.connection import Labels, cluster_size, nodes_by_id
from waver.on_ray.cluster.ray_internals import draining_node_ids, free_resources_by_node
from waver.tools.errors import WaverError

logger = logging.getLogger(__name__)

CPUS_PER_LOADER = 0.5
"""CPUs reserved for each loader process of a worker. It waits for the disk more than it computes."""
_MAX_WORKERS_PER_CPU = 4
"""Workers that may share a CPU of this machine; with more of them training is slower."""
_POLL_S = 0.5
_PATIENCE_S = 20.0
"""How long to wait for more workers than the minimum: a group that has just ended is about to free its resources."""
_NOTICE_AFTER_S = 5.0
_REQUEST_EVERY_S = 5.0
"""The autoscaler follows the latest request only, and Ray Data and Ray Train send theirs every 20 s."""


class ClusterTooSmallError(WaverError):
    """The cluster lacks the requested resources; the message says what it has."""


@dataclass(frozen=True)
class WorkerResources:
    """Resources of one worker, all on one node."""

    cpus: float
    gpus: float = 0.0
    labels: Labels = field(default_factory=dict)
    """Labels that a node must have."""

    def __str__(self) -> str:
        return f"{self.cpus:g} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")

    @property
    def bundle(self) -> dict[str, float]:
        """These resources as a bundle of a Ray placement group."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    def max_workers(self) -> int:
        """Returns how many workers fit on the idle cluster."""
        return count_fitting_workers(_usable_nodes(self.labels).values(), self.cpus, self.gpus)

    def free_workers(self) -> int:
        """Returns how many workers fit into the free capacity of the cluster."""
        return count_fitting_workers(_free_nodes(self.labels), self.cpus, self.gpus)


def count_fitting_workers(nodes: Iterable[Mapping[str, float]], cpus: float, gpus: float) -> int:
    """Returns how many workers fit on nodes at the same time, each of them on one node.

    Args:
        nodes: resources of each node.
        cpus: per worker.
        gpus: per worker.
    """
    required = {"CPU": cpus, "GPU": gpus}
    return sum(
        min(int(node.get(name, 0) / amount + 1e-9) for name, amount in required.items() if amount) for node in nodes
    )


def require_capacity(workers: int, worker: WorkerResources, *, wait_s: float = 0.0) -> None:
    """Checks that all workers fit on the idle cluster.

    Args:
        workers: number of workers at the same time.
        worker: resources of each.
        wait_s: how long to wait until the cluster has grown to that size.

    Raises:
        ClusterTooSmallError: if it is still too small after `wait_s`.
    """
    if not _wait_until(lambda: worker.max_workers() >= workers, workers, worker, wait_s):
        raise cluster_too_small(workers, worker, worker.max_workers(), cluster_size(worker.labels), wait_s=wait_s)


def wait_for_capacity(
    min_workers: int,
    max_workers: int,
    worker: WorkerResources,
    *,
    wait_s: float = 0.0,
    queues: bool = True,
    pause: Callable[[float], None] = time.sleep,
) -> int:
    """Returns how many workers to start now, after waiting for free capacity if necessary.

    Args:
        min_workers: fewest to start with.
        max_workers: most to start with.
        worker: resources of each.
        wait_s: how long to wait for nodes while the idle cluster is too small for `min_workers`.
        queues: whether to wait without limit while others use the capacity.
        pause: sleeps for the given seconds; may raise an exception to end the waiting.

    Raises:
        ClusterTooSmallError: if the cluster is too small for `min_workers` for longer than `wait_s`; without `queues` also
            if others use the capacity.
    """
    start = too_small_since = time.monotonic()
    noticed = False
    with _autoscaler_requests(worker) as request:
        while True:
            total, free, now = worker.max_workers(), worker.free_workers(), time.monotonic()
            waited, too_small_since = now - start, too_small_since if total < min_workers else now
            if free >= max(min_workers, min(max_workers, total)) or (free >= min_workers and waited >= _PATIENCE_S):
                return min(max_workers, free)
            if total < min_workers:
                if now - too_small_since >= wait_s:
                    raise cluster_too_small(min_workers, worker, total, cluster_size(worker.labels), wait_s=wait_s)
            elif not queues and waited >= _PATIENCE_S:
                raise ClusterTooSmallError(_busy_message(min_workers, worker, free))
            elif queues and not noticed and free < min_workers and waited >= _NOTICE_AFTER_S:
                logger.info(f"{_busy_message(min_workers, worker, free)}: waiting for free capacity")
                noticed = True
            request(total - free + min_workers)
            pause(_POLL_S)


@contextmanager
def watch_free_capacity(
    notify: Callable[[], object], additional: int, worker: WorkerResources, *, every_s: float
) -> Iterator[None]:
    """Watches for capacity for additional workers while the body runs, and requests it from the autoscaler.

    Args:
        notify: called after each check that finds free capacity for at least one more worker.
        additional: number of additional workers to request.
        worker: resources of each.
        every_s: interval between checks.
    """
    over = threading.Event()

    def watch() -> None:
        is_over, next_check_s = over.wait(every_s), 0.0
        with _autoscaler_requests(worker) as request:
            while not is_over:
                # The head may only be restarting; if the cluster is lost for good, the run itself fails.
                with suppress(RayError, RuntimeError, OSError):
                    total, free = worker.max_workers(), worker.free_workers()
                    request(total - free + additional)
                    if time.monotonic() >= next_check_s:
                        next_check_s = time.monotonic() + every_s
                        if free:
                            notify()
                is_over = over.wait(min(every_s, _REQUEST_EVERY_S))

    watcher = threading.Thread(target=watch, name="waver-capacity", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def count_cpus(labels: Labels, *, wait_s: float = 0.0) -> int:
    """Returns the number of CPUs on all nodes with these labels, at least 1.

    Args:
        labels: labels that a node must have to count.
        wait_s: how long to wait for such a node.

    Raises:
        ClusterTooSmallError: if these nodes have no CPU after `wait_s`.
    """

    def cpus() -> int:
        return sum(int(node.get("CPU", 0)) for node in _usable_nodes(labels).values())

    if not _wait_until(lambda: cpus() > 0, 1, WorkerResources(1.0, labels=labels), wait_s):
        waited = f" after {wait_s:g} s" if wait_s else ""
        remedy = "add nodes with these labels or correct ingest.node_labels" if labels else "add nodes"
        raise ClusterTooSmallError(
            f"the cluster has no CPU for this work{waited} ({cluster_size(labels)}): {remedy} (and raise resources.wait_s "
            "if the cluster is autoscaling)"
        )
    return cpus()


def cluster_too_small(
    workers: int, worker: WorkerResources, capacity: int, size: str, *, wait_s: float = 0.0
) -> ClusterTooSmallError:
    """Returns the error for a cluster that has capacity for fewer workers than requested.

    Args:
        workers: requested number.
        worker: resources of each.
        capacity: number of workers that fit.
        size: description of the cluster, see `cluster_size`.
        wait_s: how long waver has waited for the cluster to grow.
    """
    waited = f" after {wait_s:g} s" if wait_s else ""
    return ClusterTooSmallError(
        f"{workers} workers with {worker} each are requested, and the cluster has capacity for {capacity}{waited} "
        f"({size}): lower resources.workers or the resources of each worker (resources.cpus_per_worker, gpus_per_worker, "
        "loaders_per_worker), or add nodes (and raise resources.wait_s if the cluster is autoscaling)"
    )


def local_cpus(config: ExperimentConfig) -> int:
    """Returns the number of CPUs with which to start Ray on this machine for an experiment.

    Ray counts CPUs and reserves none, so workers can share a CPU: the number may exceed that of the machine, up to
    `_MAX_WORKERS_PER_CPU` times.
    """
    resources = config.resources
    required = resources.max_workers * (resources.cpus_per_worker + resources.loaders_per_worker * CPUS_PER_LOADER)
    cpus = os.cpu_count() or 1
    return min(max(cpus, int(-(-required // 1))), _MAX_WORKERS_PER_CPU * cpus)


def _busy_message(workers: int, worker: WorkerResources, free: int) -> str:
    return f"others use the cluster: {free} of {workers} workers with {worker} each fit now"


def _wait_until(is_enough: Callable[[], bool], workers: int, worker: WorkerResources, wait_s: float) -> bool:
    """Waits until a cluster is large enough, and requests capacity for workers from the autoscaler meanwhile.

    Returns:
        Whether it is large enough.
    """
    deadline = time.monotonic() + wait_s
    with _autoscaler_requests(worker) as request:
        while not (enough := is_enough()) and time.monotonic() < deadline:
            request(workers)
            time.sleep(_POLL_S)
    return enough


@contextmanager
def _autoscaler_requests(worker: WorkerResources) -> Iterator[Callable[[int], None]]:
    """Withdraws requests to the autoscaler at the end of the body.

    Yields:
        A function that requests capacity for a total number of workers, running ones included. Call it often.
    """
    requested = False

    def request(workers: int) -> None:
        nonlocal requested
        requested = True
        selectors = [dict(worker.labels)] * workers if worker.labels else None
        request_resources(bundles=[worker.bundle] * workers, bundle_label_selectors=selectors)

    try:
        yield request
    finally:
        # A request outlives this process and keeps idle nodes. Without it, idle nodes leave after the autoscaler's timeout.
        if requested:
            with suppress(RayError, RuntimeError, OSError):  # the cluster is lost, and the request with it
                request_resources(bundles=[])


def _usable_nodes(labels: Labels) -> dict[str, dict[str, float]]:
    """Returns the resources of each node with these labels, by node id, without nodes that are being drained.

    A draining node is alive and may be idle, but Ray places nothing on it.
    """
    draining = draining_node_ids()
    return {node: resources for node, resources in nodes_by_id(labels).items() if node not in draining}


def _free_nodes(labels: Labels) -> list[dict[str, float]]:
    """Returns the free resources of each usable node with these labels."""
    free = free_resources_by_node()
    return [free.get(node, {}) for node in _usable_nodes(labels)]
