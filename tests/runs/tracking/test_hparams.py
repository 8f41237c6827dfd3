"""Checks HParams with a real TensorBoard that reads the events of several runs."""

import json
import re
import subprocess
import sys
import time
import urllib.request

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from torch.utils.tensorboard import SummaryWriter

from waver.runs.tracking.hparams import comparable_settings, write_best, write_hparams, write_session_end


def test_comparable_settings_are_those_that_affect_metrics(tiny_config):
    settings = comparable_settings(tiny_config.model_dump(mode="json"))
    assert settings["train.lr"] == 1e-3
    assert settings["train.epochs"] == 2
    assert settings["knowledge.at_inference"] is True
    assert settings["data.format"] == "table"
    assert settings["text.prompt"] == settings["model.weights"] == settings["knowledge.released"] == "none"
    assert settings["vocabulary.splits"] == "train"
    assert settings["seed"] == 0
    assert re.fullmatch(r"own-[0-9a-f]{8}", settings["model.backbone"])
    sections = {key.partition(".")[0] for key in settings}
    assert sections == {
        "seed",
        "data",
        "video",
        "text",
        "model",
        "similarity",
        "vocabulary",
        "knowledge",
        "loss",
        "train",
    }
    assert all(isinstance(value, bool | int | float | str) for value in settings.values())


def test_a_fraction_that_is_not_set_is_left_out_and_stays_a_number(load_tiny):
    """TensorBoard would take it for a string in all runs."""
    unset, chosen = load_tiny(), load_tiny(**{"data.validation_fraction": 0.1})
    assert "data.validation_fraction" not in comparable_settings(unset.model_dump(mode="json"))
    assert comparable_settings(chosen.model_dump(mode="json"))["data.validation_fraction"] == 0.1


def test_paths_and_resources_are_not_comparable_settings(load_tiny):
    one = load_tiny(**{"resources.workers": 2, "evaluate.batch_size": 7, "storage.path": "/elsewhere"})
    assert comparable_settings(one.model_dump(mode="json")) == comparable_settings(load_tiny().model_dump(mode="json"))


def test_hparam_values_of_files_and_lists():
    settings = {"model": {"weights": "/some/where/ViT.pt"}, "knowledge": {"released": ["/a/x.json", "/b/y.json"]}}
    assert comparable_settings(settings) == {"model.weights": "ViT.pt", "knowledge.released": "x.json, y.json"}


