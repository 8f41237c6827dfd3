"""Running a function on the workers of a process group, with Ray Train."""

import logging
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.exceptions import RayActorError
from ray.train import FailureConfig, PreemptionError, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from waver.config import ResourcesConfig
from waver.on_ray.cluster.capacity import ClusterTooSmallError, WorkerResources, wait_for_capacity, watch_free_capacity
from waver.on_ray.cluster.connection import gpus_per_worker
from waver.on_ray.cluster.failures import WorkerError, _cause, _met, _told_of_cluster, final_error, permanent_message
from waver.on_ray.cluster.loopback import torch_config
from waver.on_ray.cluster.ray_internals import worker_group_startup_error, worker_group_timeout_error
from waver.on_ray.cluster.signals import Terminated
from waver.tools.environment import environment_variables
from waver.training.parallel import InStepError, lasting_group

logger = logging.getLogger(__name__)


_NO_ROOM = (
    "there was no room for the workers any more, however long it was waited for: a node is lost or taken by others. Run the "
    "same command again when it is back, which goes on after the last checkpoint; or let resources.workers be a range that "
    "begins with fewer, such as {min: 1, max: 2}, with which training goes on with those that are left"
)
_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
_START_TIMEOUT_S = 20.0
"""How long Ray Train tries to place workers where there seemed to be room; it says nothing and hears nothing meanwhile."""
_COMES_BACK_S = 60.0
"""A lost node is waited for so long at least."""
_UNUSABLE_S = 600.0
"""Room in which a group could not be placed, though nobody took it, is not tried again for so long."""


@dataclass(frozen=True)
class Rescale:
    """What a function returns that was asked to let more workers take part: call it again, it will go on."""


@dataclass(frozen=True)
class _Task:
    function: Callable[[Any], Any]
    argument: Any
    signals: Any
    """Where a worker leaves an error that would come again, for those that Ray starts in its place."""


@dataclass(frozen=True)
class _Failure:
    """Of a group, told in a sentence."""

    message: str
    error: Exception | None = None


class _Lost(_Failure):
    """Its workers, which may go better with the next."""


