import os
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from waver.knowledge.errors import KnowledgeError
from waver.model.lora import adapter_parameters, frozen_names
from waver.runs.checkpoint import (
    CheckpointError,
    check_dictionary,
    check_values,
    check_weights,
    checkpoint_config,
    checkpoint_knowledge,
    is_complete,
    load_student,
    restore_training,
    save_checkpoint,
    save_untrained,
    stored_activation,
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
    save_checkpoint(tmp_path, training, tiny_config)
    expected = [train_step(training, batch, tiny_config), torch.rand(1), np.random.rand()]

    torch.manual_seed(99)
    again = build_training(tiny_config, num_steps=10, device=CPU)
    restore_training(tmp_path, again)
    assert again.step == 1
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
    torch.save({"step": Bomb()}, tmp_path / "training.pt")
    with pytest.raises(CheckpointError, match=r"training.pt cannot be read"):
        restore_training(tmp_path, training)
    assert not (tmp_path / "exploded").exists()


def test_folder_without_config_is_not_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        checkpoint_config(tmp_path)


@pytest.mark.parametrize("old", [False, True])
def test_a_checkpoint_keeps_the_activation_that_its_weights_told(tmp_path, load_tiny, old):
    """Its configuration alone would mean another: GELU, where the weights were trained with QuickGELU."""
    weights = tmp_path / "w.safetensors"
    state = build_training(load_tiny(), num_steps=1, device=CPU).student.backbone.clip.state_dict()
    save_file(state, weights, {"quick_gelu": "true"})
    config = load_tiny(**{"model.weights": str(weights)})
    training = build_training(config, num_steps=1, device=CPU)
    assert training.student.backbone.architecture["quick_gelu"]
    folder = tmp_path / "checkpoint"
    save_checkpoint(folder, training, config)
    origin = f"from {folder}"
    if old:  # as older versions wrote it, without metadata
        save_file(load_file(folder / "model.safetensors"), folder / "model.safetensors")
        origin = "from the metadata of w.safetensors; by model.backbone alone it would be GELU"
    assert stored_activation(folder) == ("QuickGELU", origin)
    pixels = torch.rand(2, 3, 16, 16)
    resumed = build_training(config, num_steps=1, device=CPU, pretrained=False)
    restore_training(folder, resumed)
    with torch.no_grad():
        expected = training.student.eval().backbone.clip.encode_image(pixels)
        for student in (load_student(folder, config), resumed.student):
            assert torch.equal(student.eval().backbone.clip.encode_image(pixels), expected)
    weights.unlink()
    if old:
        told = stored_activation(folder)
        assert told.name == "GELU"
        assert "since the weights that it started from cannot be read (model.weights: there is no file" in told.origin
    else:
        assert stored_activation(folder).name == "QuickGELU"


LORA = {"model.lora.rank": 2, "train.warmup_fraction": 0.0, "train.backbone_lr_scale": 0.1}


@pytest.fixture
def load_adapting(load_tiny, teacher_weights):
    """Returns a function that loads the small experiment with adapters to pre-trained weights."""
    return lambda **overrides: load_tiny(**{"model.weights": str(teacher_weights), **LORA, **overrides})


@pytest.fixture
def adapted(tmp_path, batch, load_adapting):
    """A run with adapters after two steps, and its checkpoint."""
    config = load_adapting()
    training = build_training(config, num_steps=10, device=CPU)
    for _ in range(2):
        train_step(training, batch, config)
    save_checkpoint(tmp_path / "checkpoint", training, config)
    return training, tmp_path / "checkpoint"


def test_adapters_are_trained_with_the_rate_of_new_parameters(adapted, load_tiny, teacher_weights):
    training, _ = adapted
    start = build_training(load_tiny(**{"model.weights": str(teacher_weights)}), num_steps=1, device=CPU)
    original = {f"backbone.{name}": value for name, value in start.student.backbone.state_dict().items()}
    state = training.student.state_dict()
    for name in frozen_names(state):
        assert torch.equal(state[name], original[re.sub(r"parametrizations\.(\w+)\.original", r"\1", name)]), name
    assert all(parameter.abs().sum() > 0 for parameter in adapter_parameters(training.student))
    rates = {id(p): group["initial_lr"] for group in training.optimizer.param_groups for p in group["params"]}
    assert {rates[id(p)] for p in adapter_parameters(training.student)} == {1e-3}
    assert rates[id(training.student.logit_scale)] == pytest.approx(1e-4)


def test_a_checkpoint_of_adapters_leaves_out_the_frozen_weights(adapted, batch):
    """It opens with those of model.weights, and gives the same embeddings."""
    training, folder = adapted
    saved = load_file(folder / "model.safetensors")
    state = training.student.state_dict()
    assert saved.keys() == state.keys() - set(frozen_names(state))
    assert {name.rpartition(".")[2] for name in saved if name.startswith("backbone.")} == {"up", "down", "logit_scale"}
    trained = sum(p.numel() for p in training.student.parameters() if p.requires_grad)
    assert 4 * trained <= (folder / "model.safetensors").stat().st_size < 4 * trained + 10_000
    assert is_complete(folder)
    config = checkpoint_config(folder)
    check_weights(folder, config)
    again = load_student(folder, config)
    with torch.no_grad():
        for student in (training.student.eval(), again.eval()):
            text = student.encode_text(batch.token_ids, batch.token_mask)
            video = student.encode_video(batch.frames, batch.frame_mask)
            found = [text.values, text.weights, video.values, video.weights]
            if student is training.student:
                expected = found
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_resumed_training_of_adapters_equals_uninterrupted_training(adapted, batch, load_adapting):
    training, folder = adapted
    expected = train_step(training, batch, load_adapting())
    again = build_training(load_adapting(), num_steps=10, device=CPU, pretrained=False)
    restore_training(folder, again)
    assert train_step(again, batch, load_adapting()) == expected


def test_adapters_open_with_no_other_weights_than_those_they_were_trained_with(adapted, tmp_path, load_adapting):
    _, folder = adapted
    config = checkpoint_config(folder)
    other = load_file(config.model.weights)
    other["visual.proj"][0, 0] += 1e-3
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(
        CheckpointError,
        match=r"adapters of other pre-trained weights than those of model.weights: .*hash",
    ):
        load_student(folder, load_adapting(**{"model.weights": str(tmp_path / "other.safetensors")}))
    missing = load_adapting(**{"model.weights": str(tmp_path / "gone.safetensors")})
    for read in (load_student, check_weights):
        with pytest.raises(CheckpointError, match=r"without the pre-trained weights .*config.yaml: .*no file .*gone"):
            read(folder, missing)


def test_a_checkpoint_without_adapters_does_not_open_with_them(tmp_path, load_adapting, tiny_config):
    save_checkpoint(tmp_path, build_training(tiny_config, num_steps=10, device=CPU), tiny_config)
    with pytest.raises(CheckpointError, match=r"holds no adapters: it was trained without model\.lora"):
        load_student(tmp_path, load_adapting())


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
