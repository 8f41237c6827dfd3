"""Running a function on the workers of a process group, with Ray Train."""

import contextlib
import errno
import json
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
import torch
from ray.exceptions import RayError
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchTrainer

from waver.config import ResourcesConfig
from waver.on_ray.cluster import gpus_per_worker, require
from waver.on_ray.loopback import torch_config
from waver.parallel import InStepError


class WorkerError(ValueError):
    """The workers cannot do what was asked; the message says why, without inner traceback."""


_DISK_FULL = (
    "no space is left on the disk (of the run's folder, or of the folder for temporary files): make room and run the same "
    "command again, which goes on after the last checkpoint"
)


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
    _set_damaged_notes_aside(storage / name)
    task = _Task(function, argument, storage / f".failure-{uuid.uuid4().hex}")
    trainer = TorchTrainer(
        _guarded,
        train_loop_config={"task": task},
        torch_config=torch_config(timeout_s=int(resources.timeout_s)),
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
    except RayError as error:
        raise WorkerError(f"Ray could not run the workers: {_cause(error)}") from error
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
        # Empty where the disk was too full for it.
        return _Failure(task.failure.read_text(encoding="utf-8") or _DISK_FULL)
    try:
        return task.function(task.argument)
    except InStepError as error:
        return _Failure(str(error))
    except Exception as error:
        if message := to_stay(error):
            with contextlib.suppress(OSError):  # the first error is the one to report
                task.failure.write_text(message, encoding="utf-8")
        raise


def to_stay(error: Exception) -> str | None:
    """What to tell of an error that would come again in another worker; None for one that is worth another try."""
    if isinstance(error, torch.OutOfMemoryError):
        text = next(iter(str(error).splitlines()), "")
        return f"the memory of a GPU is too small ({text}): lower train.global_batch_size, or take more workers"
    if _is_full_disk(error):
        return _DISK_FULL
    return str(error) if isinstance(error, ValueError) else None


def _is_full_disk(error: Exception) -> bool:
    """Of the system's errors the one that stays; safetensors and torch tell it in words only."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)


def _set_damaged_notes_aside(run: Path) -> None:
    """Ray's notes on a run's checkpoints may have been cut short by a full disk; it would then refuse to start."""
    notes = run / "checkpoint_manager_snapshot.json"
    try:
        json.loads(notes.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except ValueError:
        notes.replace(notes.with_suffix(".damaged"))


def _cause(error: Exception) -> str:
    """The innermost reason of a failed run, in a line or two."""
    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", error)}
    rank, cause = next(iter(failures.items()))
    while inner := getattr(cause, "cause", None) or cause.__cause__:
        cause = inner
    text = str(cause).strip().splitlines() or [""]
    return f"worker {rank} failed with {type(cause).__name__}: {text[-1]}"
