import asyncio
import errno
import os
import signal
import threading
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
from waver.on_ray.cluster.connection import ClusterUnreachableError, _check_reachable, nodes
from waver.on_ray.cluster.failures import WorkerError
from waver.on_ray.cluster.signals import Terminated, signal_actor
from waver.on_ray.cluster.signals_actor import SignalActor
from waver.on_ray.cluster.worker_group import Rescale, Task, run_task
from waver.on_ray.cluster.workers import run_on_workers
from waver.tools.errors import RemoteTracebackError, WaverError
from waver.training import parallel


def fail(error: Exception) -> None:
    raise error


def mistake(text: str) -> None:
    """Raises as waver does where the user has to change something."""
    parse_overrides([text])


def find_two(numbers: list[int]) -> int:
    """Has a bug: raises Python's own ValueError where there is no 2."""
    return numbers.index(2)


def without_group(_) -> None:
    """Raises torch's ValueError."""
    torch.distributed.get_backend()


@pytest.fixture
def actor():
    with signal_actor() as handle:
        yield handle


class SignalsHere:
    """The signals of a run without an actor: its methods are called with `.remote`, and done when that returns."""

    def __init__(self) -> None:
        self._signals = SignalActor()

    def __getattr__(self, name: str) -> SimpleNamespace:
        method = getattr(self._signals, name)
        return SimpleNamespace(remote=lambda *arguments: ray.put(asyncio.run(method(*arguments))))


@pytest.fixture
def soon(monkeypatch):
    """Others that use the cluster are told of soon."""
    monkeypatch.setattr(capacity, "_NOTICE_AFTER_S", 0.5)


def test_a_mistake_of_the_user_is_a_sentence_and_is_not_tried_again(actor):
    with pytest.raises(WorkerError, match=r"^--set nonsense: write it as section\.key=value"):
        run_on_workers(mistake, "nonsense", ResourcesConfig(), signals=actor)


def test_a_bug_in_a_worker_is_tried_again_and_keeps_its_traceback(actor):
    with pytest.raises(RemoteTracebackError, match=r"(?s)Traceback .*in find_two.*ValueError: 2 is not in list"):
        run_on_workers(find_two, [1, 3], ResourcesConfig(max_failures=1), signals=actor)


def test_what_would_come_again_is_a_sentence_of_a_range_too_which_does_not_queue_with_it(actor, said):
    resources = ResourcesConfig(workers={"min": 1, "max": 2})
    with pytest.raises(WorkerError, match=r"^the memory of a GPU is too small"):
        run_on_workers(fail, torch.OutOfMemoryError("CUDA."), resources, signals=actor)
    assert said == ["starting 2 workers (elastic: 1 to 2)"]


