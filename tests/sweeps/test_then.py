"""Hands the best trials of a sweep to fine-tuning, as the files tell of it."""

import io
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from waver.config import ConfigError, SweepConfig, load_config
from waver.runs.checkpoint import CheckpointError, save_checkpoint
from waver.runs.folder import checkpoints
from waver.runs.places import runs_in
from waver.runs.start import record_start
from waver.sweeps.extension import check_sweep, open_sweep
from waver.sweeps.folder import SweepError, read_trials, run_folder, trial_folder
from waver.sweeps.ranking import loss_by_fine_tuning
from waver.sweeps.results import best_config, write_results
from waver.sweeps.space import fine_tuned_configs, fine_tuned_point, point_configs
from waver.sweeps.then import check_then, choose_trials, fine_tuned_config, keep_checkpoints, read_fine_tuned, start_of
from waver.training.build import build_training

THEN = {"keep": 2, "train.epochs": 1, "train.backbone_lr_scale": 0.5, "train.lr": 1e-5}
LRS = {0: 0.01, 1: 0.02, 2: 0.03, 3: 0.04, 4: 0.05}


def point(number: int) -> dict:
    return {"train.lr": LRS[number], "similarity.kind": "dp"}


@pytest.fixture
def handing(sweep) -> SweepConfig:
    """The sweep, whose two best trials are fine-tuned."""
    return SweepConfig.model_validate(sweep.model_dump() | {"then": THEN})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, tiny_config) -> Path:
    """A complete checkpoint of the base experiment with dp, as each trial has it."""
    path = tmp_path_factory.mktemp("base") / "base.yaml"
    path.write_text(tiny_config.to_yaml())
    config = load_config(path, point(0))
    folder = path.parent / "checkpoint"
    save_checkpoint(folder, build_training(config, num_steps=1, device=torch.device("cpu")), config)
    return folder


@pytest.fixture
def searched(tmp_path, write_trial, checkpoint, handing, tiny_config) -> Path:
    """The folder of a finished search of five trials with two seeds; the order is 1, 3, 0; trial 2 was stopped, 4 failed."""
    open_sweep(tmp_path, handing, tiny_config)
    for number, (recall, status) in enumerate(
        [(30.0, "finished"), (50.0, "finished"), (60.0, "stopped"), (40.0, "finished"), (1.0, "failed")]
    ):
        trial = write_trial(number, point(number), [[recall, recall - 1]] * 2, status)
        fill(trial, checkpoint)
    return tmp_path


def fill(trial: Path, checkpoint: Path) -> None:
    """Gives the runs of a trial complete checkpoints."""
    for empty in trial.glob("seed_*/checkpoint_*"):
        shutil.copytree(checkpoint, empty, dirs_exist_ok=True)


def kept(folder: Path, stage: str = "") -> list[int]:
    return [state.number for state in read_trials(folder / stage) if all(checkpoints(run.folder) for run in state.runs)]


@pytest.fixture
def fine_tune(searched, write_trial, checkpoint, handing):
    """Writes what the fine-tuning of a trial leaves behind."""

    def write(number: int, recall: float, status: str | None = "finished", error: str = "") -> None:
        configs = [fine_tuned_config(searched, handing, trial_of(searched, number), seed) for seed in (0, 1)]
        starts = [start_of(searched, number, seed) for seed in (0, 1)]
        seeds = [] if status == "failed" else [[recall], [recall + 2]]
        shutil.rmtree(trial_folder(searched / "then", number), ignore_errors=True)
        trial = write_trial(number, fine_tuned_point(handing, point(number)), seeds, status, error, stage="then")
        fill(trial, checkpoint)
        for seed, (config, start) in enumerate(zip(configs, starts, strict=True)):
            run = run_folder(trial, seed)
            run.mkdir(exist_ok=True)
            (run / "config.yaml").write_text(config.to_yaml())
            record_start(run, start)

    return write


def trial_of(folder: Path, number: int):
    return next(state for state in read_trials(folder) if state.number == number)


def test_the_best_finished_trials_are_chosen_and_more_trials_change_the_choice(searched, handing, sweep, write_trial):
    assert [state.number for state in choose_trials(read_trials(searched), handing)] == [1, 3]
    assert choose_trials(read_trials(searched), sweep) == []
    write_trial(5, point(0), [[45.0, 45.0]] * 2, "finished")
    assert [state.number for state in choose_trials(read_trials(searched), handing)] == [1, 5]


