"""What workers exchange. Outside a process group there is one worker and nothing is exchanged.

The exact distribution rests on three facts: `shard` deals the rows of a global batch to workers so that sizes differ by at
most one; `all_gather` brings all rows, in global order, to every worker and lets gradients flow back to where the rows came
from; and each worker's loss covers its own rows only, so that the sum over workers is the loss of the global batch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import record_function

from waver.tools.errors import WaverError
from waver.training.profiling import ALL_GATHER, ALL_REDUCE


class InStepError(WaverError):
    """An error that all workers meet in the same step: they can stop together, nobody waits for the others."""


class GroupEndedError(RuntimeError):
    """The process group was ended under a worker, as when others are lost and all are to start again."""


_lasts = False


@contextmanager
def lasting_group() -> Iterator[None]:
    """While the body runs, the end of the process group is an error.

    Whoever starts workers anew ends their group while they still compute; one that then took itself for alone would go on
    with the sums of a part, and might save what comes of them. Outside a process group this does nothing.
    """
    global _lasts
    before, _lasts = _lasts, dist.is_initialized()
    try:
        yield
    finally:
        _lasts = before


def world_size() -> int:
    """Number of workers."""
    return dist.get_world_size() if _in_group() else 1


def rank() -> int:
    """This worker's number, from 0."""
    return dist.get_rank() if _in_group() else 0


def _in_group() -> bool:
    there = dist.is_initialized()
    if _lasts and not there:
        raise GroupEndedError("the process group ended while its workers computed")
    return there


def shard(num_rows: int, rank: int, world_size: int) -> slice:
    """The rows of `num_rows` that belong to a worker: contiguous, sizes differ by at most one."""
    size, extra = divmod(num_rows, world_size)
    start = rank * size + min(rank, extra)
    return slice(start, start + size + (rank < extra))


def all_gather(rows: Tensor, num_rows: int) -> Tensor:
    """The rows of all workers, in global order; differentiable.

    Args:
        rows: (m, ...) this worker's `shard` of num_rows rows.
        num_rows: rows of all workers together.

    Returns:
        (num_rows, ...). The gradient of `rows` is the sum of what all workers' losses send back to them.
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
        # Collectives want equal sizes: shards are one row apart at most, so a row of padding evens them out.
        padded = rows.new_zeros(max(sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in sizes]
        with record_function(ALL_GATHER):
            dist.all_gather(gathered, padded.contiguous())
        return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        with record_function(ALL_REDUCE):
            dist.all_reduce(gradient)
        return gradient[shard(ctx.num_rows, rank(), world_size())], None


def all_reduce(value: Tensor, operation: Literal["sum", "max"]) -> Tensor:
    """Sum or maximum over workers, the same on all; not differentiable."""
    value = value.detach().clone()
    if world_size() > 1:
        with record_function(ALL_REDUCE):
            dist.all_reduce(value, {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}[operation])
    return value


def broadcast_object(value: Any) -> Any:
    """The first worker's value, on all."""
    values = [value]
    if world_size() > 1:
        dist.broadcast_object_list(values)
    return values[0]


def gather_objects(value: Any) -> list[Any]:
    """One small Python object of every worker, in the order of ranks."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
