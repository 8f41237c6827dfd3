"""Work on blocks of rows by a pool of actors of Ray Data, with errors that a user can read."""

import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray.data
from ray.data.exceptions import ExecutionTimeoutError
from ray.exceptions import RayError, RayTaskError

from waver.on_ray.cluster.capacity import WorkerResources, wait_for_capacity
from waver.on_ray.cluster.connection import Labels
from waver.tools.errors import RemoteTracebackError, WaverError, user_message


class BlockError(WaverError):
    """An actor could not be made, or could not do a block; the message is that of the cause."""


def map_blocks(
    worker: Callable[..., Callable[[pa.Table], Any]],
    arguments: tuple,
    blocks: Sequence[pa.Table],
    *,
    workers: int,
    max_workers: int | None = None,
    labels: Labels,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    wait_s: float = 0.0,
    patience_s: float = 0.0,
) -> Iterator[Any]:
    """Yields what the actors make of the blocks, as each is done, in any order.

    A block whose actor was lost is done again by another: what an actor does must bear being done twice.

    Args:
        worker: called with `arguments` in each actor, then with one block after the other. What it returns is pickled.
        arguments: of `worker`.
        blocks: of rows.
        workers: actors, for a start. Those that are lost with their node start again elsewhere, or are done without.
        max_workers: actors that there may be when nodes join later; None for no more.
        labels: of the nodes where they run.
        num_cpus: of an actor.
        num_gpus: of an actor.
        wait_s: how long a cluster may take to have a node for an actor.
        patience_s: how long a block may take, beyond what Ray Data allows by itself.

    Raises:
        BlockError: if an actor raised an error that the user can resolve, or if the cluster lost the work for good.
        RemoteTracebackError: if an actor raised any other error, which is a bug.
        ClusterTooSmallError: if after `wait_s` no node has room for an actor.
    """
    wait_for_capacity(1, 1, WorkerResources(num_cpus, num_gpus, labels), wait_s=wait_s)
    # from_arrow would run a task for each block, only to look at it.
    dataset = ray.data.from_blocks(list(blocks)).map_batches(
        _Actor,
        fn_constructor_args=(worker, arguments),
        batch_size=None,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            min_size=1,
            initial_size=min(workers, len(blocks)),
            max_size=min(max_workers or workers, len(blocks)),
            max_tasks_in_flight_per_actor=2,
        ),
        label_selector=dict(labels) or None,
        num_cpus=num_cpus,
        num_gpus=num_gpus or None,
    )
    dataset.context.enable_progress_bars = False
    dataset.context.execution_no_progress_timeout_s += patience_s
    for block in _of_cluster(dataset.iter_batches(batch_size=None, batch_format="pyarrow")):
        for row in block.to_pylist():
            if row["error"] is not None:
                raise BlockError(row["error"])
            if row["traceback"] is not None:
                raise RemoteTracebackError(row["traceback"])
            yield pickle.loads(row["result"])


def _of_cluster(blocks: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same blocks; what Ray lost for good is an error in words."""
    try:
        yield from blocks
    except RayTaskError:  # a mistake of the actor's own, with its traceback
        raise
    except (RayError, ExecutionTimeoutError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise BlockError(f"the cluster could not do it ({reason}): try again when it is well") from error


class _Actor:
    """Returns errors as rows: raised in an actor they would reach the user in three wrappings and pages of Ray's traces."""

    def __init__(self, worker: Callable[..., Callable[[pa.Table], Any]], arguments: tuple):
        self._work, self._failed = None, _row()
        try:
            self._work = worker(*arguments)
        except Exception as error:
            self._failed = _row(error=error)

    def __call__(self, block: pa.Table) -> pa.Table:
        if self._work is None:
            return self._failed
        try:
            return _row(result=pickle.dumps(self._work(block)))
        except Exception as error:
            return _row(error=error)


def _row(*, result: bytes | None = None, error: Exception | None = None) -> pa.Table:
    """One row: the pickled result, or the message of an error that the user can resolve, or the traceback of a bug."""
    message = user_message(error) if error else None
    trace = "".join(traceback.format_exception(error)) if error and message is None else None
    columns = {
        "result": ([result], pa.large_binary()),
        "error": ([message], pa.string()),
        "traceback": ([trace], pa.string()),
    }
    return pa.table({name: pa.array(*column) for name, column in columns.items()})
