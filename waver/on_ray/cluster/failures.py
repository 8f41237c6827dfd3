"""Errors of workers: which are permanent, and how their causes are shown to the user."""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from ray.exceptions import RayError

from waver.tools.errors import RemoteTracebackError, WaverError


class WorkerError(WaverError):
    """The workers failed for good; the message says why, without a traceback."""


_DISK_FULL = (
    "no space is left on the disk (of the run's folder, or of the folder for temporary files): free some space and "
    "run the same command again, which continues after the last checkpoint"
)

_LOST_PEER = re.compile(
    r"ProcessGroupEndedError|DistBackendError|DistNetworkError|gloo|NCCL|[Cc]onnection (closed|reset|refused)"
)
"""Matches the last line of a traceback if communication with another worker failed, mostly because that worker was lost."""


@contextmanager
def explain_ray_errors() -> Iterator[None]:
    """Turns an error of Ray in the body into a WorkerError."""
    try:
        yield
    except RayError as error:
        raise WorkerError(f"Ray could not run the workers: {describe_cause(error)}") from error


def permanent_message(error: Exception) -> str | None:
    """Returns the message for the user if the error is permanent, else None.

    A permanent error would recur in a replacement worker. All other errors, bugs among them, are worth another attempt.
    """
    if isinstance(error, torch.OutOfMemoryError):
        text = next(iter(str(error).splitlines()), "")
        return f"the memory of a GPU is too small ({text}): lower train.global_batch_size, or use more workers"
    if _is_full_disk(error):
        return _DISK_FULL
    return str(error) if isinstance(error, WaverError) and not isinstance(error, OSError) else None


def _is_full_disk(error: Exception) -> bool:
    """Returns whether an error means a full disk: a permanent OSError, or an error of a library with such a text."""
    words = ("No space left on device", "file write failed", "unexpected pos")  # the last two are torch's
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or any(part in str(error) for part in words)


def is_controller_failure(error: Exception, *kinds: type[Exception]) -> bool:
    """Returns whether Ray Train's controller, rather than a worker, failed with an error of one of these types."""
    failure = getattr(error, "controller_failure", None)
    return failure is not None and isinstance(_innermost(failure), kinds)


def _innermost(error: BaseException) -> BaseException:
    """Returns the first error in the chain of causes."""
    while inner := getattr(error, "cause", None) or error.__cause__:
        error = inner
    return error


def describe_cause(error: Exception) -> str:
    """Returns the innermost cause of a failed run: the worker, the type of the error and the last line of its message."""
    failures = getattr(error, "worker_failures", None) or {0: getattr(error, "controller_failure", error)}
    rank, failure = next(iter(failures.items()))
    cause = _innermost(failure)
    text = str(cause).strip().splitlines() or [""]
    return f"worker {rank} failed with {type(cause).__name__}: {text[-1]}"


def final_error(message: str, error: Exception | None) -> Exception:
    """Returns the exception that ends a run: the traceback of a bug in a worker, or a `WorkerError` for all other causes.

    Args:
        message: of the `WorkerError`.
        error: raised by Ray Train; None if the message comes from a worker.
    """
    failures = getattr(error, "worker_failures", None) or {}
    if any(map(_is_bug, failures.values())):
        return RemoteTracebackError(str(error))
    return WorkerError(message)


def _is_bug(failure: Exception) -> bool:
    """Returns whether the function itself failed, not Ray, the operating system or the exchange with a lost worker."""
    from_outside = isinstance(failure, OSError) or type(failure).__module__.partition(".")[0] == "ray"
    return not from_outside and not _LOST_PEER.search(f"{type(failure).__name__}: {failure}")
