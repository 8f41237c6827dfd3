"""Weights that training does not change: one file for all checkpoints of a run."""

import os
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from waver.model.frozen_weights import weights_digest
from waver.runs.checkpoint import (
    CheckpointError,
    check_values,
    check_weights,
    is_complete,
    load_student,
    restore_training,
    save_checkpoint,
)
from waver.runs.checkpoint_weights import FrozenWeightsError
from waver.training.build import Training, build_training
from waver.training.step import make_batch, train_step

CPU = torch.device("cpu")
MODEL, FROZEN = "model.safetensors", "frozen.safetensors"
WAYS = {
    "both towers": {"train.backbone_lr_scale": 0},
    "one tower": {"train.freeze": ["vision"]},
    "first blocks": {"train.freeze": ["text.1", "vision.1"]},
}


@pytest.fixture
def batch(captions, store, tiny_config):
    return make_batch(captions, np.array([0, 1, 3]), store.read(["v00", "v01", "v02"]), tiny_config, 3)


@pytest.fixture
def run(tmp_path, batch, load_tiny):
    """Returns a function that trains two steps and saves a checkpoint after each: configuration, training, checkpoints."""

    def train(**overrides):
        config = load_tiny(**{"train.backbone_lr_scale": 0, **overrides})
        training = build_training(config, num_steps=10, device=CPU)
        folders = [tmp_path / "first", tmp_path / "second"]
        for folder, previous in zip(folders, [None, folders[0]], strict=True):
            train_step(training, batch, config)
            save_checkpoint(folder, training, config, previous=previous)
        return config, training, folders

    return train


