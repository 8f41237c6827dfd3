"""Whether a cluster has room for what a run asks of it, now or after a while.

A worker has all that it takes on one node, so nodes are looked at one by one: what they have decides what could ever run,
and what of it nobody uses decides what starts now.
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


_POLL_S = 0.5
_PATIENCE_S = 20.0
"""How long fewer workers than there might be are held back: a group that has just ended is about to leave its place."""
_SAY_AFTER_S = 5.0
_ASK_EVERY_S = 5.0
"""Who asks an autoscaler last is heard, and Ray Data and Ray Train ask every 20 s for what they use."""


class ClusterTooSmallError(WaverError):
    """The cluster has not what the run asks for; the message says what there is."""


@dataclass(frozen=True)
class WorkerResources:
    """What a worker takes, of one node."""

    cpus: float
    gpus: float = 0.0
    labels: Labels = field(default_factory=dict)
    """Of the nodes that count."""

    def __str__(self) -> str:
        return f"{self.cpus:g} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")

    @property
    def bundle(self) -> dict[str, float]:
        """As Ray wants it."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})

    def max_workers(self) -> int:
        """Workers for which the nodes, idle, have room."""
        return slots(_staying(self.labels).values(), self.cpus, self.gpus)

    def free_workers(self) -> int:
        """Workers for which there is room now."""
        return slots(_free_nodes(self.labels), self.cpus, self.gpus)


def slots(nodes: Iterable[Mapping[str, float]], cpus: float, gpus: float) -> int:
    """Workers with so many CPUs and GPUs each that fit at the same time, none of them across nodes."""
    wanted = {"CPU": cpus, "GPU": gpus}
    return sum(
        min(int(node.get(name, 0) / amount + 1e-9) for name, amount in wanted.items() if amount) for node in nodes
    )


def require(workers: int, share: WorkerResources, *, wait_s: float = 0.0) -> None:
    """Checks that the nodes of the cluster, idle, have room for all workers.

    Args:
        workers: wanted at the same time.
        share: of each.
        wait_s: how long a cluster may take to grow to that size.

    Raises:
        ClusterTooSmallError: if it has not, after `wait_s`.
    """
    if not _grows(lambda: share.max_workers() >= workers, workers, share, wait_s):
        raise too_small(workers, share, share.max_workers(), wait_s, cluster_size(share.labels))


def wait_for_capacity(
    least: int,
    most: int,
    share: WorkerResources,
    *,
    wait_s: float = 0.0,
    queues: bool = True,
    pause: Callable[[float], None] = time.sleep,
) -> int:
    """How many workers start now: as many as there is room for, after a while if need be.

    Args:
        least: workers; with fewer nothing starts.
        most: workers.
        share: of each.
        wait_s: how long a cluster that has not the nodes, or has them no more, may take to get them.
        queues: whether to wait, for as long as it takes, until others leave the nodes that there are.
        pause: called with the seconds until the next look; what it raises ends the waiting.

    Raises:
        ClusterTooSmallError: if not even `least` have room.
    """
    start = short_since = time.monotonic()
    told = False
    with _requests(share) as request:
        while True:
            there, free, now = share.max_workers(), share.free_workers(), time.monotonic()
            waited, short_since = now - start, short_since if there < least else now
            if free >= max(least, min(most, there)) or (free >= least and waited >= _PATIENCE_S):
                return min(most, free)
            if there < least:
                if now - short_since >= wait_s:
                    raise too_small(least, share, there, wait_s, cluster_size(share.labels))
            elif not queues and waited >= _PATIENCE_S:
                raise ClusterTooSmallError(_taken(least, share, free))
            elif queues and not told and free < least and waited >= _SAY_AFTER_S:
                logger.info(f"{_taken(least, share, free)}: waiting for them")
                told = True
            request(there - free + least)
            pause(_POLL_S)


@contextmanager
def watch_free_capacity(
    tell: Callable[[], object], wanted: int, share: WorkerResources, *, every_s: float
) -> Iterator[None]:
    """While the body runs, looks whether another worker has room, and asks a cluster that grows by itself for it.

    Args:
        tell: called when there is room, after each look.
        wanted: workers, beside those that there are.
        share: of each.
        every_s: how often to look.
    """
    over = threading.Event()

    def look() -> None:
        is_over, tell_s = over.wait(every_s), 0.0
        with _requests(share) as request:
            while not is_over:
                # Where the cluster is lost for good the run itself will tell; its head may only start again.
                with suppress(RayError, RuntimeError, OSError):
                    there, free = share.max_workers(), share.free_workers()
                    request(there - free + wanted)
                    if time.monotonic() >= tell_s:
                        tell_s = time.monotonic() + every_s
                        if free:
                            tell()
                is_over = over.wait(min(every_s, _ASK_EVERY_S))

    looker = threading.Thread(target=look, name="waver-room", daemon=True)
    looker.start()
    try:
        yield
    finally:
        over.set()
        looker.join()


