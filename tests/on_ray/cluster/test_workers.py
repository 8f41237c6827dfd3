import asyncio
import errno
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
import torch
from logs import logged
from ray.exceptions import ActorDiedError
from ray.train import UserCallback
from safetensors import SafetensorError

from waver.config import ResourcesConfig, parse_overrides
from waver.on_ray.cluster import capacity
from waver.on_ray.cluster.connection import nodes
from waver.on_ray.cluster.failures import WorkerError
from waver.on_ray.cluster.reachability import ClusterUnreachableError, check_reachable
from waver.on_ray.cluster.signals import signal_actor
from waver.on_ray.cluster.signals_actor import SignalActor
from waver.on_ray.cluster.worker_group import GroupFailure, Task, run_task
from waver.on_ray.cluster.workers import run_on_workers
from waver.tools.errors import RemoteTracebackError, WaverError
from waver.tools.termination import Terminated
from waver.training import parallel
from waver.training.parallel import CollectiveError


def fail(error: Exception) -> None:
    raise error


def mistake(calls: Path) -> None:
    """Raises an error that the user can resolve."""
    note_call(calls)
    parse_overrides(["nonsense"])


def find_two(calls: Path) -> int:
    """Has a bug: Python raises a ValueError if a list has no 2."""
    note_call(calls)
    return [1, 3].index(2)


def note_call(calls: Path) -> None:
    with calls.open("a") as file:
        file.write("called ")


def without_group(_) -> None:
    """Raises a ValueError of torch, as no process group exists."""
    torch.distributed.get_backend()


@pytest.fixture
def actor():
    with signal_actor() as handle:
        yield handle


class LocalSignals:
    """Replaces the signal actor in this process: `.remote` runs a method to its end."""

    def __init__(self) -> None:
        self._signals = SignalActor()

    def __getattr__(self, name: str) -> SimpleNamespace:
        method = getattr(self._signals, name)
        return SimpleNamespace(remote=lambda *arguments: ray.put(asyncio.run(method(*arguments))))


@pytest.fixture
def early_notice(monkeypatch):
    """Logs the notice about other users of the cluster after 0.5 s."""
    monkeypatch.setattr(capacity, "_NOTICE_AFTER_S", 0.5)


def test_an_error_of_the_user_is_a_message_and_is_not_retried(actor, tmp_path):
    with pytest.raises(WorkerError, match=r"^--set nonsense: write it as section\.key=value"):
        run_on_workers(mistake, tmp_path / "calls", ResourcesConfig(max_failures=1), signals=actor)
    assert (tmp_path / "calls").read_text() == "called "


def test_a_bug_is_retried_and_keeps_its_traceback(actor, tmp_path):
    with pytest.raises(RemoteTracebackError, match=r"(?s)Traceback .*in find_two.*ValueError: 2 is not in list"):
        run_on_workers(find_two, tmp_path / "calls", ResourcesConfig(max_failures=1), signals=actor)
    assert (tmp_path / "calls").read_text() == "called called "


@pytest.mark.parametrize(
    ("function", "argument", "message"),
    [
        (fail, WaverError("write it as section.key=value"), "write it as section.key=value"),
        (fail, OSError(errno.ENOSPC, "No space left on device"), "free some space and run the same command again"),
        (fail, SafetensorError("I/O error: No space left on device (os error 28)"), "free some space and run the same"),
        (
            fail,
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 4 vs 3"),
            "free some space and run the same",
        ),
        (fail, torch.OutOfMemoryError("CUDA out of memory."), "lower train.global_batch_size, or use more workers"),
        (fail, OSError(errno.EIO, "a cable is loose"), None),
        (fail, RuntimeError("a worker was lost"), None),
        (without_group, None, None),
    ],
)
def test_a_replacement_worker_returns_the_message_of_a_permanent_error(function, argument, message):
    actor = LocalSignals()
    task = Task(function, argument, actor)
    with pytest.raises((WaverError, ValueError, OSError, RuntimeError, SafetensorError)):
        run_task({"task": task})
    if message is None:
        assert ray.get(actor.failure.remote()) is None
    else:
        assert message in run_task({"task": task}).message


def test_an_error_that_all_workers_raise_ends_the_group_with_its_message():
    failure = run_task({"task": Task(fail, CollectiveError("step 3: loss = inf"), LocalSignals())})
    assert failure == GroupFailure("step 3: loss = inf")


