import errno
import json

import pytest
import torch
from safetensors import SafetensorError

from waver.config import ResourcesConfig
from waver.on_ray.cluster import ClusterUnreachable, _check_reachable
from waver.on_ray.workers import WorkerError, _guarded, _set_damaged_notes_aside, _Task, run_on_workers


def fail(error: Exception) -> None:
    raise error


def test_a_mistake_of_the_user_is_a_sentence_and_is_not_tried_again(tmp_path):
    error = ValueError("the user should change this")
    with pytest.raises(WorkerError, match=r"^the user should change this$"):
        run_on_workers(fail, error, ResourcesConfig(), name="fails", storage=tmp_path)
    assert not list(tmp_path.glob(".failure*"))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("change this"), "change this"),
        (OSError(errno.ENOSPC, "No space left on device"), "make room and run the same command again"),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "make room and run the same"),
        (torch.OutOfMemoryError("CUDA out of memory."), "lower train.global_batch_size, or take more workers"),
        (OSError(errno.EIO, "a cable is loose"), None),
        (RuntimeError("a worker was lost"), None),
    ],
)
def test_what_would_come_again_is_told_to_the_worker_that_takes_over(tmp_path, error, told):
    task = _Task(fail, error, tmp_path / "failure")
    with pytest.raises(type(error)):
        _guarded({"task": task})
    if told is None:
        assert not task.failure.exists()
    else:
        assert told in _guarded({"task": task}).message


def test_a_disk_too_full_even_for_the_reason(tmp_path):
    task = _Task(fail, ValueError("never called"), tmp_path / "failure")
    task.failure.touch()
    assert "no space is left on the disk" in _guarded({"task": task}).message


def test_notes_of_ray_that_were_cut_short_do_not_stop_a_run(tmp_path):
    notes = tmp_path / "checkpoint_manager_snapshot.json"
    _set_damaged_notes_aside(tmp_path)
    notes.write_text(json.dumps({"checkpoint_results": []}))
    _set_damaged_notes_aside(tmp_path)
    assert notes.exists()
    notes.write_text('{"checkpoint_res')
    _set_damaged_notes_aside(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_manager_snapshot.damaged"]


def test_a_cluster_that_does_not_answer_is_said_at_once():
    for address in ("auto", "ray://127.0.0.1:9"):  # Ray's own to find
        _check_reachable(address)
    with pytest.raises(ClusterUnreachable, match=r"RAY_ADDRESS=127\.0\.0\.1:9 .*unset RAY_ADDRESS"):
        _check_reachable("127.0.0.1:9")
