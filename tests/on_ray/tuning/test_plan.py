"""Plans of sweeps and what a dry run says of them, which need no Ray."""

import json
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from waver.config import ConfigError
from waver.knowledge.errors import TooFewPhrasesError
from waver.on_ray.cluster.capacity import count_fitting_workers
from waver.on_ray.tuning.describe import asha_share, cost_estimate, describe_plan
from waver.on_ray.tuning.plan import Plan, plan_fine_tuning, plan_sweep, trials_at_once
from waver.on_ray.tuning.shared import check_shared, find_shared
from waver.quickstart.world import SEEN_STYLES
from waver.sweeps.folder import SweepError

REPOSITORY = Path(__file__).parents[3]
SHIPPED = sorted((REPOSITORY / "experiments" / "sweeps").glob("*.yaml"))
NODE = {"CPU": 8.0, "GPU": 2.0, "memory": 1e9}


@pytest.fixture
def plan(tmp_path, load_tiny):
    """Plans a sweep over the small experiment; `settings` apply to all trials."""

    def make(
        *,
        space: str = "{train.lr: {choice: [1e-3, 2e-3, 3e-3, 4e-3]}}",
        rest: str = "",
        search: str = "grid",
        **settings,
    ) -> Plan:
        load_tiny()  # writes the file
        pairs = ", ".join(f"{key}: {value}" for key, value in settings.items())
        path = tmp_path / "sweep.yaml"
        path.write_text(f"name: s\nbase: tiny.yaml\nspace: {space}\nset: {{{pairs}}}\nsearch: {search}\n{rest}\n")
        return plan_sweep(path, {"storage.path": str(tmp_path / "storage")})

    return make


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps_are_valid(path: Path):
    plan = plan_sweep(path)
    assert plan.sweep.name == path.stem
    assert plan.num_trials >= 8
    assert plan.configs
    assert plan.sweep.objective.split == "validation"


def test_the_sweep_of_the_quickstart_covers_the_losses_and_top_k():
    plan = plan_sweep(REPOSITORY / "experiments" / "sweeps" / "quickstart.yaml")
    assert {"loss.distill", "loss.knowledge", "knowledge.top_k", "similarity.wti_layers"} <= plan.sweep.space.keys()
    assert trials_at_once(plan, [{"CPU": 2.0}], 0.0) == 2
    assert all(config.resources.loaders_per_worker == 0 for config in plan.configs)


def test_the_sweep_over_writers_leaves_each_out_once_and_keeps_all_runs():
    plan = plan_sweep(REPOSITORY / "experiments" / "sweeps" / "leave_one_writer_out.yaml")
    left_out = Counter(
        writer
        for config in plan.configs
        for writer in set(SEEN_STYLES) - set(config.data.train_styles)  # pyright: ignore[reportAttributeAccessIssue]
    )
    assert left_out == dict.fromkeys(SEEN_STYLES, 2), "without and with knowledge"
    assert len({config.dictionary for config in plan.configs}) == 4
    assert len({config.clip_store for config in plan.configs}) == 1
    assert plan.sweep.keep_best == plan.num_trials


@pytest.mark.parametrize(
    ("settings", "nodes", "gpus", "expected"),
    [
        ({}, [{"CPU": 2.0}], 0, 2),
        ({}, [{"CPU": 16.0}], 0, 4),  # limited by the number of trials
        ({"resources.cpus_per_worker": 2}, [{"CPU": 3.0}, {"CPU": 3.0}], 0, 2),  # a worker does not span nodes
        ({"resources.loaders_per_worker": 2}, [{"CPU": 6.0}], 0, 3),  # loaders need CPUs too
        ({"resources.workers": 2}, [{"CPU": 3.0}, {"CPU": 3.0}], 0, 3),  # a trial may span nodes
        ({"resources.workers": 3}, [{"CPU": 8.0}], 0, 2),
        ({}, [NODE], 1, 2),
        ({}, [NODE], 0.5, 4),
        ({}, [NODE, {"CPU": 8.0}], 0.5, 4),  # a node without GPUs adds none
        ({"resources.workers": 2}, [NODE], 1, 1),
        ({"resources.workers": 2}, [NODE], 2, 0),
        ({"resources.cpus_per_worker": 4}, [], 0, 0),
    ],
)
def test_trials_at_once(plan, settings, nodes, gpus, expected):
    assert trials_at_once(plan(**settings), nodes, float(gpus)) == expected


