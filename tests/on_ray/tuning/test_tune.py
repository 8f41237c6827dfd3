"""Sweeps on Ray Tune. One small sweep serves most tests."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from logs import logged
from rays import family, kill
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from waver.config import load_config
from waver.model.pretrained.weight_files import read_metadata
from waver.on_ray.cluster.capacity import ClusterTooSmallError
from waver.on_ray.stages.train import run_training, train_in_process
from waver.on_ray.tuning.describe import describe_plan
from waver.on_ray.tuning.plan import Plan, plan_sweep
from waver.on_ray.tuning.tune import run_sweep
from waver.runs.checkpoint import checkpoint_config, load_student
from waver.runs.folder import checkpoints, newest_checkpoint
from waver.runs.tracking import read_metrics
from waver.sweeps.folder import SweepError, TrialState, read_trials
from waver.tools.lock import LockedError, hold_lock

EPOCHS, REPEATS = 3, 2


@pytest.fixture(scope="session")  # tests that start their own Ray come first, and share it
def project(tmp_path_factory, build_project, captions) -> Path:
    """A project folder whose experiment trains with one worker and without loaders, which are one more process per run."""
    return build_project(
        tmp_path_factory.mktemp("sweeps"),
        captions,
        train={"epochs": EPOCHS},
        resources={"workers": 1, "loaders_per_worker": 0},
    )


def write_sweep(project: Path, name: str, **settings) -> Path:
    path = project / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"name": name, "base": "experiment.yaml", **settings}))
    return path


@pytest.fixture(scope="module")
def swept(project) -> tuple[Plan, list[TrialState], list[str], list]:
    """A grid of six points, two of which must fail, with two seeds each: plan, trials, log lines, printed tables."""
    path = write_sweep(
        project,
        "grid",
        space={
            "train.lr": {"choice": [1e-3, 1e30]},
            "similarity.kind": {"choice": ["wti", "dp"]},
            "similarity.wti_layers": {"choice": [1, 2], "when": {"similarity.kind": "wti", "train.lr": 1e-3}},
            "train.warmup_fraction": {"choice": [0.7], "when": {"train.lr": 1e30}},
        },
        search="grid",
        repeats=REPEATS,
        scheduler={"reduction_factor": 2},
    )
    shown, plan = [], plan_sweep(path)
    handler = signal.getsignal(signal.SIGINT)
    with logged() as said:
        states = run_sweep(plan, print_table=shown.append)
    assert signal.getsignal(signal.SIGINT) is handler, "Ctrl-C works as before"
    return plan, states, said, shown


def test_every_trial_ends_and_failures_are_recorded_with_their_cause(swept):
    plan, states, _, _ = swept
    assert [state.number for state in sorted(states, key=lambda state: state.number)] == list(range(5))
    for state in states:
        if state.point["train.lr"] == 1e30:
            assert state.status == "failed"
            assert "Lower train.lr" in state.error
        else:
            assert state.status in ("finished", "stopped")
            assert (state.epochs == EPOCHS * REPEATS) == (state.status == "finished")
    assert states[0].status == "finished"
    assert states[-1].status == "failed"
    assert plan.points is not None


def test_the_objective_is_the_mean_over_seeds_of_the_best_checkpoint(swept):
    plan, states, _, _ = swept
    best = states[0]
    assert [run.seed for run in best.runs] == [0, 1]
    results = [json.loads((run.folder / "result.json").read_text())["validation"]["t2v/R@1"] for run in best.runs]
    rows = [row for row in pq.read_table(plan.folder / "results.parquet").to_pylist() if row["trial"] == best.number]
    assert [row["t2v/R@1"] for row in rows] == results
    assert all(row["objective"] == pytest.approx(sum(results) / 2) for row in rows)
    assert all(row["deviation"] == pytest.approx(abs(results[0] - results[1]) / 2**0.5) for row in rows)


def test_only_the_best_trial_keeps_its_checkpoints(swept):
    _, states, _, _ = swept
    for state in states:
        kept = {run.seed: checkpoints(run.folder) for run in state.runs}
        assert any(kept.values()) == (state is states[0])
    for run in states[0].runs:
        assert 1 <= len(checkpoints(run.folder)) <= 3
        assert EPOCHS in checkpoints(run.folder)


def test_a_sweep_writes_results_report_and_events(swept):
    plan, states, said, shown = swept
    written = {path.name for path in plan.folder.iterdir()}
    assert {"sweep.yaml", "base.yaml", "results.csv", "results.parquet", "best.yaml", "report.html"} <= written
    assert (plan.folder / "results.csv").read_text().count("\n") > len(states)
    assert len(shown) == 1
    assert shown[0].row_count == len(states)
    page = (plan.folder / "report.html").read_text()
    assert page.count("<svg") >= 5
    assert "clip store" in page
    assert "Lower train.lr" in page
    assert 'src="' not in page, "the report is self-contained"
    assert 'href="http' not in page
    assert any("found" in line for line in said), "the existing clip store is reused"
    for state in states:
        if state.status != "failed":
            events = EventAccumulator(str(plan.folder / "events" / f"trial_{state.number:04d}"))
            events.Reload()
            assert "objective" in events.Tags()["scalars"]
            assert "_hparams_/session_start_info" in events.summary_metadata


def test_training_with_best_yaml_reproduces_the_metrics(swept):
    plan, states, _, _ = swept
    config = load_config(plan.folder / "best.yaml")
    assert config.seed == states[0].runs[0].seed
    result = run_training(config, launch=train_in_process)
    for name, value in states[0].runs[0].metrics.items():
        assert result["validation"][name] == pytest.approx(value, abs=1e-3)


def test_a_finished_sweep_is_not_run_again_and_its_name_is_taken(swept, project, said):
    plan, states, _, _ = swept
    again = run_sweep(plan, print_table=lambda table: None)
    assert [state.number for state in again] == [state.number for state in states]
    assert "is finished" in said[0]
    other = write_sweep(project, "other", space={"similarity.kind": {"choice": ["wti", "dp"]}}, search="grid")
    other.write_text(other.read_text().replace("name: other", "name: grid"))
    with pytest.raises(SweepError, match=r"holds a sweep whose trials mean something else \(.*space: "):
        run_sweep(plan_sweep(other), print_table=lambda table: None)
    assert not list(plan.folder.rglob("writer-*")), "sweep and trials release their locks"
    refused = rf"{plan.folder} is in use: tuning by .*, or choose another name for the sweep"
    with hold_lock(plan.folder, "tuning"), pytest.raises(LockedError, match=refused):
        run_sweep(plan, print_table=lambda table: None)


def test_a_finished_sweep_takes_more_trials(project):
    """Those that are there are neither run again nor renumbered, and early stopping compares the new ones with them.

    A random search takes more trials below, where it hands them to fine-tuning.
    """
    path = write_sweep(
        project,
        "grows",
        space={"loss.contrastive": {"uniform": [0.5, 1]}},
        search="optuna",
        num_samples=1,
        set={"train.epochs": 2},
    )
    first = run_sweep(plan_sweep(path), print_table=lambda table: None)
    kept = {state.number: state for state in first}
    again = run_sweep(plan_sweep(path, {"num_samples": 2, "keep_best": 2}), print_table=lambda table: None)
    assert sorted(state.number for state in again) == [0, 1]
    assert all(state.status in ("finished", "stopped") for state in again)
    for state in again:
        if state.number in kept:
            assert state == kept[state.number]
    assert len({state.point["loss.contrastive"] for state in again}) == 2
    with pytest.raises(SweepError, match="num_samples: 2 in the folder, 1 now"):
        run_sweep(plan_sweep(path), print_table=lambda table: None)


@pytest.fixture(scope="module")
def handed(project) -> tuple[Path, list[TrialState], list]:
    """A sweep of two points, the best of which is fine-tuned; its file, trials, and printed tables."""
    path = write_sweep(
        project,
        "handed",
        space={"loss.contrastive": {"uniform": [0.5, 1]}},
        num_samples=2,
        set={"train.epochs": 1, "train.backbone_lr_scale": 0, "tracking.images": False},
        scheduler={"kind": "none"},
        max_concurrent=1,  # which the next trial reuses: a process takes longer to start than a trial
        keep_best=2,
        then={"keep": 1, "train.backbone_lr_scale": 1, "checkpoint.every_steps": 1},
    )
    shown = []
    return path, run_sweep(plan_sweep(path), print_table=shown.append), shown


def test_the_best_trial_is_fine_tuned_from_its_best_checkpoint(handed):
    _, states, shown = handed
    tuned, best = states[:2]
    assert tuned.folder.parts[-3:] == ("then", "trials", f"{best.number:04d}")
    assert [state.status for state in states] == ["finished"] * 3
    assert [table.row_count for table in shown] == [2, 1]
    run = tuned.runs[0].folder
    started, checkpoint = (
        json.loads((run / "result.json").read_text())["started_from"],
        checkpoints(best.runs[0].folder)[1],
    )
    assert (started["checkpoint"], started["validation"]) == (str(checkpoint), best.runs[0].metrics)
    assert load_config(run / "config.yaml").train.backbone_lr_scale == 1
    was, now = (
        load_student(folder, checkpoint_config(folder)).state_dict() for folder in (checkpoint, checkpoints(run)[1])
    )
    assert any(not torch.equal(was[name], now[name]) for name in was if name.startswith("backbone."))


def test_more_trials_are_fine_tuned_too_what_has_begun_resumes_and_a_failure_loses_no_other(handed):
    """The fine-tuning that was there is as after kill -9 in its last step; that of the other trial must fail."""
    path, (tuned, best, second), _ = handed
    run = tuned.runs[0].folder
    for file in (tuned.folder / "outcome.json", run / "result.json"):
        file.unlink()
    shutil.rmtree(checkpoints(run)[1])
    assert newest_checkpoint(run).name == "checkpoint_epoch_0000_step_00000002"
    first_steps = (run / "metrics.jsonl").read_text().splitlines()[:2]
    damaged = checkpoints(second.runs[0].folder)[1] / "model.safetensors"
    weights = {name: torch.full_like(value, torch.nan) for name, value in load_file(damaged).items()}
    save_file(weights, damaged, metadata=read_metadata(damaged))
    with logged() as said:
        states = run_sweep(
            plan_sweep(path, {"num_samples": 3, "then.keep": 3, "keep_best": 1}), print_table=lambda table: None
        )
    assert {best.number: best, second.number: second}.items() <= {state.number: state for state in states[3:]}.items()
    now = {state.number: state for state in states[:3]}
    assert {state.folder.parts[-3] for state in states[:3]} == {"then"}
    assert {number: state.status for number, state in now.items()} == {
        best.number: "finished",
        second.number: "failed",
        2: "finished",
    }
    assert "NaN or infinite" in now[second.number].error
    assert (run / "metrics.jsonl").read_text().splitlines()[:2] == first_steps
    assert [row["step"] for row in read_metrics(run) if "split" not in row] == [1, 2, 3], "what has begun resumes"
    assert any(re.search(r"fine-tuning 3 trials, the best of the search \(\d, \d, \d\)", line) for line in said)
    start = load_config(states[0].folder.parents[2] / "best.yaml").train.start_from
    assert start.parts[-3:-1] == (states[0].folder.name, "seed_0")
    assert start.is_dir(), "best.yaml can be trained"


def test_trials_that_do_not_fit_are_an_error_before_the_start(project):
    path = write_sweep(
        project, "large", space={"train.lr": {"choice": [1e-3, 1e-4]}}, set={"resources.cpus_per_worker": 7}
    )
    plan = plan_sweep(path)
    with pytest.raises(ClusterTooSmallError, match=r"1 workers with 7 CPU each are requested.*6 CPUs"):
        run_sweep(plan, print_table=lambda table: None)
    with pytest.raises(SweepError, match=r"the sweep cannot run here:\n  .*capacity for 0"):
        describe_plan(plan)
    assert read_trials(plan.folder) == []


def test_a_trial_with_several_workers_finishes(project):
    path = write_sweep(
        project,
        "wide",
        space={"similarity.kind": {"choice": ["wti"]}},
        search="grid",
        set={"resources.workers": 2, "train.epochs": 2},
    )
    (state,) = run_sweep(plan_sweep(path), print_table=lambda table: None)
    assert (state.status, state.epochs) == ("finished", 2)
    assert len(checkpoints(state.runs[0].folder)) >= 1


@pytest.mark.own_ray
def test_a_killed_sweep_resumes(project):
    """SIGKILL of driver, Ray and trials, when one trial is finished and another has begun."""
    path = write_sweep(
        project,
        "killed",
        space={"loss.contrastive": {"uniform": [0.5, 1]}, "similarity.kind": {"choice": ["wti", "dp"]}},
        search="optuna",
        num_samples=3,
        set={"train.epochs": 12},
        scheduler={"kind": "none"},
        max_concurrent=1,
    )
    plan = plan_sweep(path)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    job = subprocess.Popen(
        [sys.executable, "-m", "waver", "tune", str(path)], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 200
        while sum(state.epochs > 1 for state in read_trials(plan.folder)) < 2:
            assert job.poll() is None, job.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        kill(family(job.pid))
        job.communicate()
    before = read_trials(plan.folder)
    assert [state.status for state in before] == ["finished", "running"]
    first = (before[0].runs[0].folder / "metrics.jsonl").read_bytes()
    assert not (plan.folder / "results.csv").exists()

    states = run_sweep(plan, print_table=lambda table: None)
    assert [state.status for state in states] == ["finished"] * 3
    by_number = {state.number: state for state in states}
    assert (by_number[0].runs[0].folder / "metrics.jsonl").read_bytes() == first, "a finished trial is not run again"
    assert [by_number[n].point for n in (0, 1)] == [state.point for state in before]
    steps = [row["step"] for row in read_metrics(by_number[1].runs[0].folder) if "split" not in row]
    assert steps == list(range(1, len(steps) + 1)), "the trial resumed from its checkpoint"
    assert by_number[1].seconds > before[1].seconds
