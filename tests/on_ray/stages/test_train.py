"""Training on real Ray workers. A run takes seconds, so most tests share one, with two workers."""

import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
import ray
import torch
from logs import logged
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from waver.config import ExperimentConfig, load_config
from waver.data.clip_store import ClipStore
from waver.evaluation.evaluate import EvaluationOptions, evaluate
from waver.on_ray.cluster.capacity import ClusterTooSmallError
from waver.on_ray.cluster.signals import ControlSignals
from waver.on_ray.stages.evaluate import evaluate_on_workers
from waver.on_ray.stages.train import train_in_process, train_on_workers
from waver.on_ray.stages.train_worker import clip_reader
from waver.runs.checkpoint import CheckpointError, load_student
from waver.runs.control import Interrupted
from waver.runs.folder import checkpoints, describe_checkpoint, find_checkpoint, newest_checkpoint
from waver.runs.inputs import load_captions
from waver.runs.tracking import read_metrics
from waver.runs.tracking.tags import tag_of
from waver.runs.train import train
from waver.runs.train_loop import TrainingJob, train_job, worker_batches
from waver.tools.termination import Terminated
from waver.training.parallel import CollectiveError
from waver.training.plan import BatchSizeError, plan_epoch, training_rows

EPOCHS = 3
CPU = torch.device("cpu")


@pytest.fixture(scope="session")  # session scope: tests that start their own Ray run first and use it too
def project(tmp_path_factory, build_project, captions) -> Path:
    """A project folder: experiment.yaml, captions, videos, and a complete clip store."""
    return build_project(tmp_path_factory.mktemp("project"), captions, train={"epochs": EPOCHS})


def experiment(project: Path, **overrides) -> ExperimentConfig:
    return load_config(project / "experiment.yaml", overrides)


def run(config: ExperimentConfig) -> dict:
    return train(config, load_captions(config), ClipStore(config.clip_store), launch=train_on_workers)


@pytest.fixture(scope="session")  # session scope: tests that start their own Ray run first and use it too
def finished_run(project) -> tuple[ExperimentConfig, dict, list[str]]:
    """A finished run with two workers: configuration, result and log lines."""
    config = experiment(project, name="fitted")
    with logged() as said:
        return config, run(config), said


