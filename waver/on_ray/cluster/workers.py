"""Running a function on the workers of a process group, with replacement of lost workers and elastic size."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import ray
from ray.train import UserCallback

from waver.config import ResourcesConfig
from waver.on_ray.cluster.capacity import ClusterTooSmallError, WorkerResources, wait_for_capacity, watch_free_capacity
from waver.on_ray.cluster.connection import gpus_per_worker
from waver.on_ray.cluster.failures import WorkerError, explain_ray_errors, final_error
from waver.on_ray.cluster.worker_group import (
    NO_CAPACITY,
    GroupFailure,
    GroupLost,
    GroupNotPlaced,
    Rescale,
    Task,
    run_group,
    start_timeout,
)
from waver.tools.termination import Terminated

logger = logging.getLogger(__name__)

_UNUSABLE_S = 600.0
"""How long not to rescale after Ray could not place a group although its capacity stayed free."""


def run_on_workers(
    function: Callable[[Any], Any],
    argument: Any,
    resources: ResourcesConfig,
    *,
    signals: Any,
    extra_cpus: float = 0.0,
    callbacks: Sequence[UserCallback] = (),
    rescales: bool = False,
    queues: bool = True,
) -> Any:
    """Calls `function(argument)` on every worker of a new process group (NCCL on GPUs, gloo on CPUs).

    Lost workers are replaced up to `resources.max_failures` times, and as often again if a group is lost while it starts;
    each time the function is called anew on all workers. An elastic group shrinks if the cluster has too little capacity,
    and grows when it has more. Permanent errors (`WaverError`, a full disk) are not retried.

    Ray Train keeps no state: the function itself writes what it needs to continue. Each group of an elastic run has a fixed
    size for Ray Train, chosen here: Ray Train's own elastic groups ignore node labels and the resources that others use, and
    wait without limit if too few nodes are left.

    Args:
        function: called on each worker.
        argument: of the function, pickled.
        resources: of the experiment.
        signals: actor of the run, see `waver.on_ray.cluster.signals`.
        extra_cpus: reserved for each worker on its node, for processes that it starts.
        callbacks: of Ray Train.
        rescales: whether the function waits for the actor's requests to rescale, and then returns `Rescale`.
        queues: whether to wait without limit while others use the capacity.

    Returns:
        The return value of the function on rank 0.

    Raises:
        ClusterTooSmallError: if the cluster is too small at the start, and still is after resources.wait_s.
        WorkerError: with the cause in a sentence, if the workers fail for good.
        RemoteTracebackError: with the traceback of a worker, if its error is a bug.
        Terminated: if the run is asked to stop while it waits for capacity.
    """
    task = Task(function, argument, signals)
    with start_timeout() as recovery_s, explain_ray_errors():
        # Determined once: an elastic run that loses its nodes with GPUs does not continue on CPUs.
        worker = WorkerResources(
            resources.cpus_per_worker + extra_cpus, gpus_per_worker(resources), resources.node_labels
        )
        supervisor = _Supervisor(task, resources, worker, recovery_s=recovery_s, rescales=rescales, queues=queues)
        return supervisor.run(callbacks)


class _Supervisor:
    """Runs groups of workers, one after the other, until one returns a result or fails for good.

    Args:
        task: to run.
        resources: of the experiment.
        worker: resources of each worker.
        recovery_s: how long to wait for capacity after a loss, at least.
        rescales: whether the task can be asked to rescale.
        queues: whether to wait without limit while others use the capacity.
    """

    def __init__(
        self,
        task: Task,
        resources: ResourcesConfig,
        worker: WorkerResources,
        *,
        recovery_s: float,
        rescales: bool,
        queues: bool,
    ):
        self._task, self._resources, self._worker = task, resources, worker
        self._recovery_s, self._rescales, self._queues = recovery_s, rescales, queues
        self._stop = task.signals.wait_for_stop.remote()
        self._has_started = False
        self._failures_left = resources.max_failures
        self._next_size = resources.max_workers
        """Largest size of the next group."""
        self._rescale_every_s = resources.resize_every_s

    def run(self, callbacks: Sequence[UserCallback]) -> Any:
        """Returns the task's return value on rank 0; raises the final error if it fails for good."""
        while True:
            workers = self._wait_for_workers()
            if self._resources.is_elastic:
                logger.info(
                    f"starting {workers} workers (elastic: {self._resources.min_workers} to {self._resources.max_workers})"
                )
            self._has_started = True
            ray.get(self._task.signals.start_group.remote())
            with self._watch_capacity(workers):
                outcome = run_group(self._task, workers, self._worker, self._resources, callbacks)
            if self._runs_again(outcome, workers):
                continue
            if isinstance(outcome, GroupFailure):
                raise final_error(outcome.message, outcome.error) from outcome.error
            return outcome

    def _wait_for_workers(self) -> int:
        """Returns the size of the next group, as soon as there is capacity for it."""
        self._pause(0.0)
        wait_s = self._resources.wait_s
        if self._has_started:
            wait_s = max(wait_s, self._recovery_s)
        try:
            return wait_for_capacity(
                self._resources.min_workers,
                self._next_size,
                self._worker,
                wait_s=wait_s,
                queues=self._queues,
                pause=self._pause,
            )
        except ClusterTooSmallError as error:
            if not self._has_started:
                raise
            raise WorkerError(f"{NO_CAPACITY} ({error})") from error

    def _pause(self, seconds: float) -> None:
        """Sleeps; raises Terminated as soon as the run is asked to stop."""
        if ray.wait([self._stop], timeout=seconds)[0]:
            ray.get(self._stop)  # raises if the actor is lost
            raise Terminated(
                "stopped on request while waiting for free capacity; run the same command again to continue"
            )

    def _watch_capacity(self, workers: int) -> AbstractContextManager:
        """Asks the task, while the body runs, to rescale when there is capacity for more workers than it has."""
        additional = self._resources.max_workers - workers
        if not (self._rescales and additional):
            return nullcontext()
        ask_to_rescale = self._task.signals.ask_to_rescale.remote
        return watch_free_capacity(ask_to_rescale, additional, self._worker, every_s=self._rescale_every_s)

    def _runs_again(self, outcome: Any, workers: int) -> bool:
        """Returns whether another group must run after this outcome, and sets its largest size."""
        self._next_size, self._rescale_every_s = self._resources.max_workers, self._resources.resize_every_s
        match outcome:
            case Rescale():
                return True
            case GroupNotPlaced() if self._worker.free_workers() < workers:
                return True  # another run was faster, or a node is lost: wait as at the start
            case GroupNotPlaced() if workers > self._resources.min_workers:
                self._next_size = workers - 1
                self._rescale_every_s = max(self._resources.resize_every_s, _UNUSABLE_S)
                return True
            case GroupLost() if self._failures_left:
                self._failures_left -= 1
                return True
        return False
