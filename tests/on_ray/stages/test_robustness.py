"""The writing-style report on checkpoints, without a cluster."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from logs import logged

from waver.config import load_config, load_robustness
from waver.data.clip_store import ClipStore
from waver.evaluation.evaluate import evaluate
from waver.evaluation.robustness.queries import RobustnessError
from waver.evaluation.robustness.rewriting import CONTROLS, RULES
from waver.on_ray.stages.robustness import run_robustness
from waver.runs.checkpoint import checkpoint_config, load_student, save_checkpoint
from waver.runs.inputs import load_captions
from waver.training.build import build_training

QUICK = {"resamples": 100, "permutations": 99, "parser": "no_such_parser"}


@pytest.fixture(scope="session", autouse=True)
def ray_session():
    """Starts no Ray: one worker evaluates in this process."""


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory, build_project, captions) -> list[Path]:
    """Two untrained models of one experiment, with different seeds."""
    folder = build_project(tmp_path_factory.mktemp("project"), captions, resources={"workers": 1})
    made = []
    for seed in (0, 1):
        config = load_config(folder / "experiment.yaml", {"seed": seed, "name": f"seed{seed}"})
        path = config.run_folder / "checkpoint_epoch_0001"
        save_checkpoint(path, build_training(config, num_steps=1, device=torch.device("cpu")), config)
        made.append(path)
    return made


def report_on(runs, output=None, **settings):
    return run_robustness(runs, load_robustness(None, QUICK | settings), {}, output=output)


@pytest.fixture(scope="module")
def made(checkpoints):
    with logged() as said:
        return *report_on(checkpoints), said


@pytest.mark.slow
def test_the_report_is_written_beside_the_runs(made, checkpoints):
    report, folder, said = made
    assert folder.parent == checkpoints[0].parents[1]
    assert {path.name for path in folder.iterdir()} == {
        "report.json",
        "report.html",
        "queries.parquet",
        "styles.svg",
        "dispersion.svg",
    }
    assert json.loads((folder / "report.json").read_text()) == report
    assert any("queries of" in line and "9 reference" in line for line in said)


def test_the_report_names_its_checkpoints_and_missing_clips(made, checkpoints):
    report, _, _ = made
    for source, checkpoint in zip(report["sources"], checkpoints, strict=True):
        assert source["checkpoint"] == str(checkpoint)
        assert source["leaky"] is False
        assert source["num_missing_clips"] == 1
    assert report["runs"][0]["num_missing_clips"] == 1


def test_ranks_equal_those_of_the_evaluation(made, checkpoints):
    """Every human caption is a query, with the rank that it has in an evaluation of the split."""
    _, folder, _ = made
    rows = pq.read_table(folder / "queries.parquet").to_pylist()
    for checkpoint in checkpoints:
        config = checkpoint_config(checkpoint)
        captions = load_captions(config)
        student = load_student(checkpoint, config)
        expected = evaluate(student, captions, ClipStore(config.clip_store), config, split="test")
        chosen = captions.filter(pa.compute.equal(captions["split"], "test"))
        chosen = chosen.sort_by([("clip_id", "ascending"), ("caption_index", "ascending")])
        pairs = zip(chosen["clip_id"].to_pylist(), chosen["caption"].to_pylist(), strict=True)
        ranks = dict(zip(pairs, expected.ranks.t2v.tolist(), strict=True))
        name = f"{config.name}/{checkpoint.name}"
        human = [row for row in rows if row["track"] in ("reference", "natural")]
        assert len(human) == len(ranks)
        for row in human:
            assert row[f"{name}: rank"] == ranks[row["clip_id"], row["text"]]
        for row in rows:
            answers = row[f"{name}: first answers"]
            assert len(answers) == 10
            if row[f"{name}: rank"] <= 8 and row[f"{name}: rank"] % 1 == 0:
                assert answers[int(row[f"{name}: rank"]) - 1] == row["clip_id"]


def test_clean_recall_is_computed_on_the_reference_captions(made):
    report, folder, _ = made
    rows = pq.read_table(folder / "queries.parquet").to_pylist()
    for run in report["runs"]:
        ranks = np.array([row[f"{run['name']}: rank"] for row in rows if row["track"] == "reference"])
        assert run["headline"]["clean R@1"]["value"] == pytest.approx((ranks <= 1).mean())


def test_without_a_parser_rules_that_need_it_are_skipped_with_a_note(made):
    report, folder, said = made
    asked = {entry["style"] for entry in report["runs"][0]["styles"] if entry["track"] == "rules"}
    assert asked
    assert not any(RULES[name].needs_parse for name in asked)
    skipped = [rule.key for rule in (*RULES.values(), *CONTROLS.values()) if rule.needs_parse]
    (note,) = [note for note in report["notes"] if "parse" in note]
    assert all(name in note for name in skipped)
    assert note in said
    assert "no_such_parser" in (folder / "report.html").read_text()


def test_queries_that_are_cut_are_noted_by_style(checkpoints, tmp_path):
    captions = load_captions(checkpoint_config(checkpoints[0]))
    clip = next(row["clip_id"] for row in captions.to_pylist() if row["split"] == "test")
    line = {"clip_id": clip, "caption_index": 0, "text": "a long " * 6, "style": "mine", "provenance": {"by": "me"}}
    (tmp_path / "rewrites.jsonl").write_text(json.dumps(line) + "\n")
    settings = {"tracks": ["imported"], "imported": [str(tmp_path / "rewrites.jsonl")], "controls": False}
    report, folder = report_on(checkpoints[:1], tmp_path / "out", **settings)
    (note,) = report["notes"]
    assert "1 of 10 queries are longer than text.max_words = 12 tokens and are cut: imported/mine 1 of 1" in note
    assert note in (folder / "report.html").read_text()


def test_rules_and_tracks_can_be_chosen(checkpoints, tmp_path):
    report, folder = report_on(
        checkpoints[:1], tmp_path / "out", tracks=["rules"], rules=["punctuation_case-upper"], controls=False
    )
    assert folder == tmp_path / "out"
    assert [entry["style"] for entry in report["runs"][0]["styles"]] == ["punctuation_case-upper"]
    assert report["comparisons"] == report["runs"][0]["controls"] == []


def test_imported_queries_are_a_track_with_their_authors(checkpoints, tmp_path):
    captions = load_captions(checkpoint_config(checkpoints[0]))
    row = next(row for row in captions.to_pylist() if row["split"] == "test")
    line = {"clip_id": row["clip_id"], "caption_index": row["caption_index"], "text": "other words", "style": "mine"}
    path = tmp_path / "rewrites.jsonl"
    path.write_text(json.dumps(line | {"provenance": {"by": "somebody"}}) + "\n")
    report, _ = report_on(checkpoints[:1], tmp_path / "out", tracks=["imported"], imported=[str(path)])
    assert [(entry["track"], entry["style"]) for entry in report["runs"][0]["styles"]] == [("imported", "mine")]
    assert report["imported"] == [{"file": str(path), "by": "somebody", "queries": 1}]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rules": ["uper"]}, r"rules: uper: no such rule; choose from .*upper"),
        ({"tracks": ["imported"]}, "nothing to compare"),
        ({"reference": "plain"}, "9 of 9 clips of test have no caption in the style 'plain'"),
    ],
)
def test_queries_that_cannot_be_built_are_an_error(checkpoints, settings, message):
    with pytest.raises(RobustnessError, match=message):
        report_on(checkpoints[:1], **settings)


def test_a_missing_scipy_is_an_error_that_names_the_extra(checkpoints, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(RobustnessError, match=r"pip install 'waver\[robustness\]'"):
        report_on(checkpoints[:1])


def test_the_same_run_twice_is_an_error(checkpoints):
    with pytest.raises(RobustnessError, match="seed0/checkpoint_epoch_0001: given twice"):
        report_on([checkpoints[0], checkpoints[0]])


def test_runs_with_different_captions_are_an_error(checkpoints, tmp_path):
    """One checkpoint is changed to name another caption file."""
    config = checkpoint_config(checkpoints[1])
    lines = Path(config.data.annotations).read_text().splitlines()
    test = next(number for number, line in enumerate(lines) if '"test"' in line)
    other = tmp_path / "captions.jsonl"
    row = json.loads(lines[test])
    lines[test] = json.dumps(row | {"caption": row["caption"] + " again"})
    other.write_text("\n".join(lines) + "\n")
    copy = tmp_path / "checkpoint_epoch_0001"
    shutil.copytree(checkpoints[1], copy)
    changed = config.model_copy(update={"data": config.data.model_copy(update={"annotations": other})})
    (copy / "config.yaml").write_text(changed.to_yaml())
    with pytest.raises(RobustnessError, match="have different clips or captions in test"):
        report_on([checkpoints[0], copy])