def test_max_concurrent_limits_trials_at_once(plan):
    assert trials_at_once(plan(rest="max_concurrent: 1"), [NODE], 0.0) == 1
    assert trials_at_once(plan(rest="max_concurrent: 3"), [{"CPU": 2.0}], 0.0) == 2


def test_fractional_resources_are_counted_without_rounding_errors():
    assert count_fitting_workers([{"CPU": 1.0, "GPU": 1.0}], 0.1, 0.1) == 10
    assert count_fitting_workers([{"CPU": 0.3}], 0.1, 0.0) == 3


def write_data(folder, captions):
    """Writes captions as a table, with empty videos; returns the settings that name both."""
    (folder / "videos").mkdir()
    lines = ["video,caption,split"]
    for row in captions.to_pylist():
        (folder / "videos" / f"{row['video_id']}.mp4").touch()
        lines.append(f"{row['video_id']}.mp4,{row['caption']},{row['split']}")
    (folder / "captions.csv").write_text("\n".join(lines))
    return {"data.annotations": folder / "captions.csv", "data.videos": folder / "videos"}


def test_a_dry_run_logs_the_plan_and_writes_nothing(plan, tmp_path, store, captions, said):
    data = write_data(tmp_path, captions)
    made = plan(space="{train.lr: {choice: [1e-3, 2e-3]}, video.size: {choice: [16, 8]}}", **data)
    describe_plan(made)
    text = "\n".join(said)
    assert "4 trials, 2 epochs at most, t2v/R@1 on validation" in text
    assert "train.lr=0.002, video.size=8" in text
    assert "a trial takes 1 worker with 1 CPU and 0 GPU each" in text
    assert "GiB per trial for weights, gradients, optimizer and frames" in text
    assert re.search(r"of a run: at most .* for 28 pairs .*; of all 4 runs: less than a GPU-minute$", text, re.M)
    assert "validation has 5 clips and 10 captions: R@1 is 20.0 by chance" in text
    assert text.count("clip store: will be made once") == 2, "videos of another size are other frames"
    assert text.count("(2 trials)") == 2
    assert not (tmp_path / "storage").exists()


@pytest.fixture(scope="module")
def msrvtt() -> pa.Table:
    """Clips of the 9k split: 450 of 9,000 videos are held out, each has 20 captions."""
    splits = {"train": 8550, "validation": 450}
    rows = [(f"{split}{clip}", split) for split, clips in splits.items() for clip in range(clips) for _ in range(20)]
    return pa.table({"clip_id": [clip_id for clip_id, _ in rows], "split": [split for _, split in rows]})


def comment_of(path: Path) -> str:
    return " ".join(line.strip("# ") for line in path.read_text().splitlines() if line.startswith("#"))


@pytest.mark.slow
def test_the_comment_of_the_frozen_sweep_gives_the_estimated_cost_of_search_and_fine_tuning(msrvtt):
    path = REPOSITORY / "experiments" / "sweeps" / "msrvtt_frozen.yaml"
    plan = plan_sweep(path)
    then, forward = plan_fine_tuning(plan), {}
    said = cost_estimate(plan, msrvtt, forward=forward) + cost_estimate(
        then, msrvtt, what="fine-tuning", forward=forward
    )
    figures = [figure for figure in re.findall(r"[\d.]+ (?:PFLOP|GPU-\w+s)", said) if figure != "1 GPU-minutes"]
    assert len(figures) == 6
    comment = comment_of(path)
    for figure in figures:
        assert figure in comment
    assert (then.num_trials, then.cpus_per_worker, then.base.resources.gpus_per_worker) == (3, 1, 1)
    assert {config.frozen_towers for config in plan.configs} == {("vision", "text")}
    assert {config.frozen_towers for config in plan.fine_tuned} == {()}


@pytest.mark.parametrize("name", ["msrvtt_losses", "msrvtt_topk_wti"])
def test_comments_of_shipped_sweeps_give_the_estimated_cost(name, msrvtt):
    path = REPOSITORY / "experiments" / "sweeps" / f"{name}.yaml"
    said, comment = cost_estimate(plan_sweep(path), msrvtt), comment_of(path)
    assert "855,000 pairs" in said
    assert re.findall(r"(\d+) PFLOP", said) == re.findall(r"(\d+) PFLOP", comment)
    hours = re.findall(r"([\d.]+) GPU-hours|about (\d+) with ASHA", comment)
    assert re.findall(r"([\d.]+) GPU-hours", said) == [one or other for one, other in hours]


