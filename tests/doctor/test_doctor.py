"""Checks of `waver doctor` on a small world of real files, and the command itself."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from hub import hub_with, hub_without_files
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from waver.config import ExperimentConfig, load_config
from waver.data.annotations.captions import count_split
from waver.data.clip import ClipError
from waver.data.clip_store import ClipStore
from waver.data.clip_store_writer import create_store, write_block, write_manifest
from waver.data.ledger import DecodedClip, FileStamp
from waver.data.video.reader import read_clip
from waver.data.video.resizing import Resizing
from waver.doctor import data, machine, memory
from waver.doctor.findings import (
    Checks,
    Finding,
    StartError,
    can_start,
    count_levels,
    findings_text,
    format_bytes,
    require_start,
)
from waver.doctor.stages import find_knowledge
from waver.model.errors import BackboneError
from waver.on_ray.doctor.examine import examine, next_stage, run_doctor
from waver.quickstart.world import render_world
from waver.runs.checkpoint import save_checkpoint
from waver.runs.folder import open_run
from waver.runs.inputs import load_captions, store_settings
from waver.tools.lock import hold_lock
from waver.tools.names import abbreviate
from waver.training.build import build_student, build_training


def nothing(_: object) -> None:
    pass


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_config: ExperimentConfig) -> Path:
    """A folder with experiment.yaml, captions.jsonl and videos (one of test is broken)."""
    folder = tmp_path_factory.mktemp("world")
    render_world(folder, num_train=7, num_validation=2, num_test=3, num_broken=1, seed=0)
    text = tiny_config.to_yaml()
    relative_paths = {
        tiny_config.data.annotations: "captions.jsonl",
        tiny_config.data.videos: ".",
        tiny_config.storage.folder: "storage",
    }
    for absolute, relative in relative_paths.items():
        text = text.replace(f": {absolute}\n", f": {relative}\n")
    (folder / "experiment.yaml").write_text(text)
    return folder


@pytest.fixture
def project(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the world with a clip store, ready for training, as working directory of the test."""
    folder = tmp_path / "project"
    shutil.copytree(world, folder)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = load_config("experiment.yaml")
    decode(config)
    return folder


def decode(config: ExperimentConfig, *, stamped: bool = False) -> None:
    settings = store_settings(config)
    results = []
    for clip in {row["clip_id"]: row for row in load_captions(config).to_pylist()}.values():
        try:
            outcome = read_clip(
                clip["path"], frames_per_second=1.0, max_frames=settings.max_frames, target=Resizing(settings.size)
            )
        except ClipError as error:
            outcome = error
        file = FileStamp.of(clip["path"]) if stamped else None
        results.append(DecodedClip(clip["clip_id"], clip["path"], 0.0, outcome, file))
    create_store(config.clip_store, settings)
    write_block(config.clip_store, settings, results)
    write_manifest(config.clip_store, settings, complete=True)


def findings_by_check(before="train", **overrides) -> dict[str, list[Finding]]:
    by_check: dict[str, list[Finding]] = {}
    for finding in examine(load_config("experiment.yaml", overrides), before=before):
        by_check.setdefault(finding.check, []).append(finding)
    return by_check


def errors(by_check: dict[str, list[Finding]]) -> set[str]:
    return {check for check, found in by_check.items() if any(finding.level == "error" for finding in found)}


def level(by_check: dict[str, list[Finding]], check: str) -> str:
    (finding,) = by_check[check]
    return finding.level


def rows() -> list[dict]:
    return [json.loads(line) for line in Path("captions.jsonl").read_text().splitlines()]


