"""A run of one worker in this process, without Ray: its checkpoints, and how it stops."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from waver.config import ExperimentConfig, load_config
from waver.on_ray.stages.train import train_in_process, trains_in_process
from waver.runs import checkpoint_saver, train_loop
from waver.runs.checkpoint_weights import FrozenWeightsError
from waver.runs.control import Interrupted, stop_after
from waver.runs.folder import completed_epochs, newest_checkpoint
from waver.runs.inputs import load_captions, open_store
from waver.runs.tracking import read_metrics
from waver.runs.train import Launch, train
from waver.runs.train_loop import TrainingJob, train_job
from waver.tools.termination import TERMINATED, Terminated, sigterm_event
from waver.training.plan import training_rows

ONE_WORKER = {"resources.workers": 1, "resources.loaders_per_worker": 0, "tracking.images": False, "train.epochs": 2}


@pytest.fixture(scope="module")
def project(tmp_path_factory, build_project, captions) -> Path:
    return build_project(tmp_path_factory.mktemp("project"), captions)


def experiment(project: Path, name: str, **overrides) -> ExperimentConfig:
    return load_config(project / "experiment.yaml", {"name": name} | ONE_WORKER | overrides)


def run(config: ExperimentConfig, launch: Launch = train_in_process) -> dict:
    captions = load_captions(config)
    return train(config, captions, open_store(config, captions), launch=launch)


def stop_when(is_reached: Callable[[], bool]) -> Launch:
    """Returns what trains until a condition holds after a step."""

    def launch(job: TrainingJob, captions: pa.Table, num_steps: int) -> dict[str, float] | Interrupted:
        return train_job(
            job,
            captions,
            device=torch.device("cpu"),
            next_command=lambda: "stop" if is_reached() else "continue",
        )

    return launch


def metrics_by_step(folder: Path) -> list[dict]:
    """Returns the logged rows without what differs between two runs of the same settings: times and memory."""
    measured = ("clips_per_s", "clips_per_s_per_worker", "data_wait_share", "memory_of_worker_gib")
    return [{name: value for name, value in row.items() if name not in measured} for row in read_metrics(folder)]


@pytest.mark.slow
def test_an_epoch_writes_one_checkpoint_before_its_evaluation(project, monkeypatch):
    config = experiment(project, "once", **{"checkpoint.every_steps": 2})
    written, real_save, real_evaluate = [], checkpoint_saver.save_checkpoint, train_loop.evaluate
    evaluated_after = []

    def save(folder, training, *arguments, **options):
        written.append(training.step)
        real_save(folder, training, *arguments, **options)

    def evaluate(*arguments, **options):
        evaluated_after.append(newest_checkpoint(config.run_folder).name)
        return real_evaluate(*arguments, **options)

    monkeypatch.setattr(checkpoint_saver, "save_checkpoint", save)
    monkeypatch.setattr(train_loop, "evaluate", evaluate)
    result = run(config)
    assert result["steps"] == 6
    assert written == [2, 3, 4, 6], "every 2 steps, and at the end of each epoch"
    assert evaluated_after == ["checkpoint_epoch_0000_step_00000003", "checkpoint_epoch_0001_step_00000006"]
    kept = sorted(path.name for path in config.run_folder.glob("*checkpoint*"))
    assert (
        {"checkpoint_epoch_0002"}
        <= set(kept)
        <= {
            "checkpoint_epoch_0001",
            "checkpoint_epoch_0001_step_00000004",
            "checkpoint_epoch_0002",
        }
    )


@pytest.mark.slow
def test_a_run_that_ends_during_an_evaluation_resumes_there_and_has_the_same_metrics(project, monkeypatch):
    whole, killed = experiment(project, "whole"), experiment(project, "killed")
    expected = run(whole)

    def preempted(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_loop, "evaluate", preempted)
        with pytest.raises(KeyboardInterrupt):
            run(killed)
    newest = newest_checkpoint(killed.run_folder)
    assert (newest.name, completed_epochs(newest)) == ("checkpoint_epoch_0000_step_00000003", 0)
    with pytest.raises(Terminated):  # resumes, evaluates, and stops in the next epoch
        run(killed, stop_when(lambda: True))
    assert newest_checkpoint(killed.run_folder).name == "checkpoint_epoch_0001_step_00000004"
    result = run(killed)
    assert metrics_by_step(killed.run_folder) == metrics_by_step(whole.run_folder)
    assert result["validation"] == expected["validation"]


@pytest.mark.slow
def test_an_epoch_of_all_captions_resumes_within_it(project):
    settings = {"train.captions_per_clip": "all", "train.global_batch_size": 5}
    whole, stopped = experiment(project, "whole-all", **settings), experiment(project, "stopped-all", **settings)
    expected = run(whole)
    captions = load_captions(whole)
    num_captions = len(training_rows(captions, open_store(whole, captions)))
    assert num_captions == expected["data"]["num_train_captions"] > expected["data"]["num_train_clips"]
    assert expected["steps"] == 2 * -(-num_captions // 5)
    steps = iter(range(100))
    with pytest.raises(Terminated):
        run(stopped, stop_when(lambda: next(steps) == 1))
    assert newest_checkpoint(stopped.run_folder).name == "checkpoint_epoch_0000_step_00000002"
    assert run(stopped)["validation"] == expected["validation"]
    assert metrics_by_step(stopped.run_folder) == metrics_by_step(whole.run_folder)


KILLED_BETWEEN_FILES = """
import os, runpy, signal
from waver.runs import checkpoint_weights as weights

