import json
import os

import pytest
import torch
from pyarrow.fs import LocalFileSystem

from waver.runs.checkpoint import CheckpointError, load_student, save_checkpoint
from waver.runs.environment import environment
from waver.runs.folder import (
    RunError,
    best_checkpoint,
    changed_data,
    checkpoint_name,
    checkpoints,
    describe_checkpoint,
    find_checkpoint,
    keep_checkpoint,
    newest_checkpoint,
    open_run,
    read_result,
    rivals_of_best,
)
from waver.runs.tracking import Tracker
from waver.tools import object_store
from waver.tools.object_store import list_names, local_copy
from waver.training.build import build_training

DATA = {"num_train_clips": 13, "digest": "abc"}


@pytest.fixture
def run(tmp_path, tiny_config):
    """A run with metrics of three epochs, and the checkpoints of the second and third."""
    open_run(tmp_path, tiny_config, DATA)
    tracker = Tracker(tmp_path)
    for epoch, recall in ((1, 9.0), (2, 5.0), (3, 5.0)):
        tracker.log(epoch * 10, {"t2v/R@1": recall, "v2t/R@1": 1.0}, epoch=epoch, split="validation")
        if epoch > 1:
            folder = tmp_path / checkpoint_name(epoch)
            save_checkpoint(folder, build_training(tiny_config, num_steps=1, device=torch.device("cpu")), tiny_config)
    tracker.close()
    return tmp_path


def test_best_checkpoint_exists_and_is_the_later_of_a_tie(run):
    path, metrics = best_checkpoint(run)
    assert path == run / "checkpoint_epoch_0003"
    assert metrics == {"t2v/R@1": 5.0, "v2t/R@1": 1.0}
    assert list(checkpoints(run)) == [2, 3]


def test_epochs_that_tie_with_the_best_are_named():
    def rows(*recalls: float, **gallery: int) -> list[dict]:
        return [{"epoch": epoch, "t2v/R@1": recall, **gallery} for epoch, recall in enumerate(recalls, 1)]

    assert rivals_of_best(rows(100.0, 100.0, 100.0)) == ["epochs 1 and 2 tie with epoch 3 at t2v/R@1 100.00"]
    assert rivals_of_best(rows(10.0, 50.0, 48.0)) == []
    assert rivals_of_best(rows(10.0, 50.0, 48.0, gallery_size=23, num_queries=57)) == [
        "epoch 3 differs from epoch 2 by less than the standard error of t2v/R@1 (6.5 points for 57 queries)"
    ]


def test_truncated_checkpoints_are_ignored(run):
    os.truncate(run / "checkpoint_epoch_0003" / "model.safetensors", 1000)
    assert best_checkpoint(run)[0] == run / "checkpoint_epoch_0002"
    os.truncate(run / "checkpoint_epoch_0002" / "training.pt", 1000)
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        best_checkpoint(run)


def test_find_checkpoint_accepts_a_run_or_a_checkpoint(run):
    assert find_checkpoint(run) == run / "checkpoint_epoch_0003"
    assert find_checkpoint(run / "checkpoint_epoch_0002") == run / "checkpoint_epoch_0002"


def test_find_checkpoint_refuses_other_folders(tmp_path, tiny_config):
    with pytest.raises(CheckpointError, match="typo does not exist: train one with"):
        find_checkpoint(tmp_path / "typo")
    open_run(tmp_path, tiny_config, DATA)
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        find_checkpoint(tmp_path)


def test_open_run_writes_configuration_and_environment(run, tiny_config):
    assert (run / "config.yaml").read_text() == tiny_config.to_yaml()
    environment = json.loads((run / "environment.json").read_text())
    assert environment["torch"]
    assert environment["ray"]
    assert environment["command"]


def test_commit_of_a_copied_checkout_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setattr("waver.runs.environment.__file__", str(tmp_path / "waver" / "runs" / "environment.py"))
    (tmp_path / "waver" / "runs").mkdir(parents=True)
    assert (environment()["git_commit"], environment()["git_changes"]) == (None, None)
    monkeypatch.setenv("WAVER_GIT_COMMIT", "abc123")
    monkeypatch.setenv("WAVER_GIT_CHANGES", "")
    assert (environment()["git_commit"], environment()["git_changes"]) == ("abc123", "")


def test_run_with_another_configuration_is_refused(run, load_tiny):
    with pytest.raises(RunError, match=r"train.lr: 0.001 in the folder, 0.5 now.*--set name="):
        open_run(run, load_tiny(**{"train.lr": 0.5}), DATA)


def test_run_without_checkpoint_may_be_replaced(tmp_path, tiny_config, load_tiny):
    open_run(tmp_path, tiny_config, DATA)
    open_run(tmp_path, load_tiny(**{"train.lr": 0.5}), DATA)


def test_run_on_other_data_is_refused(run, tiny_config):
    open_run(run, tiny_config, DATA)
    with pytest.raises(RunError, match=r"on other data \(num_train_clips: 13 then, 14 now\).*--set name="):
        open_run(run, tiny_config, DATA | {"num_train_clips": 14})


def test_changes_of_the_data_are_told_by_name(run):
    """Entries that an older version of waver did not write, or could not compute, are no change."""
    before = DATA | {"videos": None}
    (run / "data.json").write_text(json.dumps(before))
    assert changed_data(run, before | {"validation": "v", "videos": "w"}) == ""
    assert changed_data(run, before | {"digest": "xyz"}) == "digest: 'abc' then, 'xyz' now"
    (run / "data.json").unlink()
    assert changed_data(run, DATA) == ""


