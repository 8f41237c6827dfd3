"""What prevents a stage is told before Ray starts, all at once, in the words of `waver doctor`."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hub import hub_without_files
from huggingface_hub import constants
from logs import logged
from safetensors.torch import save_file

from waver.cli.options import load_experiment
from waver.config import ConfigError, load_config
from waver.data.clip_store import ClipStore
from waver.doctor.findings import StartError
from waver.knowledge.phrases import VOCABULARY_SCHEMA
from waver.knowledge.store import build_dictionary, write_dictionary
from waver.model.pretrained.activation import set_activation
from waver.on_ray.doctor.examine import examine, run_doctor
from waver.on_ray.stages.ingest import run_ingest
from waver.on_ray.stages.match import run_match
from waver.on_ray.stages.start import check_trials, open_inputs
from waver.on_ray.stages.train import run_training
from waver.on_ray.stages.vocabulary import run_vocabulary
from waver.runs.checkpoint import save_checkpoint
from waver.runs.control import Interrupted
from waver.runs.folder import open_run
from waver.runs.inputs import load_captions
from waver.runs.train import train
from waver.tools.termination import Terminated
from waver.training.build import build_training


@pytest.fixture(scope="session", autouse=True)
def ray_session():
    """Starts no Ray: nothing here may need it."""


@pytest.fixture(scope="module")
def made(tmp_path_factory, build_project, captions, teacher_weights) -> Path:
    """A project that is ready for training, with files that its settings may name by mistake."""
    folder = build_project(tmp_path_factory.mktemp("made"), captions, model={"weights": str(teacher_weights)})
    shutil.copy(teacher_weights, folder / "weights.safetensors")
    (folder / "cut.safetensors").write_bytes(teacher_weights.read_bytes()[:-100])
    (folder / "empty.safetensors").touch()
    save_file({"visual.conv1.weight": torch.zeros(2, 3, 4, 4)}, folder / "other.safetensors")
    for video in (folder / "videos").iterdir():
        video.write_bytes(b"some video")
    return folder


@pytest.fixture
def project(made, monkeypatch) -> Path:
    monkeypatch.chdir(made)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return made


WRONG = {
    "weights that are gone": ({"model.weights": "gone.safetensors"}, {"weights"}),
    "a folder in place of weights": ({"model.weights": "videos"}, {"weights"}),
    "an empty file of weights": ({"model.weights": "empty.safetensors"}, {"weights"}),
    "weights that are cut off": ({"model.weights": "cut.safetensors"}, {"weights"}),
    "weights of another architecture": ({"model.weights": "other.safetensors"}, {"weights"}),
    "a backbone misspelt": ({"model.backbone": "ViT-B-23"}, {"model"}),
    "a tower that is no mapping": ({"model.backbone.vision_cfg": 3}, {"model"}),
    "an impossible tower": ({"model.backbone.vision_cfg.patch_size": 0}, {"model"}),
    "no repository of a hub": ({"model.weights": "hf-hub:some/body/clip"}, {"weights"}),
    "another size of frames": ({"video.size": 32}, {"clip store"}),
    "no knowledge": ({"knowledge.top_k": 3}, {"knowledge"}),
    "more workers than clips": (
        {
            "resources": {"workers": 14, "cpus_per_worker": 0.1, "loaders_per_worker": 0},
            "train.global_batch_size": 28,
        },
        {"batch"},
    ),
    "a batch that is lowered": ({"train.global_batch_size": 128}, set()),
    "GPUs that are not here": ({"resources.gpus_per_worker": 99}, {"workers"}),
    "labels that this machine has not": ({"resources.node_labels": {"a": "b"}}, {"cluster"}),
    "storage in a file": ({"storage.path": "experiment.yaml/storage"}, {"clip store", "storage"}),
    "videos in a file": ({"data.videos": "experiment.yaml"}, {"annotations"}),
    "several at once": (
        {
            "model.weights": "gone.safetensors",
            "resources.gpus_per_worker": 99,
            "video.size": 32,
            "storage.path": "/proc/x",
        },
        {"weights", "workers", "clip store", "storage"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRONG)
def test_training_and_doctor_tell_the_same(project, name):
    overrides, expected = WRONG[name]
    config = load_config("experiment.yaml", overrides)
    errors = [finding for finding in examine(config, before="train") if finding.level == "error"]
    assert {finding.check for finding in errors} == expected
    if not expected:
        assert open_inputs(config, "train").store is not None
        return
    with pytest.raises(StartError) as told:
        run_training(config)
    for finding in errors:
        assert f"  {finding.check}: {finding.found}".replace("\n", "\n  ") in str(told.value)
    assert str(told.value).splitlines()[0].endswith(f": {len(errors)} error{'s' if len(errors) > 1 else ''}")


def test_the_checks_return_what_training_reads(project):
    inputs = open_inputs(load_config("experiment.yaml"), "train")
    assert (len(inputs.captions), len(inputs.store.ok_clip_ids())) == (61, 26)
    assert inputs.knowledge is None


def test_a_temporary_folder_and_a_cluster_are_among_the_errors(project, monkeypatch):
    config = load_config("experiment.yaml", {"model.weights": "gone.safetensors"})
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * 100)
    with pytest.raises(
        StartError, match=r"2 errors\n(.|\n)*gone.safetensors: .*\n  temporary folder: TMPDIR=/tmp/x+ is"
    ):
        run_training(config)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with pytest.raises(
        StartError, match=r"2 errors\n(.|\n)*gone.safetensors: .*\n  cluster: no Ray cluster answers at RAY_"
    ):
        run_training(config)


@pytest.mark.slow
def test_workers_elsewhere_may_download_what_this_machine_cannot(project, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "nowhere")
    config = load_config("experiment.yaml", {"model.backbone": "RN50", "model.weights": "openai"})
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    with hub_without_files(monkeypatch):
        pass  # nothing answers at its address any more
    with pytest.raises(StartError, match=r"1 error\n  cluster: "):
        run_training(config)
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(StartError, match=r"1 error\n  weights: (.|\n)*download http"):
        run_training(config)


@pytest.mark.parametrize(
    ("run", "overrides", "expected"),
    [
        (run_ingest, {"storage.path": "experiment.yaml/x"}, ["storage: "]),
        (
            run_ingest,
            {"data.annotations": "gone.jsonl", "ingest.node_labels": {"a": "b"}},
            ["gone.jsonl", "node labels"],
        ),
        (run_vocabulary, {"vocabulary.parser": "no_parser", "storage.path": "/proc/x"}, ["no_parser", "/proc cannot"]),
        (run_vocabulary, {"knowledge.released": ["a.json"]}, ["no such file", "have their own phrases"]),
        (run_match, {"model.weights": "gone.safetensors"}, ["gone.safetensors", "there is no dictionary in"]),
        (run_match, {"model.weights": None, "video.size": 32}, ["random weights", "there is no clip store in"]),
    ],
)
def test_every_stage_tells_all_that_prevents_it(project, run, overrides, expected):
    with pytest.raises(StartError) as told:
        run(load_config("experiment.yaml", overrides))
    assert [part for part in expected if part not in str(told.value)] == []


def test_the_log_of_a_run_tells_weights_and_activation(project, teacher_weights, tmp_path):
    config = load_config("experiment.yaml", {"storage.cache": None, "name": "told"})
    captions, store = load_captions(config), ClipStore(config.clip_store)
    with logged() as said, pytest.raises(Terminated):
        train(config, captions, store, folder=tmp_path / "run", launch=lambda *run: Interrupted("stop", 0))
    activation = "GELU, because model.backbone has no quick_gelu"
    weights = f"the backbone has the weights {teacher_weights}; its activation is {activation}"
    assert weights in said
    checkpoint = tmp_path / "run/checkpoint_epoch_0001"
    training = build_training(config, num_steps=1, device=torch.device("cpu"))
    set_activation(training.student.backbone, quick=True)
    save_checkpoint(checkpoint, training, config)
    with logged() as said, pytest.raises(Terminated):
        train(config, captions, store, folder=tmp_path / "run", launch=lambda *run: Interrupted("stop", 0))
    assert weights not in said
    assert f"the activation of the backbone is QuickGELU, from {checkpoint}" in said


def test_an_empty_dictionary_prevents_matching(project, tmp_path):
    config = load_config("experiment.yaml", {"data.validation_seed": 3})
    write_dictionary(config.dictionary, build_dictionary(VOCABULARY_SCHEMA.empty_table(), leaky=False))
    with pytest.raises(
        StartError, match=r"1 error\n  dictionary: .* has no phrase: delete the folder, and run `waver voc"
    ):
        run_match(config)


def test_a_sweep_is_checked_once_for_each_difference_that_matters(project):
    def configs(**overrides):
        return [load_config("experiment.yaml", {"train.lr": lr, **overrides}) for lr in (0.1, 0.2)]

    check_trials(configs(**{"video.size": 32}))  # the sweep itself would ingest them
    trained = configs()[0]
    open_run(trained.run_folder, trained, {"num_train_clips": 3})
    check_trials(configs())  # trials have folders of their own, so a run of the base experiment is in no one's way
    with pytest.raises(StartError, match=r"waver tune cannot start: 1 error\n  weights: .*gone.safetensors"):
        check_trials([*configs(), *configs(**{"model.weights": "gone.safetensors"})])


def test_mistakes_of_a_configuration_do_not_hide_what_it_names(project):
    (project / "wrong.yaml").write_text(
        "name: wrong\n"
        "data: {format: table, annotations: captions.jsonl, videos: nowhere, splitt: 3}\n"
        "model: {backbone: ViT-B-23, weights: gone.pt, temporal: seqTransff}\n"
        "train: {epoch: 3}\n"
        "knowledge: {released: [gone.json]}\n"
    )
    shown = []
    run_doctor(Path("wrong.yaml"), dict, before="train", show=shown.extend)
    assert [finding.check for finding in shown] == [
        "configuration",
        "annotations",
        "model",
        "weights",
        "released phrases",
    ]
    with pytest.raises(ConfigError) as told:
        load_experiment(Path("wrong.yaml"), [], None)
    for finding in shown[1:]:
        assert finding.found.replace("\n", "\n  ") in str(told.value)
    named = ("data.splitt: ", "model.temporal: ", "train.epoch: ", "data.videos", "model.backbone: ", "model.weights: ")
    assert [part for part in named if part not in str(told.value)] == []


def test_settings_that_depend_on_a_mistake_are_not_judged(project):
    """The weights would fit the backbone of the default, which nobody asked for."""
    (project / "typo.yaml").write_text(
        "name: typo\ndata: {format: tables, annotations: a.jsonl, videos: v}\nmodel: {bakbone: RN50, weights: openai}\n"
    )
    shown = []
    run_doctor(Path("typo.yaml"), dict, before="train", show=shown.extend)
    assert [finding.check for finding in shown] == ["configuration"]
    assert json.dumps(shown[0].found).count("\\n") == 2