def metadata(path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def assert_equal(student: torch.nn.Module, other: torch.nn.Module) -> None:
    state = student.state_dict()
    assert state.keys() == other.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize("overrides", WAYS.values(), ids=WAYS)
def test_what_training_changes_is_apart_from_what_it_does_not(run, batch, overrides):
    config, training, (first, second) = run(**{"train.backbone_lr_scale": 0.1, **overrides})
    state = training.student.state_dict()
    start = build_training(config, num_steps=10, device=CPU).student.state_dict()
    changed, frozen = load_file(second / MODEL), load_file(second / FROZEN)
    assert changed.keys() | frozen.keys() == state.keys()
    assert not changed.keys() & frozen.keys()
    for name, value in frozen.items():
        assert torch.equal(value, start[name])
        assert torch.equal(value, state[name])
    trained = {name for name, p in training.student.named_parameters() if p.requires_grad}
    assert trained <= changed.keys()
    assert changed.keys() - trained <= {"backbone.clip.attn_mask", "backbone.clip.logit_scale"}, "a buffer, the scale"
    assert sum(value.numel() for value in frozen.values()) > 10_000
    for folder in (first, second):
        assert is_complete(folder)
        check_weights(folder, config)
        check_values(folder)
    assert_equal(load_student(second, config), training.student)
    before = load_file(first / MODEL)
    assert not all(torch.equal(value, before[name]) for name, value in changed.items())


def test_the_optimizer_keeps_nothing_of_frozen_weights(run):
    _, training, (_, second) = run()
    trained = [p for p in training.student.parameters() if p.requires_grad]
    moments = torch.load(second / "training.pt", weights_only=True)["optimizer"]["state"]
    assert sorted(values["exp_avg"].numel() for values in moments.values()) == sorted(p.numel() for p in trained)


def test_checkpoints_share_one_file_and_each_can_be_deleted(run):
    config, training, (first, second) = run()
    assert (first / FROZEN).samefile(second / FROZEN)
    assert not (first / MODEL).samefile(second / MODEL)
    shutil.rmtree(first)
    assert_equal(load_student(second, config), training.student)


def test_a_checkpoint_that_is_written_again_leaves_those_that_share_its_file_as_they_are(run, load_tiny):
    _, _, (first, second) = run()
    before = load_file(second / FROZEN)
    other = load_tiny(**{"train.backbone_lr_scale": 0, "seed": 5})
    save_checkpoint(first, build_training(other, num_steps=10, device=CPU), other)
    after = load_file(second / FROZEN)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert weights_digest(load_file(first / FROZEN)) != weights_digest(before)
    everything = load_tiny()
    save_checkpoint(first, build_training(everything, num_steps=10, device=CPU), everything, previous=second)
    assert not (first / FROZEN).exists()
    assert is_complete(first)


def test_where_files_cannot_be_linked_the_weights_are_copied(run, tmp_path):
    shm = os.path.join("/dev/shm", tmp_path.name)  # noqa: PTH118
    if not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:  # noqa: PTH112, PTH116
        pytest.skip("needs a second file system")
    config, training, (_, second) = run()
    elsewhere = type(tmp_path)(shm)
    try:
        save_checkpoint(elsewhere, training, config, previous=second)
        assert (elsewhere / FROZEN).stat().st_nlink == 1
        assert_equal(load_student(elsewhere, config), training.student)
    finally:
        shutil.rmtree(elsewhere)


def test_the_hash_is_that_of_the_frozen_weights(run):
    _, training, folders = run()
    frozen = {name: p.detach() for name, p in training.student.named_parameters() if not p.requires_grad}
    del frozen["backbone.clip.logit_scale"]
    expected = weights_digest(frozen)
    for folder in folders:
        assert metadata(folder / FROZEN) == {"frozen_sha256": expected}
        assert metadata(folder / MODEL)["frozen_sha256"] == expected


def test_resumed_training_equals_uninterrupted_training(run, batch):
    config, training, (_, second) = run()
    again = build_training(config, num_steps=10, device=CPU, pretrained=False)
    restore_training(second, again)
    assert train_step(again, batch, config) == train_step(training, batch, config)


def written_before(folder, training: Training) -> None:
    """Makes a checkpoint as older versions of waver wrote it: all weights in model.safetensors."""
    told = {"quick_gelu": metadata(folder / MODEL)["quick_gelu"]}
    save_file({name: value.contiguous() for name, value in training.student.state_dict().items()}, folder / MODEL, told)
    (folder / FROZEN).unlink()


def test_a_checkpoint_of_an_older_version_is_read_and_continued(run, batch, tmp_path):
    config, training, (_, old) = run()
    written_before(old, training)
    assert is_complete(old)
    check_weights(old, config)
    check_values(old)
    assert_equal(load_student(old, config), training.student)
    again = build_training(config, num_steps=10, device=CPU, pretrained=False)
    restore_training(old, again)
    for either in (training, again):
        train_step(either, batch, config)
    save_checkpoint(tmp_path / "third", again, config, previous=old)
    assert (tmp_path / "third" / FROZEN).stat().st_nlink == 1, "there was nothing to share"
    assert_equal(load_student(tmp_path / "third", config), training.student)


@pytest.fixture
def reads(run):
    """The second checkpoint of a run, its hash, and all functions that read it."""
    config, training, (_, second) = run()
    reads = [
        check_values,
        lambda folder: check_weights(folder, config),
        lambda folder: load_student(folder, config),
        lambda folder: restore_training(folder, training),
    ]
    return second, metadata(second / MODEL)["frozen_sha256"][:16], reads


def replace(path, source) -> None:
    """Replaces a file, and not those that share its content."""
    path.unlink()
    shutil.copy(source, path)


def test_missing_frozen_weights_are_named_and_can_be_copied_from_another_checkpoint(run):
    config, training, (first, second) = run()
    (second / FROZEN).unlink()
    assert is_complete(second), "else the run would continue from an older checkpoint, and remove this one"
    message = rf"{second / FROZEN} is missing, .*: copy it from another checkpoint of the run"
    for read in (
        check_values,
        lambda folder: load_student(folder, config),
        lambda folder: check_weights(folder, config),
    ):
        with pytest.raises(FrozenWeightsError, match=message):
            read(second)
    shutil.copy(first / FROZEN, second / FROZEN)
    check_values(second)
    assert_equal(load_student(second, config), training.student)


def test_frozen_weights_of_another_model_are_refused(reads, load_tiny, tmp_path):
    second, digest, functions = reads
    config = load_tiny(**{"train.backbone_lr_scale": 0, "seed": 5})
    save_checkpoint(tmp_path / "other", build_training(config, num_steps=10, device=CPU), config)
    replace(second / FROZEN, tmp_path / "other" / FROZEN)
    for read in functions:
        with pytest.raises(
            FrozenWeightsError, match=rf"{second / FROZEN} belongs to another model .*{digest}.*copy it"
        ):
            read(second)


def test_frozen_weights_that_were_changed_are_refused(reads):
    """Also if they keep their metadata; names and sizes alone do not show it."""
    second, digest, (check, sizes, *functions) = reads
    edited = load_file(second / FROZEN)
    edited["backbone.clip.visual.proj"][0, 0] += 1
    save_file(edited, second / FROZEN, metadata(second / FROZEN))
    for read in (check, *functions):
        with pytest.raises(FrozenWeightsError, match=rf"{second / FROZEN} is damaged .*{digest}.*copy of the run"):
            read(second)
    sizes(second)


def test_truncated_frozen_weights_are_refused(reads):
    second, _, functions = reads
    os.truncate(second / FROZEN, 1000)
    for read in functions:
        with pytest.raises(FrozenWeightsError, match=rf"{second / FROZEN} is damaged"):
            read(second)


def test_a_damaged_checkpoint_is_not_shared(run, tmp_path):
    config, training, (first, second) = run()
    os.truncate(first / FROZEN, 1000)  # both folders have this file
    save_checkpoint(tmp_path / "third", training, config, previous=second)
    assert_equal(load_student(tmp_path / "third", config), training.student)


def test_the_hash_of_weights_under_adapters_is_computed_once(tmp_path, batch, load_tiny, teacher_weights):
    """A later checkpoint takes it from the one before; the file has no frozen.safetensors beside it."""
    config = load_tiny(**{"model.weights": str(teacher_weights), "model.lora.rank": 2})
    training = build_training(config, num_steps=10, device=CPU)
    save_checkpoint(tmp_path / "first", training, config)
    train_step(training, batch, config)
    save_checkpoint(tmp_path / "second", training, config, previous=tmp_path / "first")
    assert not (tmp_path / "second" / FROZEN).exists()
    assert metadata(tmp_path / "second" / MODEL) == metadata(tmp_path / "first" / MODEL)
    assert_equal(load_student(tmp_path / "second", config), training.student)


def test_frozen_weights_beside_a_model_are_no_adapters(run, load_tiny, teacher_weights):
    _, _, (_, second) = run()
    config = load_tiny(**{"model.weights": str(teacher_weights), "model.lora.rank": 2})
    with pytest.raises(CheckpointError, match="holds no adapters: it was trained without"):
        load_student(second, config)
