"""Checks and times an all-reduce between the workers of an experiment, as in training."""

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from ray.train.torch import get_device

from waver.config import ExperimentConfig
from waver.doctor.findings import Finding, format_bytes
from waver.on_ray.cluster.capacity import ClusterTooSmallError
from waver.on_ray.cluster.failures import WorkerError
from waver.on_ray.cluster.signals import signal_actor
from waver.on_ray.cluster.workers import run_on_workers
from waver.tools.errors import WaverError

_TIMEOUT_S = 60
_MAX_REPETITIONS = 20
_MAX_MEASURING_S = 20.0


class AllReduceError(WaverError):
    """An all-reduce between the workers returned a wrong sum."""


def check_all_reduce(config: ExperimentConfig, *, gradient_bytes: int) -> Iterator[Finding]:
    """Runs an all-reduce between the workers of the experiment, with the backend of training.

    Args:
        config: configuration of the experiment.
        gradient_bytes: size of the gradient, whose all-reduce is timed.
    """
    limits = {"timeout_s": _TIMEOUT_S, "max_failures": 0, "wait_s": 0.0}
    resources = config.resources.model_copy(update=limits)
    try:
        with signal_actor() as actor:
            measured = run_on_workers(_measure_all_reduce, gradient_bytes, resources, signals=actor, queues=False)
    except ClusterTooSmallError as error:
        yield Finding("info", "all-reduce", f"not tried: {error}")
        return
    except WorkerError as error:
        remedy = (
            f"after a timeout ({_TIMEOUT_S} s), workers do not reach each other: on every node set NCCL_SOCKET_IFNAME and "
            "GLOO_SOCKET_IFNAME to the interface between the nodes, and NCCL_DEBUG=INFO to log the connections"
        )
        yield Finding("error", "all-reduce", str(error), remedy)
        return
    if measured is None:
        yield Finding("ok", "all-reduce", "a single worker needs none")
        return
    times = "; ".join(
        f"{format_bytes(num_bytes)} in {1000 * seconds:.1f} ms" for num_bytes, seconds in measured["times"]
    )
    where = f"{measured['workers']} workers, {measured['backend']} on {measured['device']}"
    yield Finding("ok", "all-reduce", f"{where}: the sum is right; {times} (median)", details=measured)


def _measure_all_reduce(gradient_bytes: int) -> dict[str, Any] | None:
    """Runs on every worker; checks the sum of an all-reduce, and times all-reduces of 1 MiB and of the gradient.

    Returns:
        Number of workers, backend, device, and as `times` pairs of bytes and median seconds; None for a single worker.

    Raises:
        AllReduceError: if the sum is wrong.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    rank, workers, device = dist.get_rank(), dist.get_world_size(), get_device()
    values = torch.arange(1000, device=device, dtype=torch.float32) * (rank + 1)
    dist.all_reduce(values)
    expected = torch.arange(1000, device=device, dtype=torch.float32) * (workers * (workers + 1) // 2)
    if not torch.equal(values, expected):
        raise AllReduceError(
            f"the all-reduce of worker {rank} is wrong: {int((values != expected).sum())} of 1000 sums differ"
        )
    times = []
    for num_bytes in (2**20, gradient_bytes):
        tensor = torch.ones(max(1, num_bytes // 4), device=device)
        seconds: list[float] = []
        deadline = time.monotonic() + _MAX_MEASURING_S
        repeat = torch.ones(1, device=device)
        while repeat.item():
            start = time.perf_counter()
            dist.all_reduce(tensor)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
            # All workers must stop after the same repetition.
            repeat.fill_(len(seconds) < _MAX_REPETITIONS and time.monotonic() < deadline)
            dist.all_reduce(repeat, op=dist.ReduceOp.MIN)
        times.append((num_bytes, statistics.median(seconds)))
    return {"workers": workers, "backend": dist.get_backend(), "device": str(device), "times": times}