def test_a_run_folder_has_all_files_and_the_kept_checkpoints(finished_run):
    config, result, _ = finished_run
    written = {path.name for path in config.run_folder.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.jsonl", "events", "result.json"} <= written
    assert json.loads((config.run_folder / "result.json").read_text()) == result
    kept = checkpoints(config.run_folder)
    assert EPOCHS in kept, "the last epoch"
    assert result["best_checkpoint"] in {path.name for path in kept.values()}
    assert len(kept) <= 3
    assert not list(config.run_folder.glob(".checkpoint*"))


def test_each_step_is_logged_once_with_the_same_values_in_tensorboard(finished_run):
    config, result, _ = finished_run
    rows = read_metrics(config.run_folder)
    steps = [row for row in rows if "split" not in row]
    assert [row["step"] for row in steps] == list(range(1, result["steps"] + 1))
    assert [row["epoch"] for row in rows if "split" in row] == list(range(1, EPOCHS + 1))
    events = EventAccumulator(str(config.run_folder / "events"))
    events.Reload()
    evaluations = [row for row in rows if "split" in row]
    for rows_of_kind in (steps, evaluations):
        labels = ("step", "epoch", "split", "gallery_size", "num_queries")
        names = [name for name in rows_of_kind[0] if name not in labels]
        for name in names:
            written = [(event.step, event.value) for event in events.Scalars(tag_of(name))]
            assert written == [(row["step"], pytest.approx(row[name])) for row in rows_of_kind], name
    assert {"entropy/text_weights", "entropy/video_weights", "clips_per_s_per_worker", "data_wait_share"} <= steps[
        0
    ].keys()


def test_each_epoch_logs_a_line(finished_run):
    _, _, said = finished_run
    assert [line.split(":")[0] for line in said if line.startswith("epoch ")] == [
        f"epoch {e}" for e in range(1, EPOCHS + 1)
    ]


def test_a_finished_run_is_not_trained_again(finished_run, said):
    config, result, _ = finished_run
    assert run(config) == result
    assert "is finished (3 epochs)" in said[0]


def test_metrics_on_ray_workers_equal_those_of_one_process(finished_run):
    config, _, _ = finished_run
    captions, store = load_captions(config), ClipStore(config.clip_store)
    checkpoint = find_checkpoint(config.run_folder)
    on_workers = evaluate_on_workers(
        checkpoint, config, captions, store, split="test", options=EvaluationOptions(top_k=3)
    )
    in_process = evaluate(
        load_student(checkpoint, config), captions, store, config, split="test", options=EvaluationOptions(top_k=3)
    )
    assert on_workers.metrics == in_process.metrics
    assert torch.equal(on_workers.top.clips, in_process.top.clips)
    assert (on_workers.num_queries, on_workers.gallery_size, on_workers.missing_clips) == (24, 9, ("v20",))


@pytest.mark.parametrize("loaders", [0, 1], ids=["thread", "process"])
def test_worker_batches_follow_the_plan(project, loaders):
    config = experiment(project)
    captions, store = load_captions(config), ClipStore(config.clip_store)
    rows = training_rows(captions, store)
    assert set(captions["clip_id"].take(rows).to_pylist()) <= set(store.ok_clip_ids())
    plan = plan_epoch(config, captions, rows, epoch=3)
    batches = list(worker_batches(plan, captions, store, config, read_clips=clip_reader(loaders)))
    assert [batch.clip_ids for batch in batches] == [
        tuple(captions["clip_id"].take(batch_rows).to_pylist()) for batch_rows in plan
    ]
    assert [batch.num_pairs for batch in batches] == [len(batch_rows) for batch_rows in plan]


def assert_same_last_metrics(folder: Path, undisturbed: Path) -> None:
    last, expected = (read_metrics(path)[-1] for path in (folder, undisturbed))
    assert last["split"] == expected["split"] == "validation"
    for name, value in expected.items():
        if name == "memory_of_worker_gib":
            continue
        assert last[name] == value if isinstance(value, str) else abs(last[name] - value) <= 1e-3 * max(1, abs(value))


def train_one_step(job: TrainingJob, captions: pa.Table, num_steps: int) -> dict | Interrupted:
    """Trains in this process for one step: stop and rescale are requested from the start, and stop takes precedence."""
    requested = SimpleNamespace(remote=lambda: ray.put(None))
    signals = SimpleNamespace(wait_for_stop=requested, wait_for_capacity=requested)
    return train_job(job, captions, device=CPU, next_command=ControlSignals(signals, CPU).next_command)


def test_a_run_stopped_after_every_step_has_the_same_metrics(project, finished_run, said):
    undisturbed, result, _ = finished_run
    config = experiment(project, name="stopped", **{"resources.workers": 1})
    captions, store = load_captions(config), ClipStore(config.clip_store)
    for step in range(1, result["steps"] + 1):
        with pytest.raises(Terminated) as ended:
            train(config, captions, store, launch=train_one_step)
        assert ended.value.code == 143
        assert f"stopped on request after step {step}; a checkpoint is in {config.run_folder}" in ended.value.message
        newest = newest_checkpoint(config.run_folder)
        assert describe_checkpoint(newest) == f"step {step}, in epoch {1 + (step - 1) // 3}"
    train(config, captions, store, launch=train_one_step)
    (last,) = [line for line in said if line.startswith("continuing stopped after step 5")]
    assert "step 5, in epoch 2: 3 epochs of 3 steps" in last
    rows = [row for row in read_metrics(config.run_folder) if "split" not in row]
    assert [row["step"] for row in rows] == list(range(1, result["steps"] + 1))
    assert [row["epoch"] for row in rows] == [1 + step // 3 for step in range(result["steps"])]
    assert_same_last_metrics(config.run_folder, undisturbed.run_folder)
    assert list(checkpoints(config.run_folder))[-1] == EPOCHS
    assert len(list(config.run_folder.glob("*checkpoint*"))) <= 3


def test_a_checkpoint_is_written_before_the_evaluation(project, monkeypatch, said):
    """A machine may be preempted during the evaluation."""
    config = experiment(project, name="evaluating", **{"resources.workers": 1})
    captions, store = load_captions(config), ClipStore(config.clip_store)

    def preempted(*arguments, **options):
        raise RuntimeError("preempted")

    with monkeypatch.context() as patch:
        patch.setattr("waver.runs.train_loop.evaluate", preempted)
        with pytest.raises(RuntimeError, match="preempted"):
            train(config, captions, store, launch=train_in_process)
    with pytest.raises(Terminated):
        train(config, captions, store, launch=train_one_step)
    assert any("continuing evaluating after step 3, in epoch 1: 3 epochs of 3 steps" in line for line in said)
    rows = [(row["step"], row.get("split")) for row in read_metrics(config.run_folder)]
    assert rows == [(1, None), (2, None), (3, None), (3, "validation"), (4, None)]


def test_a_checkpoint_of_another_plan_is_an_error(project, finished_run):
    config, _, _ = finished_run
    config = experiment(project, name="other-plan", **{"resources.workers": 1})
    captions, store = load_captions(config), ClipStore(config.clip_store)
    with pytest.raises(Terminated):
        train(config, captions, store, launch=train_one_step)
    path = newest_checkpoint(config.run_folder) / "training.pt"
    torch.save(torch.load(path, weights_only=True) | {"rows": 2}, path)
    with pytest.raises(CheckpointError, match=r"was trained on 2 captions in 1 steps, but the plan of this run has 5"):
        train(config, captions, store, launch=train_one_step)


def test_an_infinite_loss_is_an_error_that_names_the_learning_rate(project):
    config = experiment(
        project, name="diverged", **{"train.lr": 1e30, "train.warmup_fraction": 0.7, "resources.workers": 1}
    )
    captions, store = load_captions(config), ClipStore(config.clip_store)
    with pytest.raises(CollectiveError, match=r"step \d+: loss = .*at lr = .*Lower train.lr"):
        train(config, captions, store, launch=train_in_process)


def test_a_batch_that_is_larger_than_the_split_is_lowered_with_a_notice(project, said):
    config = experiment(project, name="lowered", **{"resources.workers": 1, "train.global_batch_size": 64})
    result = train(config, load_captions(config), ClipStore(config.clip_store), launch=train_in_process)
    assert (result["global_batch_size"], result["steps"]) == (13, EPOCHS)
    assert (
        sum("more than the 13 training clips, and a batch has no clip twice: it is lowered to 13" in s for s in said)
        == 1
    )


def test_too_many_workers_are_errors_before_the_start(project):
    config = experiment(project, name="large", **{"resources.workers": 14, "train.global_batch_size": 28})
    captions, store = load_captions(config), ClipStore(config.clip_store)
    with pytest.raises(BatchSizeError, match=r"resources.workers = 14 is more than the 13 training clips"):
        train(config, captions, store, launch=train_on_workers)
    six = {"resources.workers": 6, "resources.loaders_per_worker": 1, "train.global_batch_size": 12}
    config = experiment(project, name="large", **six)
    with pytest.raises(ClusterTooSmallError, match=r"6 workers with 1.5 CPU each are requested.*capacity for 4"):
        train(config, captions, store, launch=train_on_workers)
