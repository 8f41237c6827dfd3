import errno
import os
import signal
from pathlib import Path

import pytest
import ray
import torch
from ray.exceptions import ActorDiedError
from ray.train import UserCallback
from safetensors import SafetensorError

from waver.config import ResourcesConfig, parse_overrides
from waver.on_ray.cluster import ClusterUnreachable, _check_reachable
from waver.on_ray.signals import signals
from waver.on_ray.workers import WorkerError, _guarded, _Task, run_on_workers


def fail(error: Exception) -> None:
    raise error


def mistake(text: str) -> None:
    """Raises as waver does where the user has to change something."""
    parse_overrides([text])


def without_group(_) -> None:
    """Raises torch's ValueError."""
    torch.distributed.get_backend()


@pytest.fixture
def actor():
    with signals() as handle:
        yield handle


def test_a_mistake_of_the_user_is_a_sentence_and_is_not_tried_again(actor):
    with pytest.raises(WorkerError, match=r"^--set nonsense: write it as section\.key=value"):
        run_on_workers(mistake, "nonsense", ResourcesConfig(), signals=actor)


@pytest.mark.parametrize(
    ("function", "argument", "told"),
    [
        (mistake, "nonsense", "write it as section.key=value"),
        (fail, OSError(errno.ENOSPC, "No space left on device"), "make room and run the same command again"),
        (fail, SafetensorError("I/O error: No space left on device (os error 28)"), "make room and run the same"),
        (
            fail,
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 4 vs 3"),
            "make room and run the same",
        ),
        (fail, torch.OutOfMemoryError("CUDA out of memory."), "lower train.global_batch_size, or take more workers"),
        (fail, OSError(errno.EIO, "a cable is loose"), None),
        (fail, RuntimeError("a worker was lost"), None),
        (without_group, None, None),
    ],
)
def test_what_would_come_again_is_told_to_the_worker_that_takes_over(actor, function, argument, told):
    task = _Task(function, argument, actor)
    with pytest.raises((ValueError, OSError, RuntimeError, SafetensorError)):
        _guarded({"task": task})
    if told is None:
        assert ray.get(actor.failure.remote()) is None
    else:
        assert told in _guarded({"task": task}).message


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
    assert run_on_workers(die_once, tmp_path / "marker", resources, signals=actor, callbacks=callbacks) == 17


def test_the_first_error_is_the_one_that_is_told(actor):
    for message in ("first", "second"):
        ray.get(actor.fail.remote(message))
    assert _guarded({"task": _Task(fail, ValueError("never called"), actor)}).message == "first"


def test_who_waits_for_a_stop_waits_until_it_is_asked_for(actor):
    waiting = actor.wait_for_stop.remote()
    assert not ray.wait([waiting], timeout=0.2)[0]
    actor.ask_to_stop.remote()
    assert ray.wait([waiting], timeout=60)[0]
    assert ray.wait([actor.wait_for_stop.remote()], timeout=60)[0], "who asks later hears it as well"


def test_a_cluster_that_does_not_answer_is_said_at_once():
    for address in ("auto", "ray://127.0.0.1:9"):  # Ray's own to find
        _check_reachable(address)
    with pytest.raises(ClusterUnreachable, match=r"RAY_ADDRESS=127\.0\.0\.1:9 .*unset RAY_ADDRESS"):
        _check_reachable("127.0.0.1:9")