def test_session_start_and_end_are_read_back(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        write_hparams(
            writer, {"train.lr": 0.5, "loss.on": True, "kind": "wti", "seed": 3}, start_s=100.0, group="trial 7"
        )
        write_session_end(writer, end_s=200.0)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    contents = {tag: about.plugin_data.content for tag, about in events.summary_metadata.items()}
    start = metadata.parse_session_start_info_plugin_data(contents[metadata.SESSION_START_INFO_TAG])
    assert (start.start_time_secs, start.group_name) == (100.0, "trial 7")
    assert start.hparams["train.lr"].number_value == 0.5
    assert start.hparams["loss.on"].bool_value is True
    assert start.hparams["kind"].string_value == "wti"
    assert "seed" not in start.hparams  # of a group, whose seeds differ
    end = metadata.parse_session_end_info_plugin_data(contents[metadata.SESSION_END_INFO_TAG])
    assert (end.status, end.end_time_secs) == (1, 200.0)


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory):
    """(columns, metrics, lines by name) of HParams over unrelated runs, one of them resumed, and a trial of two seeds."""
    folder = tmp_path_factory.mktemp("runs")

    def writer(name, **how):
        return SummaryWriter(str(folder / name / "events"), **how)

    with writer("finished") as events:
        write_hparams(events, {"lr": 0.1, "kind": "wti", "same": 1}, start_s=1.0)
        for step, value in ((10, 5.0), (20, 7.0), (30, 7.0)):
            events.add_scalar("loss", 1 / step, step)
            write_best(events, step, {"t2v/R@1": value})
        write_session_end(events, end_s=2.0)
    with writer("running") as events:  # and of another data set, which has another setting
        write_hparams(events, {"lr": 0.2, "kind": "dp", "same": 1, "data.split": "9k"}, start_s=1.0)
        write_best(events, 10, {"t2v/R@1": 3.0})
    with writer("resumed", purge_step=1) as events:
        write_hparams(events, {"lr": 0.3, "kind": "ti", "same": 1}, start_s=1.0)
        write_best(events, 10, {"t2v/R@1": 2.0})
        write_best(events, 20, {"t2v/R@1": 9.0})  # beyond its last checkpoint
    for path in (folder / "resumed" / "events").iterdir():  # files of the same second are read in any order
        path.rename(path.with_name(path.name.replace("tfevents.", "tfevents.0")))
    with writer("resumed", purge_step=11) as events:
        write_hparams(events, {"lr": 0.3, "kind": "ti", "same": 1}, start_s=5.0)
        write_best(events, 20, {"t2v/R@1": 4.0})
        write_session_end(events, end_s=6.0)
    with writer("ended twice") as events:
        write_hparams(events, {"lr": 0.3, "kind": "ti", "same": 1}, start_s=1.0)
        write_best(events, 10, {"t2v/R@1": 1.0})
        write_session_end(events, end_s=2.0, status="failed")
        write_session_end(events, end_s=3.0)
    for seed, value in ((0, 10.0), (1, 20.0)):
        with writer(f"sweep/trials/0001/seed_{seed}") as events:
            write_hparams(events, {"lr": 0.4, "kind": "wti", "same": 1, "seed": seed}, start_s=1.0, group="sweep/0001")
            write_best(events, 10, {"t2v/R@1": value})
            write_session_end(events, end_s=2.0)

    command = [sys.executable, "-m", "waver", "board", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        url = re.search(r"http://\S+/", process.stderr.readline()).group() + "data/plugin/hparams/"
        statuses = [f"STATUS_{name}" for name in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")]
        asked = {"startIndex": 0, "sliceSize": 99, "aggregationType": "AGGREGATION_AVG", "allowedStatuses": statuses}
        deadline, groups = time.monotonic() + 10, []
        while time.monotonic() < deadline and num_ended(groups) < 5:  # events are read in order, the end last
            groups = ask(f"{url}session_groups", asked)["sessionGroups"]
        experiment = ask(f"{url}experiment", {})
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    columns = {info["name"]: info for info in experiment["hparamInfos"]}
    metrics = [info["name"]["tag"] for info in experiment["metricInfos"]]
    return columns, metrics, {group["name"]: group for group in groups}


def num_ended(groups):
    return sum(session["endTimeSecs"] > 0 for group in groups for session in group["sessions"])


def ask(url, content):
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=20) as response:
        return json.load(response)


def best(group):
    return {value["name"]["tag"]: value["value"] for value in group["metricValues"]}["0 best/t2v R@1"]


@pytest.mark.slow
def test_settings_of_all_runs_are_columns_and_those_that_differ_come_first(dashboard):
    columns = dashboard[0]
    assert set(columns) == {"lr", "kind", "same", "data.split"}
    assert list(columns)[:2] == ["kind", "lr"]
    assert (columns["lr"]["domainInterval"], columns["lr"]["differs"]) == ({"minValue": 0.1, "maxValue": 0.4}, True)
    assert sorted(columns["kind"]["domainDiscrete"]) == ["dp", "ti", "wti"]
    assert columns["same"]["differs"] is False


def test_best_metrics_come_first(dashboard):
    assert dashboard[1] == ["0 best/t2v R@1", "loss"]


def test_every_run_is_one_line_with_its_settings_and_best_metrics(dashboard):
    lines = dashboard[2]
    assert set(lines) == {
        *(f"{name}/events" for name in ("finished", "running", "resumed", "ended twice")),
        "sweep/0001",
    }
    assert lines["finished/events"]["hparams"] == {"lr": 0.1, "kind": "wti", "same": 1.0}
    assert best(lines["finished/events"]) == 7.0


def test_unfinished_run_has_its_best_metrics_so_far(dashboard):
    line = dashboard[2]["running/events"]
    assert best(line) == 3.0
    assert line["sessions"][0]["status"] == "STATUS_UNKNOWN"


def test_resumed_run_is_one_session_with_its_last_metrics(dashboard):
    line = dashboard[2]["resumed/events"]
    assert best(line) == 4.0
    (session,) = line["sessions"]
    assert (session["status"], session["startTimeSecs"], session["endTimeSecs"]) == ("STATUS_SUCCESS", 1.0, 6.0)


def test_seeds_of_a_trial_are_one_line_with_mean_metrics(dashboard):
    line = dashboard[2]["sweep/0001"]
    assert best(line) == 15.0
    assert len(line["sessions"]) == 2
    assert line["hparams"] == {"lr": 0.4, "kind": "wti", "same": 1.0}


def test_only_the_first_session_end_counts(dashboard):
    (session,) = dashboard[2]["ended twice/events"]["sessions"]
    assert (session["status"], session["endTimeSecs"]) == ("STATUS_FAILURE", 2.0)
