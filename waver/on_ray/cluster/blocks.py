"""Processing blocks of rows by a pool of actors of Ray Data, with errors that a user can read."""

import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray.data
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError, RayTaskError

from waver.config import ResourcesConfig
from waver.on_ray.cluster.capacity import WorkerResources, require_capacity, wait_for_capacity
from waver.on_ray.cluster.connection import gpus_per_worker
from waver.tools.errors import RemoteTracebackError, WaverError, user_message


class BlockError(WaverError):
    """An actor failed to start or to process a block; the message is that of the original error."""


@dataclass(frozen=True)
class ActorPool:
    """The actors that process blocks, and how long they may take."""

    num_actors: int
    """Number at the start. Ray restarts the actors of a lost node elsewhere if there is capacity."""
    max_actors: int | None = None
    """Upper limit when nodes join later; None for `num_actors`."""
    actor: WorkerResources = WorkerResources(1.0)  # noqa: RUF009  frozen
    """Resources of each actor, and labels of its node."""
    wait_s: float = 0.0
    """How long to wait for a node with the resources of one actor."""
    patience_s: float = 0.0
    """How long a block may take, in addition to Ray Data's own limit."""


def worker_pool(resources: ResourcesConfig) -> ActorPool:
    """Returns a pool of `resources.workers` actors, each with the resources of a worker.

    Raises:
        ClusterTooSmallError: if the cluster is too small for the minimum of `resources.workers` after `resources.wait_s`.
    """
    share = WorkerResources(resources.cpus_per_worker, gpus_per_worker(resources), resources.node_labels)
    require_capacity(resources.min_workers, share, wait_s=resources.wait_s)
    return ActorPool(resources.min_workers, resources.max_workers, share, wait_s=resources.wait_s)


def map_blocks(
    worker: Callable[..., Callable[[pa.Table], Any]], arguments: tuple, blocks: Sequence[pa.Table], pool: ActorPool
) -> Iterator[Any]:
    """Yields the result of each block as soon as it is done, in any order.

    A block whose actor was lost is processed again by another actor: processing must be idempotent.

    Args:
        worker: called with `arguments` once in each actor; returns the function that processes a block. The results of
            that function are pickled.
        arguments: of `worker`.
        blocks: tables of rows.
        pool: the actors.

    Raises:
        BlockError: if an actor raised an error that the user can resolve, or if Ray gave up on a block.
        RemoteTracebackError: if an actor raised any other error, which is a bug.
        ClusterTooSmallError: if no node has the resources of an actor after `pool.wait_s`.
    """
    wait_for_capacity(1, 1, pool.actor, wait_s=pool.wait_s)
    # from_arrow would run a task for each block only to read its metadata.
    dataset = ray.data.from_blocks(list(blocks)).map_batches(
        _Actor,
        fn_constructor_args=(worker, arguments),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            initial_size=min(pool.num_actors, len(blocks)),
            max_size=min(pool.max_actors or pool.num_actors, len(blocks)),
            max_tasks_in_flight_per_actor=2,
        ),
        label_selector=dict(pool.actor.labels) or None,
        num_cpus=pool.actor.cpus,
        num_gpus=pool.actor.gpus or None,
    )
    dataset.context.enable_progress_bars = False
    dataset.context.execution_no_progress_timeout_s += pool.patience_s
    for block in _explain_lost_blocks(dataset.iter_batches(batch_size=None, batch_format="pyarrow")):
        for row in block.to_pylist():
            if row["error"] is not None:
                raise BlockError(row["error"])
            if row["traceback"] is not None:
                raise RemoteTracebackError(row["traceback"])
            yield pickle.loads(row["result"])


def _explain_lost_blocks(blocks: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yields the blocks; raises a BlockError where Ray gives up on them."""
    try:
        yield from blocks
    except RayTaskError:  # a bug in the actor, with its traceback
        raise
    except (RayError, ExecutionTimeoutError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BlockError(
            f"the cluster could not finish the work ({reason}): try again when the cluster is healthy"
        ) from error


class _Actor:
    """Returns errors as rows: an exception would reach the user wrapped three times, with pages of Ray's tracebacks."""

    def __init__(self, worker: Callable[..., Callable[[pa.Table], Any]], arguments: tuple):
        self._process, self._failed = None, _row()
        try:
            self._process = worker(*arguments)
        except Exception as error:
            self._failed = _row(error=error)

    def __call__(self, block: pa.Table) -> pa.Table:
        if self._process is None:
            return self._failed
        try:
            return _row(result=pickle.dumps(self._process(block)))
        except Exception as error:
            return _row(error=error)


def _row(*, result: bytes | None = None, error: Exception | None = None) -> pa.Table:
    """Returns one row: the pickled result, or the message of an error that the user can resolve, or a bug's traceback."""
    message = user_message(error) if error else None
    trace = "".join(traceback.format_exception(error)) if error and message is None else None
    columns = {
        "result": ([result], pa.large_binary()),
        "error": ([message], pa.string()),
        "traceback": ([trace], pa.string()),
    }
    return pa.table({name: pa.array(*column) for name, column in columns.items()})
