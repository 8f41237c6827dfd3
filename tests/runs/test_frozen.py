"""Training and evaluation from embeddings of frozen towers, without a cluster."""

import shutil
from pathlib import Path

import pytest
import torch

from waver.config import load_config
from waver.model.backbone import Backbone
from waver.runs.embeddings import embed_missing, training_needs
from waver.runs.folder import open_run
from waver.runs.inputs import load_captions, open_store
from waver.runs.tracking import read_metrics
from waver.runs.train import plan_run
from waver.runs.train_loop import TrainingJob, embed_inputs, train_job

FROZEN = {"train.backbone_lr_scale": 0, "train.epochs": 3, "resources.loaders_per_worker": 0, "train.lr": 1e-2}


@pytest.fixture(scope="module")
def project(tmp_path_factory, build_project, captions, teacher_weights) -> Path:
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(teacher_weights, folder / "clip.safetensors")
    settings = {"weights": str(folder / "clip.safetensors"), "temporal": "seqTransf"}
    return build_project(folder, captions, model=settings, resources={"workers": 1}, tracking={"images": False})


def experiment(project: Path, **overrides):
    return load_config(project / "experiment.yaml", {**FROZEN, **overrides})


@pytest.fixture
def fit():
    """Trains in this process without Ray; returns the job, and its rows of metrics without what time decides."""

    def run(config):
        captions = load_captions(config)
        store = open_store(config, captions)
        plan = plan_run(config, captions, store)
        open_run(config.run_folder, config, plan.data)
        job = embed_inputs(TrainingJob(config, plan.rows, store.path, None, config.run_folder, ""), captions)
        train_job(job, captions, device=torch.device("cpu"))
        rows = read_metrics(config.run_folder)
        timed = ("clips_per_s", "data_wait_share", "memory")
        return job, [{key: row[key] for key in row if not key.startswith(timed)} for row in rows]

    return run


@pytest.fixture
def towers_run(monkeypatch):
    """Returns the list of what passes the towers from now on."""
    passed = []
    for name in ("encode_frames", "encode_tokens"):
        real = getattr(Backbone, name)

        def counted(self, *arguments, real=real, name=name):
            passed.append(name)
            return real(self, *arguments)

        monkeypatch.setattr(Backbone, name, counted)
    return passed


def evaluations(rows: list[dict]) -> list[dict]:
    return [row for row in rows if "split" in row]


@pytest.mark.slow
@pytest.mark.parametrize("with_captions", [False, True])
def test_a_store_in_full_precision_gives_the_metrics_of_pixels(project, fit, with_captions, towers_run):
    _, pixels = fit(experiment(project, name=f"pixels-{with_captions}", **{"embeddings.use": "never"}))
    settings = {"embeddings.precision": "fp32", "embeddings.captions": with_captions}
    config = experiment(project, name=f"stored-{with_captions}", **settings)
    embed_missing(config, *_needs(config))
    towers_run.clear()
    job, stored = fit(config)
    assert set(towers_run) == ({"encode_tokens"} if not with_captions else set())
    assert (job.embeddings.frames is not None, job.embeddings.tokens is not None) == (True, with_captions)
    assert evaluations(stored) == evaluations(pixels)
    assert len(evaluations(stored)) == 4, "before training, and three epochs"
    for ours, theirs in zip(stored, pixels, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    assert len({row["t2v/MnR"] for row in evaluations(stored)}) > 1, "the runs learn something"


def _needs(config):
    captions = load_captions(config)
    store = open_store(config, captions)
    return store, training_needs(config, captions, store, plan_run(config, captions, store).rows)


@pytest.mark.slow
def test_the_default_precision_is_within_a_thousandth(project, fit):
    _, pixels = fit(experiment(project, name="exact", **{"embeddings.use": "never"}))
    _, stored = fit(experiment(project, name="rounded", **{"embeddings.captions": True}))
    for ours, theirs in zip(stored, pixels, strict=True):
        loss = {name: value for name, value in theirs.items() if name.startswith("loss")}
        assert {name: ours[name] for name in loss} == pytest.approx(loss, rel=1e-3)
    for ours, theirs in zip(evaluations(stored), evaluations(pixels), strict=True):
        assert ours["t2v/MnR"] == pytest.approx(theirs["t2v/MnR"], rel=1e-3)