written, real = [], weights.save_file

def save_file(tensors, path, metadata):
    written.append(path.name)
    if written.count("model.safetensors") == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    real(tensors, path, metadata)

weights.save_file = save_file
runpy.run_module("waver", run_name="__main__")
"""
"""Runs a command that is killed in its second checkpoint, when frozen weights are linked and the others not written."""


@pytest.mark.slow
def test_a_run_killed_between_the_files_of_a_checkpoint_continues_with_the_same_metrics(project):
    settings = {"train.backbone_lr_scale": 0}
    whole = experiment(project, "whole-frozen", **settings)
    killed = experiment(project, "killed-frozen", **settings)
    expected = run(whole)
    options = [f"--set={key}={value}" for key, value in (ONE_WORKER | settings | {"name": killed.name}).items()]
    command = [sys.executable, "-c", KILLED_BETWEEN_FILES, "train", str(project / "experiment.yaml"), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    part = killed.run_folder / ".checkpoint.part"
    assert [path.name for path in part.iterdir()] == ["frozen.safetensors"]
    assert newest_checkpoint(killed.run_folder).name == "checkpoint_epoch_0001"

    result = run(killed)
    assert not part.exists()
    assert result["validation"] == expected["validation"]
    assert metrics_by_step(killed.run_folder) == metrics_by_step(whole.run_folder)
    files = {path.stat().st_ino: path.stat().st_nlink for path in killed.run_folder.glob("*/frozen.safetensors")}
    assert list(files.values()) == [2], "both checkpoints have the same file"


@pytest.mark.slow
def test_a_run_without_its_frozen_weights_says_so_and_loses_nothing(project):
    config = experiment(project, "incomplete", **{"train.backbone_lr_scale": 0})
    with pytest.raises(Terminated):
        run(config, stop_when(lambda: True))
    checkpoint = newest_checkpoint(config.run_folder)
    (checkpoint / "frozen.safetensors").rename(project / "elsewhere")
    with pytest.raises(FrozenWeightsError, match=r"frozen.safetensors is missing, .*copy it from"):
        run(config)
    assert newest_checkpoint(config.run_folder) == checkpoint
    (project / "elsewhere").rename(checkpoint / "frozen.safetensors")
    assert run(config)["steps"] == 6


@pytest.mark.slow
def test_sigterm_stops_a_command_after_its_step_and_the_next_one_continues(project):
    config = experiment(project, "asked", **{"train.epochs": 2000})
    settings = [f"--set={key}={value}" for key, value in (ONE_WORKER | {"train.epochs": 2000}).items()]
    command = [sys.executable, "-m", "waver", "train", str(project / "experiment.yaml"), "--set=name=asked", *settings]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        log = config.run_folder / "metrics.jsonl"
        while process.poll() is None and not (log.exists() and read_metrics(config.run_folder)):
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        stderr = process.communicate()[1]
    assert process.returncode == TERMINATED, stderr
    newest = newest_checkpoint(config.run_folder)
    step = read_metrics(config.run_folder)[-1]["step"]
    assert f"stopped on request after step {step}; a checkpoint is in {config.run_folder}" in stderr
    assert newest.name.endswith(f"_step_{step:08d}")
    assert "Ray" not in stderr, "no Ray was started"
    with pytest.raises(Terminated):
        run(config, stop_when(lambda: True))
    assert read_metrics(config.run_folder)[-1]["step"] == step + 1


def test_sigterm_sets_the_event_and_its_former_handler_comes_back():
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_event() as event:
        command = stop_after(event)
        assert command() == "continue"
        os.kill(os.getpid(), signal.SIGTERM)
        assert event.wait(10)
        assert command() == "stop"
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_another_thread_sigterm_is_left_alone():
    found = []

    def body():
        with sigterm_event() as event:
            found.append((signal.getsignal(signal.SIGTERM), event.is_set()))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert found == [(before, False)]


@pytest.mark.parametrize(
    ("overrides", "address", "expected"),
    [
        ({}, None, True),
        ({}, "local", True),
        ({}, "auto", False),
        ({"resources.workers": 2}, None, False),
        ({"resources.workers": {"min": 1, "max": 2}}, None, False),
        ({"resources.workers": {"min": 1, "max": 1}}, None, True),
        ({"resources.loaders_per_worker": 1}, None, False),
        ({"resources.node_labels": {"kind": "gpu"}}, None, False),
        ({"resources.gpus_per_worker": 64}, None, False),
        ({"resources.gpus_per_worker": 0}, None, True),
    ],
)
def test_ray_is_used_only_where_it_is_needed(project, monkeypatch, overrides, address, expected):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert trains_in_process(experiment(project, "one", **overrides)) is expected
