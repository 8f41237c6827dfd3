"""Training and evaluation from embeddings of frozen towers, without a cluster."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from logs import logged
from safetensors.torch import load_file, save_file

from waver.config import load_config
from waver.data.embedding_store import EmbeddingError
from waver.knowledge.phrases import VOCABULARY_SCHEMA
from waver.knowledge.store import Knowledge, build_dictionary, create_knowledge
from waver.model.backbone import Backbone
from waver.on_ray.stages.evaluate import run_evaluation, run_zero_shot
from waver.on_ray.stages.match import _Embedder, _Matcher
from waver.on_ray.tuning.shared import find_shared, make_shared
from waver.runs.checkpoint import checkpoint_config
from waver.runs.embeddings import Needs, embed_missing, training_needs
from waver.runs.folder import find_checkpoint, open_run
from waver.runs.inputs import load_captions, open_store
from waver.runs.tracking import read_metrics
from waver.runs.train import plan_run
from waver.runs.train_loop import TrainingJob, embed_inputs, train_job
from waver.runs.untrained import zero_shot_experiment

FROZEN = {"train.backbone_lr_scale": 0, "train.epochs": 3, "resources.loaders_per_worker": 0, "train.lr": 1e-2}


@pytest.fixture(scope="session", autouse=True)
def ray_session():
    """Starts no Ray: one worker evaluates in this process."""


@pytest.fixture(scope="module")
def project(tmp_path_factory, build_project, captions, teacher_weights) -> Path:
    folder, settings = tmp_path_factory.mktemp("project"), {"resources": {"workers": 1}, "tracking": {"images": False}}
    return build_project(folder, captions, teacher_weights, model={"temporal": "seqTransf"}, **settings)


def experiment(project: Path, **overrides):
    return load_config(project / "experiment.yaml", {**FROZEN, **overrides})


def fit(config) -> tuple[TrainingJob, list[dict]]:
    """Trains in this process without Ray; returns the job, and its rows of metrics without what time decides."""
    captions = load_captions(config)
    store = open_store(config, captions)
    plan = plan_run(config, captions, store)
    open_run(config.run_folder, config, plan.data)
    job = embed_inputs(TrainingJob(config, plan.rows, store.path, None, config.run_folder, ""), captions)
    train_job(job, captions, device=torch.device("cpu"))
    rows = read_metrics(config.run_folder)
    timed = ("clips_per_s", "data_wait_share", "memory")
    return job, [{key: row[key] for key in row if not key.startswith(timed)} for row in rows]


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
def test_a_store_in_full_precision_gives_the_metrics_of_pixels(project, with_captions, towers_run):
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
def test_the_default_precision_is_within_a_thousandth(project):
    _, pixels = fit(experiment(project, name="exact", **{"embeddings.use": "never"}))
    _, stored = fit(experiment(project, name="rounded", **{"embeddings.captions": True}))
    for ours, theirs in zip(stored, pixels, strict=True):
        loss = {name: value for name, value in theirs.items() if name.startswith("loss")}
        assert {name: ours[name] for name in loss} == pytest.approx(loss, rel=1e-3)
    for ours, theirs in zip(evaluations(stored), evaluations(pixels), strict=True):
        assert ours["t2v/MnR"] == pytest.approx(theirs["t2v/MnR"], rel=1e-3)


@pytest.fixture(scope="module")
def trained(project):
    """A frozen run with all of its embeddings stored in full precision: configuration of its checkpoint, folder."""
    config = experiment(project, name="whole", **{"embeddings.precision": "fp32", "embeddings.captions": True})
    fit(config)
    return checkpoint_config(find_checkpoint(config.run_folder)), find_checkpoint(config.run_folder)


def _changed(config, **settings):
    return config.model_copy(update={"embeddings": config.embeddings.model_copy(update=settings)})


@pytest.mark.slow
def test_a_run_is_evaluated_from_embeddings_and_from_pixels_alike(trained, towers_run):
    config, checkpoint = trained
    pixels = run_evaluation(checkpoint, _changed(config, use="never"), split="test")
    assert set(towers_run) == {"encode_frames", "encode_tokens"}
    run_evaluation(checkpoint, config, split="test")
    towers_run.clear()
    stored = run_evaluation(checkpoint, config, split="test")
    assert not towers_run, "clips and captions of test are stored now, and no tower runs"
    assert stored["metrics"] == pixels["metrics"]
    assert stored["missing_clips"] == pixels["missing_clips"] == ["v20"], "it stays in the gallery"
    rounded = run_evaluation(checkpoint, _changed(config, precision="fp16"), split="test")
    one_rank = 1 / rounded["num_queries"]  # rounding may swap two clips that are nearly as near
    assert rounded["metrics"]["t2v/MnR"] == pytest.approx(pixels["metrics"]["t2v/MnR"], abs=1.01 * one_rank)


@pytest.mark.slow
def test_a_run_is_evaluated_without_the_file_of_its_weights(project, trained):
    config, checkpoint = trained
    shutil.rmtree(config.frame_embeddings)
    weights = project / "clip.safetensors"
    hidden = weights.rename(weights.with_name("hidden"))
    try:
        run_evaluation(checkpoint, config, split="test")
    finally:
        hidden.rename(weights)


@pytest.mark.slow
def test_a_run_of_other_weights_does_not_read_the_embeddings(project, trained):
    config, _ = trained
    run_evaluation(trained[1], config, split="validation")
    changed = load_file(project / "clip.safetensors")
    changed["visual.proj"] = changed["visual.proj"] * 1.01
    original = (project / "clip.safetensors").read_bytes()
    save_file(changed, project / "clip.safetensors")
    try:
        settings = {"embeddings.precision": "fp32", "embeddings.captions": True}
        with pytest.raises(EmbeddingError, match=r"was made from something else \(tower: .*delete the folder"):
            fit(experiment(project, name="other", **settings))
    finally:
        (project / "clip.safetensors").write_bytes(original)


@pytest.mark.slow
def test_zero_shot_from_embeddings_and_from_pixels_alike(project, towers_run):
    settings = {"embeddings.precision": "fp32", "embeddings.use": "auto"}
    config = zero_shot_experiment(experiment(project, name="alone", **settings))
    pixels = run_zero_shot(_changed(config, use="never"), split="test")
    run_zero_shot(config, split="test")
    towers_run.clear()
    stored = run_zero_shot(config, split="test")
    assert set(towers_run) == {"encode_tokens"}, "each caption is read once"
    assert stored["metrics"] == pixels["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        {"train.backbone_lr_scale": 1, "train.freeze": ["vision", "text.1"]},
        {"train.backbone_lr_scale": 1, "train.freeze": ["text"], "embeddings.captions": True},
        {"train.backbone_lr_scale": 1, "model.lora": {"rank": 2, "where": "text"}},
        {"train.micro_batch_size": 2, "embeddings.captions": True},
    ],
    ids=["vision", "text", "lora", "micro batches"],
)
def test_every_kind_of_frozen_run_gives_the_metrics_of_pixels(project, how, request):
    name = request.node.callspec.id.replace(" ", "-")
    how = how | {"train.epochs": 1, "train.lr": 1e-3}
    _, pixels = fit(experiment(project, name=f"{name}-pixels", **how, **{"embeddings.use": "never"}))
    job, stored = fit(experiment(project, name=name, **how, **{"embeddings.precision": "fp32"}))
    assert job.embeddings.frames or job.embeddings.tokens
    for ours, theirs in zip(stored, pixels, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_clips_are_matched_from_embeddings_and_from_pixels_alike(project):
    config = experiment(project, **{"knowledge.num_matches": 4, "embeddings.precision": "fp32"})
    captions = load_captions(config)
    store, texts = open_store(config, captions), sorted(set(captions["caption"].to_pylist()))
    columns = [range(len(texts)), texts, [1] * len(texts)]
    phrases = pa.table(columns, names=VOCABULARY_SCHEMA.names).cast(VOCABULARY_SCHEMA)
    dictionary, block = build_dictionary(phrases, leaky=False), pa.table({"clip_id": store.ok_clip_ids()})
    found = {}
    for precision in ("pixels", "fp32", "fp16"):
        folder = config.storage.folder / "knowledge" / precision
        create_knowledge(folder, dictionary, source="matched", teacher="test", num_matches=4)
        _Embedder(config, folder, "embeddings")(pa.table({"first": [0]}))
        changed = _changed(config, precision="fp32" if precision == "pixels" else precision)
        needs = Needs() if precision == "pixels" else Needs(store.ok_clip_ids())
        _Matcher(changed, folder, store.path, 4, embed_missing(changed, store, needs))(block)
        found[precision] = Knowledge(folder).matches
    assert found["fp32"]["phrase_ids"].equals(found["pixels"]["phrase_ids"])
    scores = {name: np.array(matches["scores"].to_pylist()) for name, matches in found.items()}
    np.testing.assert_allclose(scores["fp32"], scores["pixels"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(scores["fp16"], scores["pixels"], rtol=0, atol=1e-3)


@pytest.mark.slow
def test_trials_of_a_sweep_share_embeddings_that_are_made_before_them(project):
    trained = experiment(project, name="trained", **{"train.backbone_lr_scale": 1})
    assert [artifact.what for artifact in find_shared([trained])] == ["clip store"]
    settings = {"embeddings.precision": "bf16", "text.max_words": 9}
    points = [experiment(project, name=f"trial-{lr}", **settings, **{"train.lr": lr}) for lr in (1e-3, 1e-2)]
    before = {artifact.what: artifact for artifact in find_shared(points)}
    assert (before["embeddings"].trials, before["embeddings"].there) == (2, False)
    make_shared(points)
    made = {artifact.what: artifact for artifact in find_shared(points)}["embeddings"]
    assert (made.path, made.there) == (points[0].frame_embeddings, True)
    with logged() as said:
        embed_missing(points[1], *_needs(points[1]))
    assert not [line for line in said if "once" in line], "a trial finds all that it reads"