def write_rows(rows: list[dict]) -> None:
    Path("captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


# ---- findings


def test_an_exception_in_a_check_is_a_finding_after_those_before_it():
    def check():
        yield Finding("ok", "one", "well")
        raise KeyError("two\nlines")

    checks = Checks(bugs_are_findings=True)
    checks.run("name", check)
    assert checks.load("other", lambda: 1 / 0) is None
    first, second, third = checks.findings
    assert (first.check, second.check, second.level) == ("one", "name", "error")
    assert "the check itself failed (KeyError: 'two" in second.found
    assert "ZeroDivisionError" in third.found


def test_before_a_stage_errors_of_the_user_are_told_together_and_bugs_are_raised():
    def refuse():
        raise BackboneError("no such model")

    checks = Checks()
    checks.run("model", refuse)
    checks.findings += [Finding("warning", "memory", "little"), Finding("error", "weights", "gone", "fetch them")]
    with pytest.raises(StartError) as told:
        require_start(checks.findings, "train")
    assert str(told.value) == (
        "waver train cannot start: 2 errors\n  model: no such model\n  weights: gone\n  -> fetch them"
    )
    require_start(checks.findings[1:2], "train")
    with pytest.raises(ZeroDivisionError):
        checks.load("name", lambda: 1 / 0)


def test_findings_text_has_a_line_per_finding_with_the_remedy_below():
    findings = [
        Finding("ok", "a", "fine"),
        Finding("error", "b", "two\nlines", "do [this]"),
        Finding("error", "c", "x"),
    ]
    assert findings_text(findings).plain == (
        "ok       a: fine\nerror    b: two\n         lines\n         -> do [this]\nerror    c: x\n"
    )
    assert count_levels(findings) == "2 errors, 1 ok"
    assert not can_start(findings)
    assert can_start([Finding("warning", "a", "b")])
    assert abbreviate("abcde") == "a, b, c and 2 more"


# ---- checks of an experiment


@pytest.mark.slow
def test_a_ready_experiment_has_no_errors_and_doctor_writes_nothing(project):
    before = sorted(project.rglob("*"))
    found = findings_by_check()
    assert errors(found) == set()
    # The broken file may be among the three samples.
    warned = {check for check, f in found.items() if f[0].level == "warning"}
    assert (
        {"clip store"}
        <= warned
        <= {
            "clip store",
            "decoding .mp4",
            "size of validation",
            *(f"captions of {s}" for s in ("train", "validation", "test")),
        }
    )
    assert found["split validation"][0].found.endswith("; R@1: chance 50.0, 2 clips")
    assert found["size of validation"][0].found.startswith(
        "validation has 2 clips and 8 captions: R@1 is 50.0 by chance"
    )
    assert "GFLOP for 14 pairs of a caption and a clip" in found["cost of training"][0].found
    assert "11 of 12 clips have frames" in found["clip store"][0].found
    assert "7 clips" in found["split train"][0].found
    assert (found["steps"][0].found, level(found, "run")) == ("2 epochs of 2 steps, with 7 pairs each", "ok")
    assert sorted(project.rglob("*")) == before


@pytest.mark.slow
def test_a_missing_clip_store_is_an_error_before_train_but_not_before_ingest(project):
    shutil.rmtree("storage")
    assert errors(findings_by_check("ingest")) == set()
    found = findings_by_check()
    assert errors(found) == {"clip store"}
    config = load_config("experiment.yaml")
    assert next_stage(config, [f for fs in found.values() for f in fs]) == "ingest"
    assert "12 clips are still to be decoded" in found["disk for clips"][0].found


@pytest.mark.slow
def test_a_clip_store_with_other_settings_is_an_error_before_ingest_too(project):
    config = load_config("experiment.yaml")
    manifest = json.loads((config.clip_store / "manifest.json").read_text())
    manifest["settings"]["max_frames"] = 7
    (config.clip_store / "manifest.json").write_text(json.dumps(manifest))
    assert errors(findings_by_check("ingest")) == errors(findings_by_check()) == {"clip store"}


@pytest.mark.slow
def test_a_video_that_was_replaced_since_it_was_decoded_is_an_error(project):
    decode(load_config("experiment.yaml"), stamped=True)
    assert errors(findings_by_check()) == set()
    first, second = sorted({row["video"] for row in rows() if row["split"] == "train"})[-2:]
    shutil.copyfile(first, second)
    found = findings_by_check()
    assert errors(found) == {"clip store"}
    assert "1 videos were replaced since they were decoded" in found["clip store"][0].found
    assert second in found["clip store"][0].found
    assert level(findings_by_check("ingest"), "clip store") == "info"


@pytest.mark.slow
def test_all_missing_videos_are_in_the_details(project):
    gone = sorted({row["video"] for row in rows() if row["split"] != "test"})
    for video in gone:
        Path(video).unlink()
    found = findings_by_check()
    (finding,) = found["videos"]
    assert (finding.level, finding.details) == ("error", [str(project / video) for video in gone])
    assert "9 of 12" in finding.found
    assert "(7 of train, 2 of validation)" in finding.found
    (finding,) = findings_by_check(**{"data.allow_missing_videos": True})["videos"]
    assert (finding.level, "--set ingest.max_failed=9" in finding.remedy) == ("warning", True)


def test_missing_videos_are_compared_with_what_is_there(project):
    table = rows()
    write_rows([{**row, "video": row["video"].replace("/", "\\").removesuffix(".mp4")} for row in table])
    (finding,) = findings_by_check("ingest")["videos"]
    assert finding.level == "error"
    assert "12 of 12 are there with / in place of \\ and with .mp4 added ('videos/" in finding.remedy


@pytest.mark.slow
def test_segments_in_milliseconds_are_a_warning_before_and_after_ingest(project):
    write_rows([{**row, "start_s": 9000, "end_s": 11000} for row in rows()])
    found = findings_by_check("ingest")
    assert found["segments tried"][0].found.startswith("3 of 3 segments lie past the end")
    assert found["segments tried"][0].level == "warning"
    decode(load_config("experiment.yaml"))
    captions = load_captions(load_config("experiment.yaml"))
    store = ClipStore(load_config("experiment.yaml").clip_store)
    (finding,) = data.check_segments(captions, store)
    assert finding.found.startswith("11 of 11 segments lie past the end"), "the broken video has no length"


@pytest.mark.slow
def test_equal_causes_of_failures_are_one_line(project):
    for number in range(3):
        Path(f"videos/{number}.mkv").write_text("<html>")
    table = [{"video": f"videos/{number}.mkv", "caption": "a page", "split": "train"} for number in range(3)]
    write_rows([*rows(), *table])
    (finding,) = findings_by_check("ingest")["decoding .mkv"]
    assert "3 x corrupt: the file is a web page (0.mkv, 1.mkv, 2.mkv)" in finding.found
    decode(load_config("experiment.yaml"))
    (finding,) = findings_by_check()["clip store"]
    assert "3 x corrupt: the file is a web page (videos/0, videos/1, videos/2)" in finding.found


@pytest.mark.slow
def test_empty_videos_are_listed(project):
    empty = sorted({row["video"] for row in rows()})[:3]
    for video in empty:
        Path(video).write_bytes(b"")
    assert level(findings_by_check(**{"ingest.max_failed_fraction": 0.0}), "empty videos") == "warning", (
        "they are decoded"
    )
    (finding,) = findings_by_check("ingest", **{"ingest.max_failed_fraction": 0.0})["empty videos"]
    assert (finding.level, finding.details) == ("error", [str(project / video) for video in empty])
    assert "--set ingest.max_failed=3 allows them" in finding.remedy
    assert level(findings_by_check("ingest", **{"ingest.max_failed": 3}), "empty videos") == "warning"


def test_unreadable_annotations_do_not_prevent_other_checks(project):
    write_rows([{"video": "nowhere.mp4", "capton": "x"}])
    found = findings_by_check(**{"model.weights": "nowhere.safetensors"})
    assert errors(found) == {"annotations", "weights"}
    assert "1 x column with another name: 'capton' (caption)\n" in found["annotations"][0].found
    assert "1 x video without a file: line 1: 'nowhere.mp4'\n" in found["annotations"][0].found
    assert {"not checked", "storage", "memory"} <= set(found)


@pytest.mark.slow
def test_a_file_type_that_does_not_decode_is_an_error_before_ingest_and_a_warning_after(project):
    Path("videos/note.mkv").write_text("no video")
    write_rows([*rows(), {"video": "videos/note.mkv", "caption": "a note", "split": "train"}])
    assert level(findings_by_check("ingest", **{"ingest.max_failed": 0}), "decoding .mkv") == "error"
    assert level(findings_by_check("ingest"), "decoding .mkv") == "warning"
    (finding,) = findings_by_check()["decoding .mkv"]
    assert finding.level == "warning"
    assert list(finding.details) == [str(project / "videos/note.mkv")]
    assert finding.details[str(project / "videos/note.mkv")].startswith("corrupt: ")


@pytest.mark.slow
def test_duplicates_are_warnings_with_details(project):
    table = rows()
    train, test = (next(row for row in table[8:] if row["split"] == split) for split in ("train", "test"))
    shutil.copy(train["video"], "videos/copy.mp4")
    write_rows([*table, {"video": "videos/copy.mp4", "caption": test["caption"].upper(), "split": "test"}])
    (finding,) = findings_by_check()["duplicates in test"]
    assert finding.level == "warning"
    copy_of = [str(Path(train["video"]).with_suffix(""))]
    assert finding.details["same_videos_elsewhere"] == (("videos/copy", *copy_of),)
    assert finding.details["counts"]["queries_with_same_caption"] == 2
    json.dumps(finding.details)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "check", "expected"),
    [
        (
            {
                "resources": {"workers": 8, "loaders_per_worker": 0, "cpus_per_worker": 0.1},
                "train.global_batch_size": 16,
            },
            "batch",
            "resources.workers = 8 is more than the 7 training clips",
        ),
        ({"model.backbone": "s3:somebody/clip"}, "model", "neither the name of an open_clip model"),
        ({"model.weights": "videos"}, "weights", "is a folder"),
        ({"model.weights": "empty.safetensors"}, "weights", "cannot be read as weights"),
        ({"resources.gpus_per_worker": 99}, "workers", "the cluster has capacity for 0"),
        ({"model.backbone": "ViT-B-3"}, "model", "similar names: ViT-B-32"),
        ({"text.max_words": 12, "model.backbone.text_cfg.context_length": 10}, "model", "has 10 positions"),
        ({"model.weights": "nowhere.pt"}, "weights", "no file nowhere.pt"),
        ({"model.weights": "other.safetensors"}, "weights", "holds another architecture"),
        ({"model.weights": "cut.safetensors"}, "weights", "cannot be read as weights"),
        (
            {"model.weights": "nan.safetensors"},
            "weights",
            "nan.safetensors has values that are NaN or infinite, in 1 of",
        ),
        ({"train.backbone_lr_scale": 0, "model.temporal": "none", "similarity.kind": "dp"}, "model", "nothing can be"),
    ],
)
def test_settings_that_would_stop_training_are_errors(project, teacher_weights, overrides, check, expected):
    save_file({"visual.conv1.weight": torch.zeros(2, 3, 4, 4)}, "other.safetensors")
    Path("cut.safetensors").write_bytes(teacher_weights.read_bytes()[:-10])
    save_file(load_file(teacher_weights) | {"visual.proj": torch.full((32, 32), torch.nan)}, "nan.safetensors")
    Path("empty.safetensors").touch()
    found = findings_by_check(**overrides)
    assert errors(found) == {check}
    assert expected in found[check][0].found


