import os

import numpy as np
import pytest
import torch

from waver.knowledge.store import KnowledgeError
from waver.runs.checkpoint import (
    CheckpointError,
    check_dictionary,
    check_values,
    checkpoint_config,
    checkpoint_knowledge,
    is_complete,
    load_student,
    restore_training,
    save_checkpoint,
    save_untrained,
)
from waver.runs.origin import Origin
from waver.training.build import build_student, build_training
from waver.training.step import make_batch, train_step

CPU = torch.device("cpu")


@pytest.fixture
def batch(captions, store, tiny_config):
    rows = np.array([0, 1, 3])
    return make_batch(captions, rows, store.read(["v00", "v01", "v02"]), tiny_config, 3)


def test_resumed_training_equals_uninterrupted_training(tmp_path, batch, tiny_config):
    training = build_training(tiny_config, num_steps=10, device=CPU)
    train_step(training, batch, tiny_config)
    training.epoch = 1
    save_checkpoint(tmp_path, training, tiny_config)
    expected = [train_step(training, batch, tiny_config), torch.rand(1), np.random.rand()]

    torch.manual_seed(99)
    again = build_training(tiny_config, num_steps=10, device=CPU)
    restore_training(tmp_path, again)
    assert (again.epoch, again.step) == (1, 1)
    resumed = [train_step(again, batch, tiny_config), torch.rand(1), np.random.rand()]
    assert resumed == expected
    for name, value in training.student.state_dict().items():
        assert torch.equal(again.student.state_dict()[name], value)


def test_checkpoint_restores_configuration_and_weights(tmp_path, tiny_config):
    training = build_training(tiny_config, num_steps=10, device=CPU)
    save_checkpoint(tmp_path, training, tiny_config)
    config = checkpoint_config(tmp_path)
    assert config == tiny_config
    for name, value in load_student(tmp_path, config).state_dict().items():
        assert torch.equal(training.student.state_dict()[name], value)


def test_storage_cache_of_a_checkpoint_is_ignored(tmp_path, tiny_config, load_tiny):
    theirs = load_tiny(**{"storage.path": "s3://bucket/waver", "storage.cache": str(tmp_path / "theirs")})
    save_checkpoint(tmp_path / "checkpoint", build_training(tiny_config, num_steps=10, device=CPU), theirs)
    copies = checkpoint_config(tmp_path / "checkpoint").storage.folder
    assert not copies.is_relative_to(tmp_path / "theirs")
    mine = checkpoint_config(tmp_path / "checkpoint", {"storage.cache": str(tmp_path / "mine")})
    assert mine.storage.folder.is_relative_to(tmp_path / "mine")


def test_weights_of_another_architecture_are_refused(tmp_path, tiny_config, load_tiny):
    save_checkpoint(tmp_path, build_training(tiny_config, num_steps=10, device=CPU), tiny_config)
    with pytest.raises(CheckpointError, match=r"missing from the file: text_weights\.4"):
        load_student(tmp_path, load_tiny(**{"similarity.wti_layers": 3}))
    wider = dict(tiny_config.model.backbone) | {"embed_dim": 48}
    with pytest.raises(CheckpointError, match=r"the file has \(32, 32\), the model \(32, 48\)"):
        load_student(tmp_path, load_tiny(**{"model.backbone": wider}))


@pytest.mark.parametrize("damage", ["model.safetensors", "training.pt"])
def test_damaged_files_are_named(tmp_path, damage, tiny_config):
    training = build_training(tiny_config, num_steps=10, device=CPU)
    save_checkpoint(tmp_path, training, tiny_config)
    os.truncate(tmp_path / damage, 100)
    with pytest.raises(CheckpointError, match=f"{damage} cannot be read"):
        restore_training(tmp_path, training)


@pytest.mark.parametrize("part", ["model.safetensors", "training.pt"])
def test_values_that_are_not_finite_are_named(tmp_path, batch, part, tiny_config):
    """Whoever resumes from the checkpoint, evaluates it or checks it learns which tensor of which file."""
    training = build_training(tiny_config, num_steps=10, device=CPU)
    train_step(training, batch, tiny_config)
    parameter = training.student.backbone.clip.visual.proj
    with torch.no_grad():
        moments = training.optimizer.state[parameter]["exp_avg"]
        (parameter if part == "model.safetensors" else moments)[0, 0] = torch.nan
    save_checkpoint(tmp_path, training, tiny_config)
    name = "backbone.clip.visual.proj" if part == "model.safetensors" else r"exp_avg of parameter \d+"
    message = rf"{tmp_path / part} has values that are NaN or infinite, in 1 of \d+ tensors: {name} \(1 of "
    for read in (lambda: restore_training(tmp_path, training), lambda: check_values(tmp_path)):
        with pytest.raises(CheckpointError, match=message):
            read()
    if part == "model.safetensors":
        with pytest.raises(CheckpointError, match=message):
            load_student(tmp_path, tiny_config)


def test_checkpoint_without_knowledge_file_is_incomplete(tmp_path, tiny_config):
    """Without the file it is unknown whether a leaky dictionary contaminated the model."""
    save_checkpoint(tmp_path, build_training(tiny_config, num_steps=10, device=CPU), tiny_config)
    assert is_complete(tmp_path)
    assert checkpoint_knowledge(tmp_path) is None
    (tmp_path / "knowledge.json").unlink()
    assert not is_complete(tmp_path)
    with pytest.raises(CheckpointError, match=r"it is unknown what .* was trained with"):
        checkpoint_knowledge(tmp_path)


def test_a_checkpoint_cannot_run_code(tmp_path, tiny_config):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    training = build_training(tiny_config, num_steps=10, device=CPU)
    save_checkpoint(tmp_path, training, tiny_config)
    torch.save({"epoch": Bomb()}, tmp_path / "training.pt")
    with pytest.raises(CheckpointError, match=r"training.pt cannot be read"):
        restore_training(tmp_path, training)
    assert not (tmp_path / "exploded").exists()


def test_folder_without_config_is_not_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        checkpoint_config(tmp_path)


def test_only_the_file_of_an_imported_model_may_leave_its_dictionary_open(tmp_path, tiny_config, knowledge):
    student = build_student(tiny_config)
    save_untrained(tmp_path / "imported", student, tiny_config, Origin("imported", "WAVER"))
    check_dictionary(knowledge, tmp_path / "imported")
    assert is_complete(tmp_path / "imported")
    training = build_training(tiny_config, num_steps=1, device=torch.device("cpu"))
    save_checkpoint(tmp_path / "trained", training, tiny_config)
    with pytest.raises(KnowledgeError, match=r"learned from another dictionary \(None\)"):
        check_dictionary(knowledge, tmp_path / "trained")
    (tmp_path / "imported" / "origin.json").unlink()
    assert not is_complete(tmp_path / "imported"), "neither the state of a training nor an origin"
