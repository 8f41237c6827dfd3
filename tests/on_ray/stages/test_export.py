"""Embeddings of runs, and their README, whose Python finds the R@1 of `waver evaluate` where waver is not installed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

from waver.cli import app
from waver.config import load_config
from waver.on_ray.stages.evaluate import run_evaluation
from waver.on_ray.stages.export import export_run
from waver.runs.checkpoint import checkpoint_config, load_student, save_checkpoint
from waver.runs.inputs import load_captions, open_store
from waver.search.export import FORMATS, ExportError
from waver.training.build import build_training
from waver.training.step import make_batch, train_epoch

KINDS = ("wti", "ti", "dp", "xclip")
NUM_STEPS = 30


@pytest.fixture(scope="session", autouse=True)
def ray_session():
    """Starts no Ray: an export computes in this process."""


@pytest.fixture(scope="module")
def project(tmp_path_factory, build_project, captions, teacher_weights) -> Path:
    """A project with one clip that could not be decoded, and captions that two or three clips share."""
    rows = captions.to_pylist()
    for row in rows:
        row["caption"] = f"the {row['caption'].split()[2]} moves{'!' * row['caption_index']}"
    shared = pa.Table.from_pylist(rows, schema=captions.schema)
    return build_project(tmp_path_factory.mktemp("project"), shared, teacher_weights, resources={"workers": 1})


@pytest.fixture(scope="module")
def checkpoint(project):
    """Returns a function that makes a checkpoint with an interaction; it has learned the clips of test for a few steps."""

    def make(kind: str) -> Path:
        folder = project / "storage" / "runs" / kind / "checkpoint_epoch_0001"
        if folder.exists():
            return folder
        config = load_config(project / "experiment.yaml", {"similarity.kind": kind, "model.temporal": "seqTransf"})
        captions = load_captions(config)
        store = open_store(config, captions)
        splits, clips = captions["split"].to_pylist(), captions["clip_id"].to_pylist()
        decoded = set(store.ok_clip_ids())
        rows = {clip: row for row, clip in enumerate(clips) if splits[row] == "test" and clip in decoded}
        batch = make_batch(captions, np.array(list(rows.values())), store.read(list(rows)), config, len(rows), None)
        training = build_training(config, num_steps=NUM_STEPS, device=torch.device("cpu"))
        for _ in train_epoch(training, iter([batch] * NUM_STEPS), config):
            pass
        save_checkpoint(folder, training, config)
        return folder

    return make


def export(checkpoint: Path, folder: Path, format: str, **options):
    options = {"split": "test", "of_run": False} | options
    return export_run(checkpoint, checkpoint_config(checkpoint), folder, format, **options)


def blocks(folder: Path) -> list[str]:
    """Returns the Python of a README."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)


def run_without_waver(code: str, folder: Path) -> str:
    """Runs Python in a folder, where waver cannot be imported; returns what it prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    guarded = f"import sys\nsys.modules['waver'] = sys.modules['torch'] = None\n{code}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", guarded], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_readme_finds_the_recall_of_evaluate(project, checkpoint, tmp_path, kind, format):
    result = run_evaluation(checkpoint(kind), checkpoint_config(checkpoint(kind)), split="test")
    export(checkpoint(kind), tmp_path / "out", format)
    load, scores, recall, excuse = blocks(tmp_path / "out")[:4]
    printed = run_without_waver("".join([load, scores, recall, excuse, recall]), tmp_path / "out").split()
    expected = [result["metrics"]["t2v/R@1"], result["variants"]["excused"]["t2v/R@1"]]
    assert [float(number) for number in printed] == expected
    assert 100 / 9 < expected[0] <= expected[1]
    assert result["num_missing_clips"] == 1
    assert len([line for line in scores.splitlines() if line]) <= 15
    written = json.loads((tmp_path / "out" / "export.json").read_text())
    assert written["metrics"] == result["metrics"]
    assert written["protocol"]["num_queries"] == result["num_queries"] == written["num_texts"]
    if kind == "dp":
        assert written["pooled_metrics"] == result["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_readme_finds_every_score(checkpoint, tmp_path, kind, monkeypatch):
    run = export(checkpoint(kind), tmp_path, "npz")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("".join(blocks(tmp_path)[:2]), names)
    student = load_student(checkpoint(kind), checkpoint_config(checkpoint(kind)))
    with torch.no_grad():
        expected = student.similarity(run.evaluation.text, run.evaluation.video)
    np.testing.assert_allclose(names["scores"], expected, atol=1e-6)
    assert names["scores"].std() > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_vector_databases_take_the_pooled_vectors(checkpoint, tmp_path, format):
    pytest.importorskip("faiss")
    pytest.importorskip("lancedb")
    export(checkpoint("dp"), tmp_path, format)
    *_, faiss, lance = blocks(tmp_path)
    assert len(faiss.splitlines()) == len(lance.splitlines()) == 1
    load, scores = blocks(tmp_path)[:2]
    check = """
