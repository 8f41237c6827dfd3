"""Collectives of the workers of a process group. Outside a process group there is one worker, and they do nothing.

Training is exact for any number of workers:

- `shard` splits the rows of a global batch into contiguous shares whose sizes differ by at most one.
- `all_gather` returns all rows in global order to every worker, and sends gradients back to the worker that owns a row.
- The loss of each worker covers its own rows only, so the sum over workers is the loss of the global batch.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import record_function

from waver.tools.errors import WaverError
from waver.training.profiling import ALL_GATHER, ALL_REDUCE


class CollectiveError(WaverError):
    """An error that all workers raise at the same step, so that they stop together and none waits in a collective."""


class ProcessGroupEndedError(RuntimeError):
    """The process group was destroyed while a worker computed, as happens when workers are restarted after a loss."""


_requires_group = False


@contextmanager
def require_process_group() -> Generator[None, None, None]:
    """Makes every collective in the body raise ProcessGroupEndedError once the process group has been destroyed.

    A restart of the workers destroys their group while they still compute. Without this error a worker would continue as the
    only one, with sums over its own share, and might save them. Outside a process group this does nothing.
    """
    global _requires_group
    before, _requires_group = _requires_group, dist.is_initialized()
    try:
        yield
    finally:
        _requires_group = before


def world_size() -> int:
    """Returns the number of workers."""
    return dist.get_world_size() if _in_group() else 1


def rank() -> int:
    """Returns the number of this worker, from 0."""
    return dist.get_rank() if _in_group() else 0


def _in_group() -> bool:
    in_group = dist.is_initialized()
    if _requires_group and not in_group:
        raise ProcessGroupEndedError("the process group ended while its workers computed")
    return in_group


def shard(num_rows: int, rank: int, world_size: int) -> slice:
    """Returns the rows of `num_rows` that belong to a worker: contiguous; sizes differ by at most one."""
    size, extra = divmod(num_rows, world_size)
    start = rank * size + min(rank, extra)
    return slice(start, start + size + (rank < extra))


def all_gather(rows: Tensor, num_rows: int) -> Tensor:
    """Gathers the rows of all workers, in global order; differentiable.

    Args:
        rows: (m, ...) this worker's `shard` of num_rows rows.
        num_rows: number of rows of all workers together.

    Returns:
        (num_rows, ...). The gradient of `rows` is the sum of the gradients of all workers' losses.
    """
    if world_size() == 1:
        return rows
    return _AllGather.apply(rows, num_rows)


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, num_rows: int) -> Tensor:
        ctx.num_rows = num_rows
        sizes = [(part := shard(num_rows, r, world_size())).stop - part.start for r in range(world_size())]
        assert len(rows) == sizes[rank()], f"worker {rank()} holds {len(rows)} of {num_rows} rows, not {sizes[rank()]}"
        # Collectives need equal sizes: shards differ by one row at most, so the smaller ones get a row of padding.
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in sizes]
        with record_function(ALL_GATHER):
            dist.all_gather(gathered, padded.contiguous())
        return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        gradient = grad_outputs[0].contiguous()
        with record_function(ALL_REDUCE):
            dist.all_reduce(gradient)
        return gradient[shard(ctx.num_rows, rank(), world_size())], None


def all_reduce(value: Tensor, operation: Literal["sum", "max"]) -> Tensor:
    """Returns the sum or maximum over workers, the same on all of them; not differentiable."""
    value = value.detach().clone()
    if world_size() > 1:
        with record_function(ALL_REDUCE):
            dist.all_reduce(value, {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[operation])
    return value


def broadcast_object(value: Any) -> Any:
    """Returns the first worker's value on every worker; it must be picklable."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def gather_objects(value: Any) -> list[Any]:
    """Returns the values of all workers, in the order of ranks, on every worker; they must be small and picklable."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