class _NotPlaced(_Lost):
    """The nodes that seemed to have room had none after all."""


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

    Workers that are lost are replaced, `resources.max_failures` times, and as often again where a group is lost while it
    starts, and the function starts again on all of them. With a range of workers the group shrinks where no room is left,
    and grows where there is more. Room that others took is waited for without limit. A ValueError of waver is the user's to
    mend and is not tried again.

    Ray Train keeps nothing: what the function makes, and with what it goes on, is its own business. Of a range, each group
    has a fixed number for Ray Train, and how many is decided here: its own elastic groups count nodes without their labels
    and what others use of them, and wait for ever where too few are left.

    Args:
        function: what the workers do.
        argument: is pickled.
        resources: of the experiment.
        signals: actor of the run, see `waver.on_ray.cluster.signals`.
        extra_cpus: taken beside each worker, on its node, by what it starts.
        callbacks: of Ray Train.
        rescales: whether the function listens to the actor for more room, and then returns `Rescale`.
        queues: whether to wait for as long as others use what there is.

    Returns:
        What the function returned on rank 0.

    Raises:
        ClusterTooSmallError: at once, or after resources.wait_s.
        WorkerError: with the cause in a sentence.
        RemoteTracebackError: with the traceback of a worker, if its error is a bug.
        Terminated: the run was asked to stop before its workers had room.
    """
    task, stop = _Task(function, argument, signals), signals.wait_for_stop.remote()
    least, most = resources.min_workers, resources.max_workers
    tries_left, begun, wait_s = resources.max_failures, False, resources.wait_s
    placeable, look_every_s = most, resources.resize_every_s

    def pause(seconds: float) -> None:
        if ray.wait([stop], timeout=seconds)[0]:
            ray.get(stop)  # an error, where the actor is lost
            raise Terminated("stopped, as asked, while it waited for room; run the same command again to go on")

    with _start_timeout() as patience_s, _told_of_cluster():
        # Once: a range that loses its nodes with GPUs does not go on without.
        share = WorkerResources(
            resources.cpus_per_worker + extra_cpus, gpus_per_worker(resources), resources.node_labels
        )
        while True:
            pause(0.0)
            try:
                workers = wait_for_capacity(least, placeable, share, wait_s=wait_s, queues=queues, pause=pause)
            except ClusterTooSmallError as error:
                if not begun:
                    raise
                raise WorkerError(f"{_NO_ROOM} ({error})") from error
            if resources.is_elastic:
                logger.info(f"{workers} of {least} to {most} workers begin")
            begun, wait_s = True, max(resources.wait_s, patience_s)
            ray.get(signals.begin.remote())
            with _growing(signals, most - workers if rescales else 0, share, look_every_s):
                result = _fit(task, workers, share, resources, callbacks)
            placeable, look_every_s = most, resources.resize_every_s
            match result:
                case Rescale():
                    pass
                case _NotPlaced() if share.free_workers() < workers:
                    pass  # another run was faster, or a node is lost: to be waited for, as at the start
                case _NotPlaced() if workers > least:
                    placeable, look_every_s = workers - 1, max(resources.resize_every_s, _UNUSABLE_S)
                case _Lost() if tries_left:
                    tries_left -= 1
                case _Failure():
                    raise final_error(result.message, result.error) from result.error
                case _:
                    return result


def _growing(signals: Any, wanted: int, share: WorkerResources, every_s: float) -> AbstractContextManager:
    """While the body runs, the workers hear of it when there is room for more of those that are wanted."""
    if not wanted:
        return nullcontext()
    return watch_free_capacity(signals.ask_to_rescale.remote, wanted, share, every_s=every_s)


def _fit(
    task: _Task, workers: int, share: WorkerResources, resources: ResourcesConfig, callbacks: Sequence[UserCallback]
) -> Any:
    """One `fit` of Ray Train: what the task returned on rank 0, or a _Failure."""
    # Ray Train wants a folder for checkpoints that it is handed; it is handed none.
    with tempfile.TemporaryDirectory(prefix="waver-", ignore_cleanup_errors=True) as scratch, _own_interrupt():
        trainer = TorchTrainer(
            _guarded,
            train_loop_config={"task": task},
            torch_config=torch_config(timeout_s=int(resources.timeout_s)),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=share.gpus > 0,
                label_selector=share.labels or None,
                resources_per_worker=share.bundle,
            ),
            run_config=RunConfig(
                name="run",
                storage_path=scratch,
                # A fixed number is best replaced by Ray Train itself, which has all at hand; of a range there may be fewer.
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
            if message := ray.get(task.signals.failure.remote()):
                return _Failure(message)  # in a sentence, not with the traceback of the worker
            if isinstance(error, PreemptionError):  # only of a range; it was announced, and is no failure
                return Rescale()
            if _met(error, worker_group_timeout_error()):
                return _NotPlaced(_NO_ROOM, error)
            # What is lost while a group is built or ended Ray Train does not replace; some of it it takes for its mistake.
            if resources.is_elastic or _met(error, worker_group_startup_error(), RayActorError):
                return _Lost(_cause(error), error)
            return _Failure(_cause(error), error)


@contextmanager
def _start_timeout() -> Iterator[float]:
    """Has Ray Train give up soon where it cannot place workers, unless its own variable says otherwise.

    Yields:
        Seconds that room is waited for after a loss.
    """
    if said := os.environ.get(_START_TIMEOUT):
        yield float(said)
        return
    with environment_variables({_START_TIMEOUT: str(_START_TIMEOUT_S)}):
        yield _COMES_BACK_S


@contextmanager
def _own_interrupt() -> Iterator[None]:
    """Makes Ctrl-C during `fit` a KeyboardInterrupt: Ray Train puts a handler of its own in place, which exits silently."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt(
            "stopped; what the last checkpoint holds is kept. Run the same command again to go on from there"
        ) from None
    finally:
        signal.signal(signal.SIGINT, handler)


def _guarded(config: dict) -> Any:
    task: _Task = config["task"]
    if message := ray.get(task.signals.failure.remote()):
        return _Failure(message)
    try:
        with lasting_group():
            return task.function(task.argument)
    except InStepError as error:
        return _Failure(str(error))
    except Exception as error:
        if message := permanent_message(error):
            ray.get(task.signals.fail.remote(message))
        raise