class FailController(UserCallback):
    """Turns the loss of a worker into an error of Ray Train's controller, as happens while a group starts."""

    def after_exception(self, run_context, worker_exceptions):
        raise ActorDiedError


def die_once(marker: Path) -> int:
    """Kills the first worker that calls it; returns 17 in later workers."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 17


def test_a_worker_lost_while_its_group_starts_is_replaced(actor, tmp_path):
    resources = ResourcesConfig(max_failures=1, wait_s=0)
    callbacks = [FailController()]
    assert run_on_workers(die_once, tmp_path / "marker", resources, signals=actor, callbacks=callbacks) == 17


def count_workers(_) -> int:
    return parallel.world_size()


def test_an_elastic_group_that_cannot_be_placed_shrinks(actor, holding, monkeypatch, said):
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "3")
    monkeypatch.setattr(capacity, "_free_nodes", nodes)
    resources = ResourcesConfig(workers={"min": 1, "max": 2}, max_failures=0)
    with holding(5):
        assert run_on_workers(count_workers, None, resources, signals=actor, rescales=True) == 1
    assert said == ["starting 2 workers (elastic: 1 to 2)", "starting 1 workers (elastic: 1 to 2)"]


def test_a_fixed_group_that_cannot_be_placed_is_retried_and_then_fails(actor, holding, monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "2")
    monkeypatch.setattr(capacity, "_free_nodes", nodes)
    with holding(6), pytest.raises(WorkerError, match="no capacity for the workers any more, although waver waited"):
        run_on_workers(count_workers, None, ResourcesConfig(max_failures=1), signals=actor)


def test_a_run_waits_again_if_others_took_the_capacity_that_looked_free(actor, holding, early_notice, monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "3")
    first, later = iter([nodes]), capacity._free_nodes  # only the first check finds free capacity
    monkeypatch.setattr(capacity, "_free_nodes", lambda labels: next(first, later)(labels))
    with holding(6) as release, logged(lambda _: release()) as messages:
        assert run_on_workers(count_workers, None, ResourcesConfig(max_failures=0), signals=actor) == 1
    assert messages == ["others use the cluster: 0 of 1 workers with 1 CPU each fit now: waiting for free capacity"]


def test_the_first_permanent_error_is_kept():
    actor = LocalSignals()
    for message in ("first", "second"):
        ray.get(actor.keep_failure.remote(message))
    assert run_task({"task": Task(fail, ValueError("never called"), actor)}).message == "first"


def test_wait_for_stop_returns_once_a_stop_is_requested(actor):
    waiting = actor.wait_for_stop.remote()
    assert not ray.wait([waiting], timeout=0.2)[0]
    actor.ask_to_stop.remote()
    assert ray.wait([waiting], timeout=60)[0]
    assert ray.wait([actor.wait_for_stop.remote()], timeout=60)[0], "later callers as well"


def test_a_stop_request_ends_the_wait_for_capacity(actor, holding, early_notice):
    with holding(6), logged(lambda _: actor.ask_to_stop.remote()) as messages, pytest.raises(Terminated) as stopped:
        run_on_workers(die_once, None, ResourcesConfig(), signals=actor)
    assert stopped.value.message.startswith("stopped on request while waiting for free capacity")
    assert messages == ["others use the cluster: 0 of 1 workers with 1 CPU each fit now: waiting for free capacity"]


def test_requests_to_rescale_are_ignored_until_a_worker_waits(actor):
    ray.get(actor.ask_to_rescale.remote())
    waiting = actor.wait_for_capacity.remote()
    assert not ray.wait([waiting], timeout=0.2)[0]
    ray.get(actor.ask_to_rescale.remote())
    assert ray.wait([waiting], timeout=60)[0]
    ray.get([actor.start_group.remote(), actor.ask_to_rescale.remote()])
    assert not ray.wait([actor.wait_for_capacity.remote()], timeout=0.2)[0], "no worker of the new group waited"


def test_a_running_cluster_can_be_joined_at_its_head_and_not_at_its_dashboard():
    check_reachable(ray.get_runtime_context().gcs_address)
    dashboard = os.environ["RAY_API_SERVER_ADDRESS"].removeprefix("http://")
    with pytest.raises(
        ClusterUnreachableError, match=rf"another server answers at RAY_ADDRESS={dashboard}, perhaps the"
    ):
        check_reachable(dashboard)