def test_weights_are_checked_even_if_the_model_cannot_be_built(project):
    frozen = {"train.backbone_lr_scale": 0, "model.temporal": "none", "similarity.kind": "dp"}
    assert errors(findings_by_check(**frozen, **{"model.weights": "nowhere.pt"})) == {"model", "weights"}


@pytest.mark.slow
def test_fitting_weights_are_ok_and_a_pretrained_tag_is_a_warning(project, teacher_weights, monkeypatch):
    (fits,) = findings_by_check(**{"model.weights": str(teacher_weights)})["weights"]
    assert fits.level == "ok"
    # A plain file cannot tell its activation: which one is computed, and who says so, is told (F4).
    assert fits.found.endswith("; GELU, because model.backbone has no quick_gelu")
    assert fits.details == {"activation": "GELU", "activation_from": "because model.backbone has no quick_gelu"}
    (fits,) = findings_by_check(**{"model.weights": str(teacher_weights), "model.backbone.quick_gelu": True})["weights"]
    assert fits.found.endswith("; QuickGELU, from model.backbone.quick_gelu")
    tag = {"model.backbone": "RN50", "model.weights": "openai", "video.size": 16, "train.lr": 1}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(project / "cache"))
    with hub_without_files(monkeypatch):
        found = findings_by_check(**tag)
    assert level(found, "weights") == "warning"
    assert "open_clip will download; QuickGELU, from open_clip's tag openai" in found["weights"][0].found
    repository = tag | {"model.weights": "hf-hub:somebody/clip"}
    with hub_without_files(monkeypatch):
        found = findings_by_check(**repository)
    assert errors(found) == {"weights"}
    assert "hf-hub:somebody/clip: its open_clip_config.json was not downloaded before" in found["weights"][0].found
    (project / "somebody").mkdir()
    (project / "somebody/open_clip_config.json").write_text('{"model_cfg": {"vision_cfg": {"image_size": 16}}}')
    with hub_with("somebody/clip", project / "somebody", monkeypatch):
        found = findings_by_check(**repository)
    assert level(found, "weights") == "warning"
    assert (
        "'hf-hub:somebody/clip' is a repository of the hub, which will be downloaded; GELU" in found["weights"][0].found
    )
    found = findings_by_check(**tag)  # nothing answers at its address any more
    assert level(found, "weights") == "error"
    assert "copy the file here, and set model.weights to its path" in found["weights"][0].found


