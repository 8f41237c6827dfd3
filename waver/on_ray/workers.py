"""Running a function on the workers of a process group, with Ray Train."""

import errno
import signal
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from waver.config import ResourcesConfig
from waver.on_ray.cluster import gpus_per_worker, require
from waver.parallel import InStepError


class WorkerError(ValueError):
    """The workers cannot do what was asked; the message says why, without inner traceback."""


@dataclass(frozen=True)
class _Task:
    function: Callable[[Any], Any]
    argument: Any
    failure: Path
    """Where a worker writes an error that would come again, for those that Ray starts in its place."""


@dataclass(frozen=True)
class _Failure:
    message: str


def run_on_workers(
    function: Callable[[Any], Any],
    argument: Any,
    resources: ResourcesConfig,
    *,
    name: str,
    storage: Path,
    extra_cpus: float = 0.0,
    selection_metric: str | None = None,
    callbacks: Sequence[UserCallback] = (),
) -> Any:
    """Calls `function(argument)` on every worker of a new process group (NCCL on GPUs, gloo on CPUs).

    Workers that are lost are replaced, `resources.max_failures` times; the function starts again and finds the last
    checkpoint with `ray.train.get_checkpoint()`. A ValueError is the user's to mend and is not tried again.

    Args:
        function: may report checkpoints.
        argument: is pickled.
        resources: of the experiment.
        name: of the run; an earlier run of this name is continued.
        storage: folder in which Ray keeps a folder of that name.
        extra_cpus: taken beside each worker by what it starts.
        selection_metric: the checkpoint where this is highest is kept beside the last one.
        callbacks: of Ray Train.

    Returns:
        What the function returned on rank 0.

    Raises:
        ClusterTooSmall: at once, or after resources.wait_s.
        WorkerError: with the cause in a sentence.
    """
    gpus = gpus_per_worker(resources)
    require(
        resources.workers,
        cpus_per_worker=resources.cpus_per_worker + extra_cpus,
        gpus_per_worker=gpus,
        wait_s=resources.wait_s,
    )
    storage.mkdir(parents=True, exist_ok=True)
    task = _Task(function, argument, storage / f".failure-{uuid.uuid4().hex}")
    trainer = TorchTrainer(
        _guarded,
        train_loop_config={"task": task},
        torch_config=TorchConfig(timeout_s=int(resources.timeout_s)),
        scaling_config=ScalingConfig(
            num_workers=resources.workers,
            use_gpu=gpus > 0,
            resources_per_worker={"CPU": resources.cpus_per_worker} | ({"GPU": gpus} if gpus else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=str(storage),
            failure_config=FailureConfig(
                max_failures=resources.max_failures, controller_failure_limit=resources.max_failures
            ),
            checkpoint_config=CheckpointConfig(
                num_to_keep=1, checkpoint_score_attribute=selection_metric, checkpoint_score_order="max"
            ),
            callbacks=list(callbacks),
        ),
    )
    try:
        with _own_interrupt():
            result = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        raise WorkerError(_cause(error)) from error
    finally:
        task.failure.unlink(missing_ok=True)
    if isinstance(result, _Failure):
        raise WorkerError(result.message)
    return result


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
    if task.failure.exists():
        return _Failure(task.failure.read_text(encoding="utf-8"))
    try:
        return task.function(task.argument)
    except InStepError as error:
        return _Failure(str(error))
    except (ValueError, OSError) as error:
        # Of the system's errors only a full disk is there to stay.
        if isinstance(error, ValueError) or error.errno in (errno.ENOSPC, errno.EDQUOT):
            task.failure.write_text(str(error), encoding="utf-8")
        raise


def _cause(error: ray.train.TrainingFailedError) -> str:
    """The innermost reason of a failed run, in a line or two."""
    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", error)}
    rank, cause = next(iter(failures.items()))
    while inner := getattr(cause, "cause", None) or cause.__cause__:
        cause = inner
    text = str(cause).strip().splitlines() or [""]
    return f"worker {rank} failed with {type(cause).__name__}: {text[-1]}"
