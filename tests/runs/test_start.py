"""Runs that start from the weights of another run."""

import json
from pathlib import Path

import pytest
import torch

from waver.config import ExperimentConfig, load_config
from waver.data.embedding_store import EmbeddingError
from waver.doctor.findings import Checks
from waver.doctor.preflight import check_inputs
from waver.knowledge.errors import KnowledgeError
from waver.on_ray.stages.train import train_in_process
from waver.runs.checkpoint import CheckpointError, load_student, save_checkpoint
from waver.runs.folder import RunError, best_checkpoint
from waver.runs.inputs import load_captions, open_store
from waver.runs.start import find_start
from waver.runs.train import train
from waver.training.build import build_training

SETTINGS = {
    "resources.workers": 1,
    "resources.loaders_per_worker": 0,
    "tracking.images": False,
    "train.epochs": 1,
    "embeddings.precision": "fp32",
}
UNMOVED = {"train.lr": 1e-30, "train.weight_decay": 0}


@pytest.fixture(scope="module")
def project(tmp_path_factory, build_project, captions, teacher_weights) -> Path:
    return build_project(tmp_path_factory.mktemp("project"), captions, teacher_weights)


def experiment(project: Path, name: str, **overrides) -> ExperimentConfig:
    return load_config(project / "experiment.yaml", {"name": name} | SETTINGS | overrides)


def run(config: ExperimentConfig) -> dict:
    captions = load_captions(config)
    return train(config, captions, open_store(config, captions), launch=train_in_process)


@pytest.fixture(scope="module")
def frozen(project) -> ExperimentConfig:
    """A finished run with a frozen backbone."""
    config = experiment(project, "frozen", **{"train.backbone_lr_scale": 0})
    run(config)
    return config


@pytest.mark.slow
def test_a_run_starts_from_the_weights_of_another_and_says_so(project, frozen, said):
    """Its learning rate moves no weight, so that its metrics are those of the checkpoint that it starts from."""
    checkpoint, metrics = best_checkpoint(frozen.run_folder)
    config = experiment(project, "tuned", **{"train.start_from": frozen.run_folder, **UNMOVED})
    assert (
        find_start(config) == find_start(experiment(project, "tuned", **{"train.start_from": checkpoint})) == checkpoint
    )
    result = run(config)
    assert result["validation"] == metrics
    assert result["steps"] == 3
    assert result["zero_shot"] is None, "its backbone need not be the pre-trained one"
    started = result["started_from"]
    assert (started["checkpoint"], started["name"], started["config"]) == (str(checkpoint), "frozen", frozen.digest())
    assert started["validation"] == metrics
    assert started == json.loads((config.run_folder / "started_from.json").read_text())
    assert f"training starts from the weights of {checkpoint}, with a new optimizer and schedule" in "\n".join(said)
    before, after = (load_student(best_checkpoint(each.run_folder)[0], each).state_dict() for each in (frozen, config))
    for name, tensor in before.items():
        assert torch.allclose(tensor, after[name], rtol=0, atol=1e-25), name


@pytest.mark.slow
def test_a_run_that_starts_from_another_moves_the_backbone_and_keeps_its_start(project, frozen):
    config = experiment(project, "moves", **{"train.start_from": frozen.run_folder})
    run(config)
    before, after = (load_student(best_checkpoint(each.run_folder)[0], each).state_dict() for each in (frozen, config))
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("backbone."))
    with pytest.raises(RunError, match=r"train\.start_from: .*frozen in the folder, None now"):
        run(experiment(project, "moves"))


def test_a_start_that_does_not_fit_is_an_error_before_training(tmp_path, load_tiny):
    config = load_tiny()
    save_checkpoint(tmp_path / "checkpoint", build_training(config, num_steps=1, device=torch.device("cpu")), config)
    fitting = load_tiny(**{"train.start_from": tmp_path / "checkpoint"})
    assert find_start(config) is None
    assert find_start(fitting) == tmp_path / "checkpoint"
    for given, settings, expected in (
        (
            "checkpoint",
            {"similarity.wti_layers": 3},
            r"train.start_from: .*model.safetensors holds another architecture",
        ),
        ("nothing", {}, r"train.start_from: .*nothing does not exist"),
    ):
        wrong = load_tiny(**{"train.start_from": tmp_path / given, **settings})
        with pytest.raises(CheckpointError, match=expected):
            find_start(wrong)
        checks = Checks()
        check_inputs(checks, wrong, "tune")
        assert any(finding.check == "start" and finding.level == "error" for finding in checks.findings)


def test_phrases_of_a_start_are_those_of_the_run(tmp_path, load_knowing, load_tiny, knowledge, teacher_weights):
    config = load_knowing(**{"loss.knowledge": 1, "knowledge.fusion": "none"})
    training = build_training(
        config, num_steps=1, device=torch.device("cpu"), phrases=knowledge.phrase_embeddings(), pretrained=False
    )
    save_checkpoint(tmp_path / "checkpoint", training, config, knowledge)
    again = load_knowing(
        **{"loss.knowledge": 1, "knowledge.fusion": "none", "train.start_from": tmp_path / "checkpoint"}
    )
    assert find_start(again, knowledge) == tmp_path / "checkpoint"
    path = tmp_path / "checkpoint" / "knowledge.json"
    summary = json.loads(path.read_text())
    path.write_text(json.dumps(summary | {"digest": "another"}))
    with pytest.raises(KnowledgeError, match="learned from another dictionary"):
        find_start(again, knowledge)
    plain = load_tiny(**{"model.weights": str(teacher_weights), "train.start_from": tmp_path / "checkpoint"})
    assert find_start(plain) == tmp_path / "checkpoint"
    path.write_text(json.dumps(summary | {"leaky": True}))
    with pytest.raises(CheckpointError, match="learned from a leaky dictionary"):
        find_start(plain)


def test_the_hash_of_an_experiment_without_a_start_is_as_before(load_tiny):
    assert "start_from" not in load_tiny().identity()["train"]
    assert load_tiny(**{"train.start_from": "run"}).identity()["train"]["start_from"].endswith("/run")


@pytest.mark.slow
def test_embeddings_of_the_pretrained_tower_do_not_replace_a_tower_that_was_trained(project):
    run(experiment(project, "moved"))
    settings = {"train.start_from": experiment(project, "moved").run_folder, "train.freeze": ["vision"]}
    with pytest.raises(EmbeddingError, match=r"moved has trained the tower .*: set embeddings\.use to never"):
        run(experiment(project, "refrozen", **settings))
    assert run(experiment(project, "refrozen", **settings, **{"embeddings.use": "never"}))["steps"] == 3
