"""What is said about a path that was given in place of a run."""

from pathlib import Path

import pytest

from waver.runs.places import describe_place


@pytest.fixture
def project(tmp_path: Path, monkeypatch, load_tiny) -> Path:
    """A storage with two runs, a sweep and a clip store, and the file of an experiment; it is the current folder."""
    monkeypatch.chdir(tmp_path)
    text = load_tiny(name="kitchen", **{"storage.path": str(tmp_path / "storage")}).to_yaml()
    for name in (
        "kitchen.yaml",
        "storage/runs/kitchen/config.yaml",
        "storage/runs/garden/config.yaml",
        "storage/runs/kitchen/checkpoint_epoch_0001/config.yaml",
        "storage/sweeps/s/trials/0000/seed_0/config.yaml",
        "storage/sweeps/s/trials/0001/seed_0/config.yaml",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name in (
        "storage/runs/kitchen/metrics.jsonl",
        "storage/runs/kitchen/checkpoint_epoch_0001/model.safetensors",
        "storage/sweeps/s/trials/0001/seed_0/checkpoint_epoch_0001/model.safetensors",
        "storage/sweeps/s/sweep.yaml",
        "storage/runs/kitchen/events/x",
        "storage/clips/videos-1/manifest.json",
        "movie.mp4",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "new.yaml").write_text(text.replace("name: kitchen", "name: new"))
    (tmp_path / "bad.yaml").write_text(text + "colour: 1\n")
    (tmp_path / "s.yaml").write_text("name: s\nbase: kitchen.yaml\nspace: {train.lr: {choice: [1]}}\n")
    (tmp_path / "t.yaml").write_text("name: t\nbase: kitchen.yaml\nspace: {train.lr: {choice: [1]}}\n")
    (tmp_path / "storage" / "runs" / "gone").symlink_to("nowhere")
    return tmp_path


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("kitchen.yaml", "is an experiment, not a run: its run is {here}/storage/runs/kitchen"),
        ("new.yaml", "its run does not exist yet: `waver train new.yaml` makes it, in {here}/storage/runs/new"),
        ("bad.yaml", "is an experiment, and not a valid one: `waver doctor bad.yaml` lists its mistakes"),
        (
            "s.yaml",
            "is a sweep: its runs with checkpoints, those of its best trials, are {here}/storage/sweeps/s/",
        ),
        ("t.yaml", "is a sweep that has not begun: `waver tune t.yaml` runs it"),
        ("movie.mp4", "is a file, not the folder of a run: there is storage/runs/garden, storage/runs/kitchen"),
        ("storage/runs/kitchn", "does not exist: did you mean storage/runs/kitchen?"),
        ("kitchn", "does not exist: did you mean storage/runs/kitchen?"),
        ("storage/runs/xyz", "does not exist: there is storage/runs/garden, storage/runs/kitchen"),
        ("storage/runs/gone", "does not exist, it is a link to nowhere, which is gone: "),
        ("storage/runs", "holds runs: name one, such as storage/runs/garden, storage/runs/kitchen"),
        ("storage/runs/kitchen/metrics.jsonl", "is a file of the run storage/runs/kitchen: name the folder"),
        ("storage/runs/kitchen/events", "is a part of the run storage/runs/kitchen: name the run"),
        (
            "storage/runs/kitchen/checkpoint_epoch_0001/config.yaml",
            "is a file of the checkpoint storage/runs/kitchen/check",
        ),
        (
            "storage/sweeps/s",
            "is a sweep: its runs with checkpoints, those of its best trials, are storage/sweeps/s/trials",
        ),
        ("storage/clips/videos-1", "is a clip store: there is storage/runs/garden, storage/runs/kitchen"),
        ("storage", "is neither a run nor a checkpoint: there is storage/runs/garden, storage/runs/kitchen"),
    ],
)
def test_what_a_path_is(project, given, expected):
    said = describe_place(Path(given))
    assert said.startswith(f"{given} ")
    assert expected.format(here=project) in said


def test_names_are_quoted_for_the_shell(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "my run").mkdir(parents=True)
    (tmp_path / "runs" / "my run" / "config.yaml").touch()
    assert describe_place(Path("runs/my ru")) == "runs/my ru does not exist: did you mean 'runs/my run'?"


def test_without_any_run_the_command_that_makes_one_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert describe_place(Path("typo")) == "typo does not exist: train one with `waver train CONFIG`"