def test_a_fine_tuning_is_the_experiment_of_its_trial_with_the_changes_from_its_best_checkpoint(searched, handing):
    config = fine_tuned_config(searched, handing, trial_of(searched, 3), 1)
    train = config.train
    assert (train.epochs, train.backbone_lr_scale, train.lr) == (1, 0.5, 1e-5), "its changes come after the point"
    assert (config.similarity.kind, config.seed, config.name) == ("dp", 1, "s-then-0003-seed1")
    assert train.start_from == searched / "trials/0003/seed_1/checkpoint_epoch_0001", "the better of two epochs"
    assert fine_tuned_point(handing, point(3)) == {"train.lr": 1e-5, "similarity.kind": "dp"}
    shutil.rmtree(train.start_from)
    shutil.rmtree(train.start_from.with_name("checkpoint_epoch_0002"))
    with pytest.raises(CheckpointError, match="trials/0003/seed_1"):
        fine_tuned_config(searched, handing, trial_of(searched, 3), 1)


def test_checkpoints_are_kept_until_they_are_used_and_those_behind_the_best(searched, handing, sweep, fine_tune):
    keep_checkpoints(searched, handing)
    assert kept(searched) == [1, 3], "the best, and those that wait for their fine-tuning"
    fine_tune(1, 20.0)
    fine_tune(3, 30.0, None)
    keep_checkpoints(searched, handing)
    assert kept(searched) == [1, 3]
    assert kept(searched, "then") == [1, 3]
    fine_tune(3, 30.0)
    keep_checkpoints(searched, handing)
    assert kept(searched) == [1, 3], "1 is the best of the search, and the best fine-tuned trial started from 3"
    assert kept(searched, "then") == [3]
    keep_checkpoints(searched, sweep)
    assert kept(searched) == [1], "without fine-tuning, the best alone"


def test_checkpoints_of_a_failed_fine_tuning_are_kept(searched, handing, fine_tune):
    fine_tune(1, 20.0)
    fine_tune(3, 0.0, "failed", "loss = nan")
    keep_checkpoints(searched, handing)
    assert kept(searched) == [1, 3]


def test_results_tell_searched_and_fine_tuned_trials_apart(searched, handing, fine_tune, tiny_config, said):
    fine_tune(1, 52.0)
    fine_tune(3, 58.0)
    shown = []
    write_results(searched, handing, tiny_config, print_table=shown.append)
    rows = pq.read_table(searched / "results.parquet").to_pylist()
    assert [(row["stage"], row["trial"], row["seed"]) for row in rows[:5]] == [
        ("fine-tuned", 3, 0),
        ("fine-tuned", 3, 1),
        ("fine-tuned", 1, 0),
        ("fine-tuned", 1, 1),
        ("searched", 1, 0),
    ]
    assert rows[0]["started_from"] == str(searched / "trials/0003/seed_0/checkpoint_epoch_0001")
    assert rows[4]["started_from"] is None
    assert (rows[0]["train.lr"], rows[4]["train.lr"]) == (1e-5, 0.02)

    assert [table.title for table in shown] == ["s: t2v/R@1 on validation", "s: t2v/R@1 on validation, fine-tuned"]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(shown[1])
    lines = [line.split() for line in console.export_text().splitlines()]
    assert ["from", "trial", "t2v/R@1", "before", "epochs"] in [line[:5] for line in lines]
    row = next(line for line in lines if line[:2] == ["3", "finished"])
    assert row[2:8] == ["59.00", "±", "1.41", "40.00", "±", "0.00"]

    text = (searched / "best.yaml").read_text()
    assert text.startswith(
        "# The best of sweep s: trial 3, fine-tuned, t2v/R@1 on validation 59.00 ± 1.41, mean of 2 seeds.\n"
    )
    assert f"whose configuration is {searched / 'trials/0003/seed_0/config.yaml'}." in text
    best = load_config(searched / "best.yaml")
    assert (best.name, best.train.epochs, best.seed) == ("s-best", 1, 0)
    assert best.train.start_from == searched / "trials/0003/seed_0/checkpoint_epoch_0001"

    page = (searched / "report.html").read_text()
    assert page.index("<h2>Fine-tuned</h2>") < page.index("<h2>Trials</h2>")
    assert "with train.epochs = 1, train.backbone_lr_scale = 0.5, train.lr = 1e-05." in page
    assert "2 of them fine-tuned" in page
    events = EventAccumulator(str(searched / "events" / "then_0003"))
    events.Reload()
    assert events.Scalars("objective")[0].value == pytest.approx(59.0)
    assert (searched / "events" / "trial_0003").is_dir()
    assert not any("fine-tuning lost" in line for line in said)
    assert searched / "then/trials/0003/seed_1" in runs_in(searched)


