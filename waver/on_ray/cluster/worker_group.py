"""One group of workers: a fit of Ray Train, from its start to its result or failure."""

import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.exceptions import RayActorError
from ray.train import FailureConfig, PreemptionError, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from waver.config import ResourcesConfig
from waver.on_ray.cluster.capacity import WorkerResources
from waver.on_ray.cluster.failures import describe_cause, is_controller_failure, permanent_message
from waver.on_ray.cluster.process_group import torch_config
from waver.on_ray.cluster.ray_internals import worker_group_startup_error, worker_group_timeout_error
from waver.tools.environment import environment_variables
from waver.training.parallel import CollectiveError, require_process_group

NO_CAPACITY = (
    "the cluster had no capacity for the workers any more, although waver waited: a node is lost, or others use its CPUs or "
    "GPUs. Run the same command again when there is capacity: it continues after the last checkpoint. Or make "
    "resources.workers elastic with a smaller minimum, such as {min: 1, max: 2}: training then continues with fewer workers"
)
_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_START_TIMEOUT_S = 20.0
"""How long Ray Train tries to place workers for which capacity seemed free; meanwhile it reacts to nothing else."""
_RECOVERY_S = 60.0
"""Minimum time to wait for a lost node."""


@dataclass(frozen=True)
class Rescale:
    """Returned by a function that was asked to rescale; the function continues when another group of workers calls it."""


@dataclass(frozen=True)
class Task:
    """A function to be called on each worker of a group."""

    function: Callable[[Any], Any]
    argument: Any
    signals: Any
    """Actor that keeps a permanent error for the workers that replace the failed ones."""


@dataclass(frozen=True)
class GroupFailure:
    """Failure of a group of workers: permanent, except for the subclasses."""

    message: str
    error: Exception | None = None
    """Raised by Ray Train; None if the message comes from a worker."""


class GroupLost(GroupFailure):
    """Workers of the group were lost; another group may succeed."""


class GroupNotPlaced(GroupLost):
    """Ray could not place the group, although its capacity seemed free."""


def run_group(
    task: Task, workers: int, worker: WorkerResources, resources: ResourcesConfig, callbacks: Sequence[UserCallback]
) -> Any:
    """Runs a task on one group of workers.

    Args:
        task: to run.
        workers: size of the group.
        worker: resources of each.
        resources: of the experiment.
        callbacks: of Ray Train.

    Returns:
        The return value of the task on rank 0, which may be `Rescale`; or a `GroupFailure`.
    """
    # Ray Train requires a folder for the checkpoints that workers report; these workers report none.
    with tempfile.TemporaryDirectory(prefix="waver-", ignore_cleanup_errors=True) as scratch, _interruptible():
        trainer = TorchTrainer(
            run_task,
            train_loop_config={"task": task},
            torch_config=torch_config(timeout_s=int(resources.timeout_s)),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=worker.gpus > 0,
                label_selector=worker.labels or None,
                resources_per_worker=worker.bundle,
            ),
            run_config=RunConfig(
                name="run",
                storage_path=scratch,
                # Ray Train itself replaces lost workers of a fixed group fastest. An elastic group may become smaller.
                failure_config=FailureConfig(
                    max_failures=0 if resources.is_elastic else resources.max_failures,
                    max_preemption_failures=0 if resources.is_elastic else -1,
                    controller_failure_limit=0,
                ),
                callbacks=list(callbacks),
            ),
        )
        try:
            return trainer.fit().return_value
        except ray.train.TrainingFailedError as error:
            return _classify(error, task, is_elastic=resources.is_elastic)


def _classify(error: Exception, task: Task, *, is_elastic: bool) -> GroupFailure | Rescale:
    """Returns the kind of failure for which Ray Train gave up."""
    if message := ray.get(task.signals.failure.remote()):
        return GroupFailure(message)  # without the traceback of the worker
    if isinstance(error, PreemptionError):  # only in an elastic group; announced, so no failure
        return Rescale()
    if is_controller_failure(error, worker_group_timeout_error()):
        return GroupNotPlaced(NO_CAPACITY, error)
    # Ray Train does not replace workers that are lost while a group starts or ends, and reports some as its own failure.
    if is_elastic or is_controller_failure(error, worker_group_startup_error(), RayActorError):
        return GroupLost(describe_cause(error), error)
    return GroupFailure(describe_cause(error), error)


def run_task(config: dict) -> Any:
    """Runs on each worker: calls the task's function, and keeps a permanent error for the workers that replace it.

    Args:
        config: `{"task": Task}`.
    """
    task: Task = config["task"]
    if message := ray.get(task.signals.failure.remote()):
        return GroupFailure(message)
    try:
        with require_process_group():
            return task.function(task.argument)
    except CollectiveError as error:
        return GroupFailure(str(error))
    except Exception as error:
        if message := permanent_message(error):
            ray.get(task.signals.keep_failure.remote(message))
        raise


@contextmanager
def start_timeout() -> Iterator[float]:
    """Makes Ray Train give up soon if it cannot place workers, unless the user has set its timeout variable.

    Yields:
        Seconds to wait for capacity after a loss.
    """
    if seconds := os.environ.get(_START_TIMEOUT):
        yield float(seconds)
        return
    with environment_variables({_START_TIMEOUT: str(_START_TIMEOUT_S)}):
        yield _RECOVERY_S


@contextmanager
def _interruptible() -> Iterator[None]:
    """Makes Ctrl-C during `fit` a KeyboardInterrupt: Ray Train installs a handler that exits without a message."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt(
            "stopped; the last checkpoint is kept. Run the same command again to continue from it"
        ) from None
    finally:
        signal.signal(signal.SIGINT, handler)