def test_a_dry_run_describes_fine_tuning_too(plan, tmp_path, captions, said):
    """It has resources of its own, and needs the clip store, whose embeddings suffice for the search."""
    data = write_data(tmp_path, captions)
    then = "then: {keep: 3, train.epochs: 1, train.backbone_lr_scale: 1e-3, resources.workers: 2}"
    made = plan(rest=f"{then}\nrepeats: 2", **data, **{"train.backbone_lr_scale": 0, "train.epochs": 9})
    describe_plan(made)
    text = "\n".join(said)
    assert "a trial takes 1 worker with 1 CPU and 0 GPU each" in text
    changes = "train.epochs=1, train.backbone_lr_scale=0.001, resources.workers=2"
    assert f"then: fine-tuning of the 3 best trials, from their best checkpoints, with {changes}, 2 seeds each" in text
    assert "a fine-tuning takes 2 workers with 1 CPU and 0 GPU each" in text
    assert "GiB per fine-tuning for weights" in text
    assert re.search(
        r"of a fine-tuning: at most .* for 14 pairs .*; of all 6 fine-tunings: less than a GPU-minute", text
    )
    assert text.count("clip store: will be made once") == 1
    assert "embeddings: will be made once" in text
    assert not (tmp_path / "storage").exists()
    too_large = plan(rest="then: {train.lr: 1e-5, resources.gpus_per_worker: 9}", **data)
    with pytest.raises(
        SweepError, match=r"the sweep cannot run here:\n  1 workers with 1 CPU and 9 GPU each are requested"
    ):
        describe_plan(too_large)
    with pytest.raises(SweepError, match=r"resources.workers is a range"):
        plan(rest="then: {train.lr: 1e-5, resources.workers: {min: 1, max: 2}}", **data)


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ((5, 1, 3.0), (1 + 2 / 3 + 2 / 9) / 5),
        ((4, 1, 2.0), (1 + 1 / 2 + 2 / 4) / 4),
        ((2, 2, 3.0), 1),
        ((1, 3, 3.0), 1),
    ],
)
def test_share_of_epochs_that_asha_trains(settings, share):
    assert asha_share(*settings) == pytest.approx(share)


def test_a_dry_run_of_trials_that_do_not_fit_is_an_error(plan, said):
    """The plan is printed, and then everything that is missing here: the sweep may be for another machine."""
    made = plan(**{"resources.gpus_per_worker": 9})
    with pytest.raises(SweepError) as caught:
        describe_plan(made)
    for expected in (
        "the sweep cannot run here:\n  1 workers with 1 CPU and 9 GPU each are requested",
        "capacity for 0",
        "missing folder of videos",
    ):
        assert expected in str(caught.value)
    text = "\n".join(said)
    assert "4 trials, 2 epochs at most" in text
    assert "a trial takes 1 worker with 1 CPU and 9 GPU each; not one fits here" in text
    assert "GiB per trial" in text


def test_overrides_reach_the_sweep_and_its_experiment(tmp_path, load_tiny):
    load_tiny()
    path = tmp_path / "sweep.yaml"
    path.write_text("name: s\nbase: tiny.yaml\nspace: {train.lr: {uniform: [0.1, 1]}}\n")
    overrides = {"storage.path": str(tmp_path), "num_samples": 2, "name": "t", "train.epochs": 7, "sweep.seed": 3}
    made = plan_sweep(path, overrides)
    assert (made.num_trials, made.sweep.seed, made.folder) == (2, 3, tmp_path / "sweeps" / "t")
    assert {(config.seed, config.train.epochs) for config in made.configs} == {(0, 7)}
    with pytest.raises(ConfigError, match=r"the sweep varies train.lr: .*--set 'space.train.lr=\{choice: \[1\]\}'"):
        plan_sweep(path, overrides | {"train.lr": 1})