@pytest.mark.slow
def test_run_folder_is_free_finished_or_of_other_settings(project):
    config = load_config("experiment.yaml")
    open_run(config.run_folder, config, {"num_train_clips": 1})
    assert level(findings_by_check(), "run") == "ok"
    (config.run_folder / "result.json").write_text('{"epochs": 2}')
    (finding,) = findings_by_check()["run"]
    assert finding.level == "warning"
    assert "captions or videos have changed since (num_train_clips: 1 then, 7 now)" in finding.found
    found = findings_by_check(**{"train.lr": 0.5})
    assert errors(found) == {"run"}
    assert "train.lr: 0.001 in the folder, 0.5 now" in found["run"][0].found
    assert level(findings_by_check("match", **{"train.lr": 0.5}), "run") == "info"


@pytest.mark.slow
def test_a_checkpoint_with_nan_and_a_folder_in_use_are_errors(project):
    config = load_config("experiment.yaml")
    training = build_training(config, num_steps=1, device=torch.device("cpu"))
    with torch.no_grad():
        training.student.logit_scale.fill_(torch.nan)
    folder = config.run_folder / "checkpoint_epoch_0001"
    save_checkpoint(folder, training, config)
    with hold_lock(config.run_folder, "training"):
        found = findings_by_check()
    assert errors(found) == {"checkpoint", "lock"}
    assert "model.safetensors has values that are NaN or infinite, in 1 of" in found["checkpoint"][0].found
    assert f"delete {folder}" in found["checkpoint"][0].remedy
    assert f"{config.run_folder} is in use: training by" in found["lock"][0].found
    assert errors(findings_by_check("ingest")) == set()