def test_the_best_is_chosen_among_the_fine_tuned_even_if_they_lost_and_without_any_among_the_searched(
    searched, handing, fine_tune, tiny_config, said
):
    fine_tune(3, 0.0, "failed", "loss = nan")
    states, tuned = read_trials(searched), read_fine_tuned(searched, handing)
    state, config = best_config(searched, states, handing, fine_tuned=tuned)
    assert (state.number, config.train.start_from) == (1, None)
    assert loss_by_fine_tuning(states, tuned, handing) == []
    fine_tune(1, 20.0)
    write_results(searched, handing, tiny_config, print_table=lambda table: None)
    assert load_config(searched / "best.yaml").train.lr == 1e-5
    sentence = (
        "fine-tuning lost: the best searched trial, 1, has t2v/R@1 50.00, the best fine-tuned one, of trial 1, 21.00"
    )
    assert sentence in said
    page = (searched / "report.html").read_text()
    assert sentence in page
    assert "loss = nan" in page


def test_what_a_sweep_that_has_begun_may_change_of_then(searched, handing, fine_tune, tiny_config, load_tiny):
    other = SweepConfig.model_validate(handing.model_dump() | {"then": THEN | {"train.lr": 1e-6}})
    check_sweep(searched, other, tiny_config)  # nothing is fine-tuned yet
    fine_tune(1, 20.0)
    check_sweep(searched, handing, tiny_config)
    with pytest.raises(
        SweepError, match=r"fine-tuned otherwise \(train.lr: 1e-05 in the folder, 1e-06 now\): delete this folder"
    ):
        check_sweep(searched, other, tiny_config)
    shutil.rmtree(searched / "then")
    check_sweep(searched, other, tiny_config)
    fine_tune(1, 20.0)
    for settings in ({"resources.gpus_per_worker": 0}, {"evaluate.dsl": True}, {"keep": 1}):
        same = SweepConfig.model_validate(handing.model_dump() | {"then": THEN | settings})
        check_sweep(searched, same, tiny_config)


def test_trials_whose_checkpoints_are_gone_cannot_be_handed_on(searched, sweep, handing, fine_tune):
    """As if the sweep had kept only its best, and fine-tuning was asked for afterwards."""
    keep_checkpoints(searched, sweep)
    with pytest.raises(SweepError, match=r"then.keep = 2, but the checkpoints of 1 trial .* are gone \(trial 3\)"):
        check_then(searched, handing)
    check_then(searched, SweepConfig.model_validate(sweep.model_dump() | {"then": THEN | {"keep": 1}}))
    check_then(searched, sweep)


@pytest.mark.parametrize(
    ("then", "settings", "expected"),
    [
        ({"train.epochss": 1}, {}, r"then.train.epochss: unknown key; did you mean epochs\? \(in 2 of 2 points\)"),
        ({"train.epochs": 0}, {}, r"then.train.epochs: 0: "),
        ({"loss.distill": 1}, {}, r"then.loss.distill = 1 needs phrases"),
        ({"loss.kind": "sigmoid"}, {}, r"then.loss.kind = sigmoid, but the trial is trained with softmax"),
        (
            {"knowledge.top_k": 0},
            {"knowledge.top_k": 2, "model.weights": "weights.pt"},
            r"then: the model would have no weights of fusion, which the trial has",
        ),
        (
            {"train.freeze": ["vision"]},
            {},
            r"then: the search trains vision, .*: add embeddings.use: never to `then`",
        ),
        ({"train.freeze": ["vision"], "embeddings.use": "never"}, {}, None),
        ({"train.freeze": ["vision"]}, {"train.backbone_lr_scale": 0}, None),
    ],
)
def test_every_fine_tuning_is_validated_before_the_search(tmp_path, load_tiny, sweep, then, settings, expected):
    load_tiny()
    handing = SweepConfig.model_validate(
        sweep.model_dump() | {"then": {"train.backbone_lr_scale": 1} | then, "base": tmp_path / "tiny.yaml"}
    )
    points = [point(0), point(1)]
    if expected is None:
        point_configs(handing, load_tiny(**settings), settings, points)
        assert len(fine_tuned_configs(handing, settings, points)) == 2
        return
    with pytest.raises(ConfigError, match=expected):
        point_configs(handing, load_tiny(**settings), settings, points)


def test_mistakes_of_points_and_of_then_come_at_once_and_each_once(tmp_path, load_tiny, sweep):
    load_tiny()
    then = {"keep": 1, "train.warmup_fraction": 2}
    handing = SweepConfig.model_validate(sweep.model_dump() | {"then": then, "base": tmp_path / "tiny.yaml"})
    with pytest.raises(ConfigError) as caught:
        point_configs(handing, load_tiny(), {}, [{"train.lr": -1}, {"train.lr": 1}])
    message = str(caught.value)
    assert message.startswith("2 mistakes in the settings of sweep s")
    assert "train.lr: -1: " in message
    assert "then.train.warmup_fraction: 2: " in message
    assert "(in 2 of 2 points)" in message