def test_mistakes_in_points_or_base_are_errors_of_the_plan(plan):
    with pytest.raises(ConfigError, match=r"train.lrr: unknown key; did you mean lr\? \(in 2 of 2 points\)"):
        plan(space="{train.lrr: {choice: [1, 2]}}")
    made = plan()
    made.sweep.base.unlink()
    with pytest.raises(ConfigError, match=r"tiny.yaml: no such file"):
        plan_sweep(made.sweep.base.with_name("sweep.yaml"))


def test_experiments_with_other_losses_and_top_k_share_stores(load_knowing):
    configs = [
        load_knowing(**{"data.annotations": "x.csv", "loss.distill": weight, "knowledge.top_k": top_k})
        for weight, top_k in ((0.0, 1), (1.0, 3), (1.0, 0))
        if not (weight and not top_k)
    ]
    assert len({config.clip_store for config in configs}) == 1
    assert len({config.knowledge_store for config in configs}) == 1
    assert find_shared([]) == []


def test_a_clip_store_whose_frames_are_gone_is_made_again_for_fine_tuning(tmp_path, build_project, captions):
    """Embeddings of a finished store suffice for the search, but not for a backbone that moves."""
    build_project(tmp_path, captions)
    path = tmp_path / "sweep.yaml"
    text = "{name: s, base: experiment.yaml, set: {train.backbone_lr_scale: 0}, space: {loss.distill: {choice: [0]}}, "
    path.write_text(text + "search: grid, then: {train.backbone_lr_scale: 1}}")
    plan = plan_sweep(path, {"resources.workers": 1})
    (store, _) = find_shared(plan.configs, fine_tuned=plan.fine_tuned)
    assert (store.what, store.trials, store.there) == ("clip store", 1, True)
    for file in (plan.base.clip_store / "clips").iterdir():
        file.unlink()
    (store, _) = find_shared(plan.configs, fine_tuned=plan.fine_tuned)
    assert not store.there


def test_what_trials_share_is_there_only_if_it_has_the_clips_of_all_of_them(tmp_path, build_project, captions):
    """Trials that train on different styles share a clip store, but need different clips."""
    build_project(tmp_path, captions)
    rows = [json.loads(line) for line in (tmp_path / "captions.jsonl").read_text().splitlines()]
    (tmp_path / "videos" / "later.mp4").touch()
    rows = [row | {"style": "old"} for row in rows]
    rows.append({"video": "later.mp4", "caption": "a later ball", "split": "train", "style": "new"})
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        "{name: s, base: experiment.yaml, space: {data.train_styles: {grid: [[old], [new, old]]}}, search: grid}"
    )
    configs = plan_sweep(sweep, {"resources.workers": 1}).configs
    assert find_shared(configs[:1])[0].there, "it has all clips of the old style"
    (store,) = find_shared(configs)
    assert (store.what, store.trials, store.there) == ("clip store", 2, False)


def test_a_dictionary_with_too_few_phrases_for_a_trial_is_an_error_before_the_trials(load_knowing, knowledge):
    few, many = (load_knowing(**{"knowledge.top_k": top_k, "knowledge.num_matches": 30}) for top_k in (6, 7))
    check_shared([many, few])  # nothing is there yet
    shutil.copytree(knowledge.path, few.knowledge_store)
    check_shared([few])
    with pytest.raises(TooFewPhrasesError, match=r"knowledge.top_k = 7, but each clip has only 6 phrases"):
        check_shared([few, many])


def test_with_optuna_a_range_must_not_change_the_clip_store(plan):
    with pytest.raises(SweepError, match=r"space.video.size: .*use choice instead of randint"):
        plan(space="{video.size: {randint: [8, 16]}}", search="optuna")
    made = plan(space="{video.size: {choice: [8, 16]}, train.lr: {uniform: [0.1, 1]}}", search="optuna")
    assert len({config.clip_store for config in made.configs}) == 2
    assert made.points is None
    assert made.num_trials == 16


def test_a_missing_optuna_is_an_error_that_names_the_extra(plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(SweepError, match=r"pip install 'waver\[tune\]'"):
        plan(rest="", space="{train.lr: {uniform: [0.1, 1]}}", search="optuna")


def test_a_sweep_on_an_object_store_is_an_error(tmp_path):
    with pytest.raises(SweepError, match=r"storage.path = s3://bucket/x: .* a file system that every node mounts"):
        plan_sweep(SHIPPED[0], {"storage.path": "s3://bucket/x"})