best = np.argsort(-scores, axis=1)[:, 0]
np.testing.assert_array_equal(rows[:, 0], best)
np.testing.assert_allclose(np.take_along_axis(scores, rows[:, :1], 1), found[:, :1], rtol=1e-5)
"""
    unguarded = "import sys\ndel sys.modules['torch']\n"  # lancedb asks whether torch is there
    run_without_waver(load + scores + faiss + check, tmp_path)
    run_without_waver(unguarded + load + scores + lance + check.partition("rows")[0].rpartition("\n")[0] + """
assert [answers[0]["row"] for answers in found] == best.tolist()
""", tmp_path)  # fmt: skip


def test_a_cross_encoder_has_no_product_that_gives_its_scores(checkpoint, tmp_path):
    export(checkpoint("xti"), tmp_path, "npz")
    text = (tmp_path / "README.md").read_text()
    assert "No product of embeddings gives the score of this model (`xti`)" in text
    assert "scores =" not in text
    assert len(blocks(tmp_path)) == 3


def test_the_files_hold_what_the_model_compares(checkpoint, tmp_path):
    run = export(checkpoint("wti"), tmp_path, "npz")
    texts, videos = (np.load(tmp_path / f"{name}.npz", allow_pickle=False) for name in ("texts", "videos"))
    for items, embeddings in ((texts, run.evaluation.text), (videos, run.evaluation.video)):
        mask = embeddings.mask.numpy()
        np.testing.assert_array_equal(items["mask"], mask)
        np.testing.assert_array_equal(items["values"][mask], embeddings.values.numpy()[mask])
        assert not items["values"][~mask].any()
        np.testing.assert_allclose(items["weights"].sum(1), 1, rtol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(items["pooled"], axis=1), 1, rtol=1e-5)
    assert "v20" not in videos["id"]
    assert set(texts["clip_id"][texts["clip"] == -1]) == {"v20"}
    found = texts["clip"] >= 0
    np.testing.assert_array_equal(videos["id"][texts["clip"][found]], texts["clip_id"][found])
    assert texts["id"][0] == "v19#0"
    assert list(texts["caption"]) == list(run.queries.texts)


def test_only_the_same_export_is_replaced(checkpoint, tmp_path):
    folder = tmp_path / "out"
    export(checkpoint("dp"), folder, "npz")
    (folder / "texts.npz").write_bytes(b"damaged")
    export(checkpoint("dp"), folder, "npz")
    assert (folder / "texts.npz").stat().st_size > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing temporary is left"
    with pytest.raises(ExportError, match=r"holds another export \(split: test there, validation requested\)"):
        export(checkpoint("dp"), folder, "npz", split="validation")
    with pytest.raises(ExportError, match=r"holds another export \(format: npz there, parquet requested\)"):
        export(checkpoint("dp"), folder, "parquet")
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").touch()
    with pytest.raises(ExportError, match="mine is not empty, and not an export by waver: choose another folder"):
        export(checkpoint("dp"), other, "npz")
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]
    (folder / "lancedb").mkdir()
    with pytest.raises(ExportError, match=r"export and other files, which would be deleted \(lancedb\): move them"):
        export(checkpoint("dp"), folder, "npz")


def test_the_command_writes_the_test_split_of_a_run_and_says_its_recall(checkpoint, tmp_path, said):
    folder = tmp_path / "out"
    command = ["export", str(checkpoint("dp")), "--to", str(folder), "--format", "safetensors"]
    done = CliRunner().invoke(app, command, catch_exceptions=False)
    assert done.exit_code == 0
    written = json.loads((folder / "export.json").read_text())
    assert any(f"t2v R@1 of the model is {written['metrics']['t2v/R@1']:.1f}" in line for line in said)
    assert "1 clip of the gallery could not be decoded, and count as misses" in said
    names = {"texts.safetensors", "texts.jsonl", "videos.safetensors", "videos.jsonl", "README.md", "export.json"}
    assert {path.name for path in folder.iterdir()} == names | {"excused.csv"}