def num_cpus(labels: Labels, *, wait_s: float = 0.0) -> int:
    """CPUs of all nodes with these labels, at least 1.

    Raises:
        ClusterTooSmallError: if they have none after `wait_s`.
    """

    def cpus() -> int:
        return sum(int(node.get("CPU", 0)) for node in _staying(labels).values())

    if not _grows(lambda: cpus() > 0, 1, WorkerResources(1.0, labels=labels), wait_s):
        waited = f" after {wait_s:g} s" if wait_s else ""
        mend = "add such nodes or correct ingest.node_labels" if labels else "add nodes"
        raise ClusterTooSmallError(
            f"the cluster has no CPU for this work{waited} ({cluster_size(labels)}): {mend} (and raise resources.wait_s "
            "where the cluster grows by itself)"
        )
    return cpus()


def too_small(workers: int, share: WorkerResources, room: int, wait_s: float, size: str) -> ClusterTooSmallError:
    """What to say of a cluster that has room for fewer workers."""
    waited = f" after {wait_s:g} s" if wait_s else ""
    return ClusterTooSmallError(
        f"{workers} workers with {share} each are asked for, and the cluster has room for {room}{waited} "
        f"({size}): lower resources.workers or what each takes (resources.cpus_per_worker, gpus_per_worker, "
        "loaders_per_worker), or add nodes (and raise resources.wait_s where the cluster grows by itself)"
    )


def _taken(workers: int, share: WorkerResources, free: int) -> str:
    return f"others use the cluster: of {workers} workers with {share} each, {free} have room now"


def _grows(is_enough: Callable[[], bool], workers: int, share: WorkerResources, wait_s: float) -> bool:
    """Whether a cluster is large enough, or becomes so in time; one that grows by itself is asked for room for workers."""
    deadline = time.monotonic() + wait_s
    with _requests(share) as request:
        while not (enough := is_enough()) and time.monotonic() < deadline:
            request(workers)
            time.sleep(_POLL_S)
    return enough


@contextmanager
def _requests(share: WorkerResources) -> Iterator[Callable[[int], None]]:
    """Yields a function that asks a cluster which grows by itself for nodes for so many workers, used or not; ask often."""
    asked = False

    def request(workers: int) -> None:
        nonlocal asked
        asked = True
        selectors = [dict(share.labels)] * workers if share.labels else None
        request_resources(bundles=[share.bundle] * workers, bundle_label_selectors=selectors)

    try:
        yield request
    finally:
        # It would outlive this process, and keep nodes that nobody uses. Those that came stay until they are idle for long.
        if asked:
            with suppress(RayError, RuntimeError, OSError):  # the cluster is lost, and the request with it
                request_resources(bundles=[])


def _staying(labels: Labels) -> dict[str, dict[str, float]]:
    """Resources of each node with these labels, by its id, but for those that are drained, as before they are taken away.

    They are alive and may be idle, and nothing is placed there.
    """
    leaving = draining_node_ids()
    return {node: has for node, has in nodes_by_id(labels).items() if node not in leaving}


def _free_nodes(labels: Labels) -> list[dict[str, float]]:
    """What nobody uses of each node that is alive and has these labels. Ray's public functions tell only the sum."""
    free = free_resources_by_node()
    return [free.get(node, {}) for node in _staying(labels)]


CPUS_PER_LOADER = 0.5
"""What a loader is counted as: it waits for the disk more than it works. Its worker brings room for it."""


_SHARES_OF_A_CPU = 4
"""So many may share a CPU of this machine; more would be slower than fewer."""


def local_cpus(config: ExperimentConfig) -> int:
    """CPUs that a cluster of this machine alone is given. They are a count, not a reservation: workers may share one."""
    resources = config.resources
    wanted = resources.max_workers * (resources.cpus_per_worker + resources.loaders_per_worker * CPUS_PER_LOADER)
    cpus = os.cpu_count() or 1
    return min(max(cpus, int(-(-wanted // 1))), _SHARES_OF_A_CPU * cpus)