def test_resources_may_change_when_a_run_resumes(run, load_tiny, tiny_config):
    open_run(run, tiny_config.model_copy(update={"resources": load_tiny(**{"resources.workers": 2}).resources}), DATA)


def test_read_result(run):
    assert read_result(run) is None
    (run / "result.json").write_text('{"epochs": 3}')
    assert read_result(run) == {"epochs": 3}


def put(run, config, name):
    """Keeps a new checkpoint, and returns the names of all."""
    save_checkpoint(run / ".part", build_training(config, num_steps=1, device=torch.device("cpu")), config)
    keep_checkpoint(run, run / ".part", name)
    return sorted(path.name for path in run.glob("*checkpoint*"))


def test_best_and_two_newest_checkpoints_are_kept(run, tiny_config):
    within = [checkpoint_name(3, 31 + number) for number in range(3)]
    assert put(run, tiny_config, within[0]) == ["checkpoint_epoch_0003", within[0]]
    assert put(run, tiny_config, within[1]) == ["checkpoint_epoch_0003", *within[:2]]
    assert put(run, tiny_config, within[2]) == ["checkpoint_epoch_0003", *within[1:]]
    assert newest_checkpoint(run).name == within[2]
    with Tracker(run, resume_step=32) as tracker:
        tracker.log(40, {"t2v/R@1": 1.0, "v2t/R@1": 1.0}, epoch=4, split="validation")
    assert put(run, tiny_config, checkpoint_name(4)) == ["checkpoint_epoch_0003", within[2], "checkpoint_epoch_0004"]
    with Tracker(run, resume_step=40) as tracker:
        tracker.log(50, {"t2v/R@1": 9.0, "v2t/R@1": 1.0}, epoch=5, split="validation")
    assert put(run, tiny_config, checkpoint_name(5)) == ["checkpoint_epoch_0004", "checkpoint_epoch_0005"]


def test_damaged_checkpoint_is_ignored_and_replaced(run, tiny_config):
    put(run, tiny_config, checkpoint_name(3, 31))
    os.truncate(newest_checkpoint(run) / "training.pt", 100)
    assert newest_checkpoint(run).name == "checkpoint_epoch_0003"
    put(run, tiny_config, checkpoint_name(3, 31))
    assert newest_checkpoint(run).name == checkpoint_name(3, 31)


def test_describe_checkpoint(tmp_path):
    assert describe_checkpoint(tmp_path / checkpoint_name(3)) == "epoch 3"
    assert describe_checkpoint(tmp_path / checkpoint_name(3, 31)) == "step 31, in epoch 4"
    assert newest_checkpoint(tmp_path) is None


FROZEN = {"train.backbone_lr_scale": 0}


def save(run, training, config, name):
    """Writes and keeps a checkpoint as a run does."""
    save_checkpoint(run / ".part", training, config, previous=newest_checkpoint(run))
    return keep_checkpoint(run, run / ".part", name)


def test_frozen_weights_lie_once_on_the_disk_and_outlive_the_checkpoint_that_wrote_them(run, load_tiny):
    config = load_tiny(**FROZEN)
    training = build_training(config, num_steps=1, device=torch.device("cpu"))
    saved = [save(run, training, config, checkpoint_name(epoch)) for epoch in (4, 5, 6, 7)]
    assert [path.exists() for path in saved] == [False, False, True, True]
    files = [path / "frozen.safetensors" for path in checkpoints(run).values() if path in saved]
    assert {file.stat().st_ino for file in files} == {files[0].stat().st_ino}
    assert files[0].stat().st_nlink == len(files) == 2
    with torch.no_grad():
        found, expected = load_student(saved[-1], config).state_dict(), training.student.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


@pytest.mark.slow
def test_an_object_store_gets_the_frozen_weights_once(s3, tmp_path, load_tiny, monkeypatch):
    """The store copies them from checkpoint to checkpoint, and the whole checkpoint when it is renamed."""
    sent, real = [], object_store._copy

    def copy_file(source, target, from_store, to_store):
        if isinstance(from_store, LocalFileSystem):  # an upload
            sent.append(target.partition("/runs/tiny/")[2])
        real(source, target, from_store, to_store)

    config = load_tiny(**FROZEN)
    training = build_training(config, num_steps=1, device=torch.device("cpu"))
    run = local_copy(f"{s3}/runs/tiny", tmp_path / "copy")
    run.mkdir(parents=True)
    names = {"model.safetensors", "training.pt", "config.yaml", "knowledge.json"}
    monkeypatch.setattr(object_store, "_copy", copy_file)
    for epoch, expected in ((1, names | {"frozen.safetensors"}), (2, names)):
        of_step, of_epoch = checkpoint_name(epoch - 1, epoch), checkpoint_name(epoch)
        save(run, training, config, of_step)
        assert set(sent) == {f"{of_step}/{name}" for name in expected}
        sent.clear()
        kept = keep_checkpoint(run, run / of_step, of_epoch)
        assert sent == []
        assert list_names(run) == [checkpoint_name(number) for number in range(1, epoch + 1)]
        other = local_copy(f"{s3}/runs/tiny", tmp_path / f"machine {epoch}") / kept.name
        state = load_student(other, config).state_dict()
        assert all(torch.equal(value, state[name]) for name, value in training.student.state_dict().items())