@pytest.mark.parametrize(
    ("function", "argument", "told"),
    [
        (mistake, "nonsense", "write it as section.key=value"),
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
def test_what_would_come_again_is_told_to_the_worker_that_takes_over(function, argument, told):
    actor = SignalsHere()
    task = Task(function, argument, actor)
    with pytest.raises((WaverError, ValueError, OSError, RuntimeError, SafetensorError)):
        run_task({"task": task})
    if told is None:
        assert ray.get(actor.failure.remote()) is None
    else:
        assert told in run_task({"task": task}).message


class LostWhileRayIsBusy(UserCallback):
    """Makes of a lost worker what it is where Ray Train meets it in a call of its own, as while it starts a group."""

    def after_exception(self, run_context, worker_exceptions):
        raise ActorDiedError


def die_once(marker: Path) -> int:
    """Called in a worker."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 17


def test_a_worker_lost_while_its_group_starts_is_replaced_as_well(actor, tmp_path):
    resources = ResourcesConfig(max_failures=1, wait_s=0)
    callbacks = [LostWhileRayIsBusy()]
    how = {"signals": actor, "callbacks": callbacks}
    assert run_on_workers(die_once, tmp_path / "marker", resources, **how) == 17


def count_then_ask_for_more(job: tuple[Path, object]) -> int | Rescale:
    """Called in each worker; with one of them, until there is room for another."""
    marker, actor = job
    num_workers = parallel.world_size()
    if num_workers == 1:
        ray.get(actor.wait_for_capacity.remote())
        return Rescale()
    if parallel.rank() == 0 and not marker.exists():  # Ray Train ends the other as well
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return num_workers


def test_a_range_takes_what_there_is_then_more_and_bears_a_loss(actor, tmp_path, holding, monkeypatch):
    patience_s = capacity._PATIENCE_S
    monkeypatch.setattr(capacity, "_PATIENCE_S", 1.0)
    asked = {"workers": {"min": 1, "max": 2}, "cpus_per_worker": 2, "resize_every_s": 1, "max_failures": 1}
    with holding(3) as let_go:

        def at_first(text: str) -> None:
            if len(said) == 1:
                threading.Timer(1, let_go).start()
                monkeypatch.setattr(capacity, "_PATIENCE_S", patience_s)

        job = (tmp_path / "marker", actor)
        how = {"signals": actor, "rescales": True}
        with logged(at_first) as said:
            assert run_on_workers(count_then_ask_for_more, job, ResourcesConfig(**asked), **how) == 2
    assert said == [
        "starting 1 workers (elastic: 1 to 2)",
        "starting 2 workers (elastic: 1 to 2)",
        "starting 2 workers (elastic: 1 to 2)",
    ]


def count(_) -> int:
    """Called in each worker."""
    return parallel.world_size()


def test_a_range_goes_on_with_fewer_where_room_turns_out_to_be_none(actor, holding, monkeypatch, said):
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "3")
    monkeypatch.setattr(capacity, "_free_nodes", nodes)
    resources = ResourcesConfig(workers={"min": 1, "max": 2}, max_failures=0)
    with holding(5):
        assert run_on_workers(count, None, resources, signals=actor, rescales=True) == 1
    assert said == ["starting 2 workers (elastic: 1 to 2)", "starting 1 workers (elastic: 1 to 2)"]


def test_a_fixed_number_for_which_room_turns_out_to_be_none_is_tried_again_and_given_up(actor, holding, monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "2")
    monkeypatch.setattr(capacity, "_free_nodes", nodes)
    with holding(6), pytest.raises(WorkerError, match="no capacity for the workers any more, although waver waited"):
        run_on_workers(count, None, ResourcesConfig(max_failures=1), signals=actor)


def test_of_two_runs_that_saw_the_same_room_the_slower_queues_again(actor, holding, soon, monkeypatch):
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "3")
    looks, look = iter([nodes]), capacity._free_nodes  # the first look is before the other takes its place
    monkeypatch.setattr(capacity, "_free_nodes", lambda labels: next(looks, look)(labels))
    with holding(6) as let_go, logged(lambda _: let_go()) as said:
        assert run_on_workers(count, None, ResourcesConfig(max_failures=0), signals=actor) == 1
    assert said == ["others use the cluster: 0 of 1 workers with 1 CPU each fit now: waiting for free capacity"]


def test_the_first_error_is_the_one_that_is_told():
    actor = SignalsHere()
    for message in ("first", "second"):
        ray.get(actor.keep_failure.remote(message))
    assert run_task({"task": Task(fail, ValueError("never called"), actor)}).message == "first"


def test_who_waits_for_a_stop_waits_until_it_is_asked_for(actor):
    waiting = actor.wait_for_stop.remote()
    assert not ray.wait([waiting], timeout=0.2)[0]
    actor.ask_to_stop.remote()
    assert ray.wait([waiting], timeout=60)[0]
    assert ray.wait([actor.wait_for_stop.remote()], timeout=60)[0], "who asks later hears it as well"


def test_who_asks_to_stop_while_there_is_no_room_is_heard(actor, holding, soon):
    with holding(6), logged(lambda _: actor.ask_to_stop.remote()) as said, pytest.raises(Terminated) as stopped:
        run_on_workers(die_once, None, ResourcesConfig(), signals=actor)
    assert stopped.value.message.startswith("stopped on request while waiting for free capacity")
    assert said == ["others use the cluster: 0 of 1 workers with 1 CPU each fit now: waiting for free capacity"]


def test_room_that_is_seen_before_a_worker_listens_is_its_own(actor):
    ray.get(actor.ask_to_rescale.remote())
    waiting = actor.wait_for_capacity.remote()
    assert not ray.wait([waiting], timeout=0.2)[0]
    ray.get(actor.ask_to_rescale.remote())
    assert ray.wait([waiting], timeout=60)[0]
    ray.get([actor.start_group.remote(), actor.ask_to_rescale.remote()])
    assert not ray.wait([actor.wait_for_capacity.remote()], timeout=0.2)[0], "that of another group"


def test_a_cluster_that_does_not_answer_is_said_at_once():
    _check_reachable("auto")  # Ray's own to find
    with pytest.raises(ClusterUnreachableError, match=r"ray://127\.0\.0\.1:9 .*submit it with `waver submit`"):
        _check_reachable("ray://127.0.0.1:9")
    with pytest.raises(ClusterUnreachableError, match=r"RAY_ADDRESS=127\.0\.0\.1:9 .*unset RAY_ADDRESS"):
        _check_reachable("127.0.0.1:9")