@pytest.mark.slow
def test_a_missing_parser_is_an_error_where_the_stage_needs_a_dictionary(project, teacher_weights, knowledge):
    overrides = {
        "knowledge.top_k": 3,
        "knowledge.num_matches": 6,
        "model.weights": str(teacher_weights),
        "vocabulary.parser": "en_core_web_none",
    }
    for before, expected in (("ingest", "warning"), ("match", "error"), ("train", "error")):
        (finding,) = findings_by_check(before, **overrides)["parser"]
        assert (finding.level, finding.remedy) == (expected, "python -m spacy download en_core_web_none")
    config = load_config("experiment.yaml", overrides)
    shutil.copytree(knowledge.path, config.knowledge_store)
    assert level(findings_by_check(**overrides), "parser") == "warning", "the phrases are in the knowledge"


@pytest.mark.slow
def test_embedding_needs_clips_and_weights_and_no_phrases(project, teacher_weights):
    overrides = {"knowledge.top_k": 3, "model.weights": str(teacher_weights)}
    assert errors(findings_by_check("embed", **overrides)) == set()
    assert errors(findings_by_check("embed", **{"model.weights": "nowhere.pt"})) == {"weights"}
    elsewhere = {**overrides, "storage.path": "elsewhere"}
    assert errors(findings_by_check("embed", **elsewhere)) == {"clip store"}
    config = load_config("experiment.yaml", overrides)
    with hold_lock(config.frame_embeddings, "embedding"):
        assert errors(findings_by_check("embed", **overrides)) == {"lock"}


