"""exchange."""

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from ray.train.torch import get_device

from waver.config import ExperimentConfig
from waver.doctor.findings import Finding, size
from waver.on_ray.cluster.capacity import ClusterTooSmallError
from waver.on_ray.cluster.failures import WorkerError
from waver.on_ray.cluster.signals import signal_actor
from waver.on_ray.cluster.workers import run_on_workers
from waver.tools.errors import WaverError

_EXCHANGE_S = 60


_MEASURED = 20


_MEASURING_S = 20.0


class ExchangeError(WaverError):
    """An all-reduce over the workers gave a wrong sum."""


def check_exchange(config: ExperimentConfig, *, gradient_bytes: int) -> Iterator[Finding]:
    """An all-reduce between as many workers as the experiment asks for, with the back end that training would take."""
    limited = {"timeout_s": _EXCHANGE_S, "max_failures": 0, "wait_s": 0.0}
    resources = config.resources.model_copy(update=limited)
    try:
        with signal_actor() as actor:
            measured = run_on_workers(_exchange, gradient_bytes, resources, signals=actor, queues=False)
    except ClusterTooSmallError as error:
        yield Finding("info", "all-reduce", f"not tried: {error}")
        return
    except WorkerError as error:
        remedy = (
            f"where it is a timeout (after {_EXCHANGE_S} s), workers do not reach each other: set NCCL_SOCKET_IFNAME and "
            "GLOO_SOCKET_IFNAME to the network between the nodes, on every node, and NCCL_DEBUG=INFO to see what they try"
        )
        yield Finding("error", "all-reduce", str(error), remedy)
        return
    if measured is None:
        yield Finding("ok", "all-reduce", "a single worker exchanges nothing")
        return
    times = "; ".join(f"{size(num_bytes)} in {1000 * seconds:.1f} ms" for num_bytes, seconds in measured["times"])
    where = f"{measured['workers']} workers, {measured['backend']} on {measured['device']}"
    yield Finding("ok", "all-reduce", f"{where}: the sum is right; {times} (median)", details=measured)


def _exchange(gradient_bytes: int) -> dict[str, Any] | None:
    """Runs on every worker: adds up, checks the sum, measures."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return None
    rank, workers, device = dist.get_rank(), dist.get_world_size(), get_device()
    known = torch.arange(1000, device=device, dtype=torch.float32) * (rank + 1)
    dist.all_reduce(known)
    expected = torch.arange(1000, device=device, dtype=torch.float32) * (workers * (workers + 1) // 2)
    if not torch.equal(known, expected):
        raise ExchangeError(
            f"the all-reduce of worker {rank} is wrong: {int((known != expected).sum())} of 1000 sums differ"
        )
    times = []
    for num_bytes in (2**20, gradient_bytes):
        tensor = torch.ones(max(1, num_bytes // 4), device=device)
        seconds: list[float] = []
        deadline = time.monotonic() + _MEASURING_S
        more = torch.ones(1, device=device)
        while more.item():
            start = time.perf_counter()
            dist.all_reduce(tensor)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
            # All stop at the same count.
            more.fill_(len(seconds) < _MEASURED and time.monotonic() < deadline)
            dist.all_reduce(more, op=dist.ReduceOp.MIN)
        times.append((num_bytes, statistics.median(seconds)))
    return {"workers": workers, "backend": dist.get_backend(), "device": str(device), "times": times}