@pytest.mark.slow
def test_missing_knowledge_is_an_error_and_leaky_knowledge_a_warning(project, teacher_weights):
    overrides = {"knowledge.top_k": 3, "model.weights": str(teacher_weights)}
    found = findings_by_check(**overrides)
    assert errors(found) == {"knowledge"}
    assert found["knowledge"][0].remedy == "next: waver match CONFIG"
    findings = [f for fs in found.values() for f in fs]
    assert next_stage(load_config("experiment.yaml", overrides), findings) == "vocabulary"
    assert errors(findings_by_check("ingest", **overrides)) == set()
    assert errors(findings_by_check("match", **overrides)) == {"dictionary"}
    leaky = {**overrides, "vocabulary.splits": ["train", "test"]}
    assert level(findings_by_check(**leaky), "vocabulary.splits") == "warning"
    found = findings_by_check(**overrides, **{"knowledge.released": ["nowhere.json"]})
    assert errors(found) == {"released phrases", "knowledge"}
    assert [f.level for f in found["released phrases"]] == ["error", "warning"]
    assert "teacher" in errors(findings_by_check("match"))


@pytest.mark.slow
def test_too_few_phrases_are_not_answered_by_matching_again(project, teacher_weights, knowledge):
    overrides = {"knowledge.top_k": 7, "model.weights": str(teacher_weights)}
    config = load_config("experiment.yaml", overrides)
    shutil.copytree(knowledge.path, config.knowledge_store)
    # No clip of this world has phrases in this knowledge, so none is asked for.
    nobody, store = load_captions(config).slice(0, 0), ClipStore(config.clip_store)
    (finding,) = find_knowledge(config, nobody, store, None, run_folder=project, needed=True)[1]
    assert finding.found.endswith("set knowledge.top_k to 6 at most")
    assert finding.remedy == ""
    assert next_stage(config, [finding]) == ""


@pytest.mark.slow
def test_a_storage_path_that_is_a_file_is_an_error(project):
    found = findings_by_check(**{"storage.path": "experiment.yaml"})
    assert errors(found) == {"clip store", "storage"}
    assert "is a file" in found["storage"][0].found
    assert "/proc cannot be written to" in findings_by_check(**{"storage.path": "/proc/nowhere"})["storage"][0].found


@pytest.mark.slow
def test_checks_read_a_storage_in_an_object_store(project, s3, monkeypatch):
    overrides = {"storage.path": s3}
    assert errors(findings_by_check("ingest", **overrides)) == set()
    found = findings_by_check(**overrides)
    assert errors(found) == {"clip store"}
    assert f"{s3} answers; local copies are in " in found["storage"][0].found
    decode(load_config("experiment.yaml", overrides))
    found = findings_by_check(**overrides)
    assert errors(found) == set()
    assert f"frames in {s3}/clips/" in found["clip store"][0].found
    assert found["run"][0].found == f"{s3}/runs/tiny is free"


@pytest.mark.slow
def test_an_unusable_object_store_is_the_only_finding(project, s3, monkeypatch):
    (finding,) = [f for fs in findings_by_check(**{"storage.path": "s3://nowhere/x"}).values() for f in fs]
    assert (finding.level, finding.check) == ("error", "storage")
    assert "s3://nowhere/x: there is no such bucket" in finding.found
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    (finding,) = [f for fs in findings_by_check(**{"storage.path": s3}).values() for f in fs]
    assert "the store does not answer" in finding.found


# ---- single checks


def test_splits_that_differ_from_the_published_ones_are_warnings(repository, captions, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = load_config(repository / "experiments/msrvtt.yaml", {"data.split": "full"})
    found = [f for f in data.check_splits(config, captions) if f.level == "warning" and f.check.startswith("split")]
    assert [f.check for f in found] == ["split train", "split validation", "split test"]
    assert "14 clips instead of 6513; 27 captions instead of 130260" in found[0].found
    held_out = captions.replace_schema_metadata({"validation": "held out of train"})
    config = load_config(repository / "experiments/msrvtt.yaml")
    found = [f for f in data.check_splits(config, held_out) if f.level == "warning"]
    assert [f.check for f in found] == ["size of validation", "split train and validation", "split test"]
    assert "19 clips instead of 9000" in found[1].found
    own = tmp_path / "own.yaml"
    own.write_text("name: x\ndata: {format: table, annotations: a.csv, videos: v}\n")
    only_train = captions.filter(pa.compute.equal(captions["split"], "train"))
    levels = {f.check: f.level for f in data.check_splits(load_config(own), only_train)}
    assert levels == {"split train": "ok", "split validation": "error", "split test": "info"}


def test_model_size_counts_parameters_and_activations_of_the_student(tiny_config, load_tiny):
    found = machine.model_size(tiny_config)
    student = build_student(tiny_config)
    assert found.num_parameters == found.num_trained == sum(p.numel() for p in student.parameters())
    assert found.embed_dim == 32
    frozen = machine.model_size(load_tiny(**{"train.backbone_lr_scale": 0}))
    backbone = sum(p.numel() for p in student.backbone.parameters())
    assert (frozen.num_trained, frozen.activation_bytes) == (found.num_trained - backbone, 0)
    # A layer keeps at least its normalised input, and the hidden values of attention and MLP, for each of 5 tokens.
    bytes_per_frame = 4 * 5 * 32 * (1 + 3 + 4)
    six = machine.model_size(load_tiny(**{"video.max_frames": 6})).activation_bytes
    assert six - found.activation_bytes > 3 * bytes_per_frame


def test_too_little_disk_space_is_an_error_or_a_warning(project):
    config = load_config("experiment.yaml", {"video.size": 10**6})
    captions = load_captions(config)
    huge = machine.ModelSize(10**15, 10**15, 32, 0)
    found = {f.check: f.level for f in machine.check_disk(config, captions, None, huge, trains=True)}
    assert found == {"storage": "ok", "disk for clips": "error", "disk for checkpoints": "error"}
    found = {f.check: f.level for f in machine.check_disk(config, None, None, huge, trains=False)}
    assert found == {"storage": "ok", "disk for checkpoints": "warning"}
    assert machine.ModelSize(10, 4, 1, None).checkpoint_bytes == 40 + 32


def test_frozen_weights_need_space_once_for_all_checkpoints(project):
    config = load_config("experiment.yaml", {"train.backbone_lr_scale": 0})
    model = machine.model_size(config)
    training = build_training(config, num_steps=1, device=torch.device("cpu"))
    for parameter in training.student.parameters():  # AdamW has moments from the first step on
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    training.optimizer.step()
    first, second = (config.run_folder / f"checkpoint_epoch_000{epoch}" for epoch in (1, 2))

    def found() -> str:
        checked = machine.check_disk(config, None, None, model, trains=True, writes=[config.run_folder])
        return next(finding.found for finding in checked if finding.check == "disk for checkpoints")

    each, once = model.checkpoint_bytes, model.shared_bytes
    assert found().startswith(
        f"{format_bytes(each)} each, and {format_bytes(once)} of frozen weights once; up to {format_bytes(4 * each + once)}"
    )
    save_checkpoint(first, training, config)
    save_checkpoint(second, training, config, previous=first)
    assert f"up to {format_bytes(2 * each)} more" in found()
    sizes = {path.name: path.stat().st_size for path in second.iterdir()}
    assert once <= sizes["frozen.safetensors"] < once + 10_000
    assert each <= sizes["model.safetensors"] + sizes["training.pt"] < each + 40_000


def test_too_little_memory_is_a_warning(tiny_config, captions):
    def levels(model, **where) -> dict[str, str]:
        found = memory.check_memory(tiny_config, captions, model, num_phrases=0, **where)
        return {f.check: f.level for f in found}

    small, large = machine.ModelSize(10**6, 10**6, 32, 1000), machine.ModelSize(10**12, 10**12, 32, None)
    assert levels(small, gpus=[], ram=2**34) == {"memory": "ok"}
    assert levels(large, gpus=[], ram=2**34) == {"memory": "warning"}
    assert levels(large, gpus=[2**34], ram=2**34) == {"memory of a GPU": "warning", "memory": "ok"}
    assert levels(large, gpus=[], ram=None) == {"memory": "info"}


def test_memory_is_estimated_for_the_batch_that_is_left_of_few_clips(tiny_config, captions):
    """A batch has no clip twice, so a larger global batch takes no more memory than one of all training clips."""
    model = machine.ModelSize(10**6, 10**6, 32, 10**9)
    num_clips = count_split(captions, "train")[0]

    def details(batch: int) -> object:
        config = tiny_config.model_copy(
            update={"train": tiny_config.train.model_copy(update={"global_batch_size": batch})}
        )
        return [f.details for f in memory.check_memory(config, captions, model, num_phrases=0, gpus=[], ram=None)]

    assert details(num_clips) == details(1000 * num_clips) != details(num_clips // 2)


# ---- the command


def waver(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "waver", "doctor", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )


TOO_MANY = (
    "--set",
    "resources.workers=8",
    "--set",
    "resources.cpus_per_worker=0.1",
    "--set",
    "train.global_batch_size=16",
)


@pytest.mark.slow
def test_the_command_reports_all_errors_at_once_and_writes_them_to_the_report(project, monkeypatch):
    """Including that no cluster answers."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    done = waver("experiment.yaml", *TOO_MANY, "--set", "model.weights=nowhere.pt")
    assert done.returncode == 1
    assert "error    cluster: no Ray cluster answers" in done.stdout
    assert "error    batch: " in done.stdout
    assert "error    weights: " in done.stdout
    assert "cannot start" in done.stderr
    assert "Traceback" not in done.stderr
    report = json.loads(Path("storage/doctor/tiny.json").read_text())
    assert (report["can_start"], report["before"]) == (False, "train")
    assert {f["check"] for f in report["findings"] if f["level"] == "error"} == {"batch", "weights", "cluster"}


@pytest.mark.slow
def test_the_report_is_written_to_output_and_a_configuration_error_is_a_finding(project):
    shown: list[Finding] = []

    def run(overrides: dict, output: Path | None) -> list[Finding]:
        return run_doctor(Path("experiment.yaml"), lambda: overrides, before="train", show=shown.extend, output=output)

    assert can_start(run({}, Path("report.json")))
    assert json.loads(Path("report.json").read_text())["can_start"]
    assert not Path("storage/doctor").exists()
    (finding,) = run({"trian.lr": 1, "model.temporal": "x"}, None)
    assert finding.level == "error"
    assert "2 mistakes" in finding.found
    assert finding.remedy.startswith("correct it, and run `waver doctor experiment.yaml`: only")
    assert not can_start(run({}, Path("experiment.yaml/report.json")))
    assert shown[-1].check == "report"


@pytest.mark.parametrize("path", ["experimnt.yaml", "."])
def test_a_command_with_a_wrong_path_is_not_recommended(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("experiment.yaml").write_text("name: x\n")
    (finding,) = run_doctor(Path(path), dict, before="train", show=nothing)
    assert finding.remedy == "correct it, and name the file: nothing else was checked"
    assert "experiment.yaml" in finding.found
