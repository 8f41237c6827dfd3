import io
import sys

import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.api_pb2 import STATUS_UNKNOWN
from tensorboard.plugins.hparams.metadata import (
    EXPERIMENT_TAG,
    SESSION_START_INFO_TAG,
    parse_session_end_info_plugin_data,
    parse_session_start_info_plugin_data,
)

from waver.config import load_config
from waver.sweeps.folder import read_trials
from waver.sweeps.ranking import mean_objective, objective_deviation, rank_trials, rivals_of_best
from waver.sweeps.results import best_config, end_runs, write_results
from waver.sweeps.tables import results_table, short_names


def test_objective_is_the_mean_over_seeds(tmp_path, written, sweep):
    states = read_trials(tmp_path)
    assert [mean_objective(state, sweep) for state in states] == [25.0, 35.0, 50.0, None, 60.0]
    assert objective_deviation(states[0], sweep) == pytest.approx(7.0710678)
    assert objective_deviation(states[2], sweep) is None


def test_only_what_was_trained_to_the_end_can_be_the_best(tmp_path, written, sweep):
    assert [state.number for state in rank_trials(read_trials(tmp_path), sweep)] == [1, 0, 2, 4, 3]


def test_low_ranks_are_better(tmp_path, written, sweep):
    low = sweep.model_copy(update={"objective": sweep.objective.model_copy(update={"metric": "t2v/MnR"})})
    assert [state.number for state in rank_trials(read_trials(tmp_path), low)][:2] == [0, 1]


def test_ties_chance_and_trials_within_the_standard_error_are_said(tmp_path, write_trial, sweep, said):
    """23 videos and 57 captions, of which validation has 5 and 12: four of six trials cannot be told apart from the best."""
    recalls = {0: 30.0, 1: 50.0, 2: 50.0, 3: 50.0, 4: 45.0, 5: 60.0}
    for number, recall in recalls.items():
        point = {"train.lr": 0.01 * (number + 1), "similarity.kind": "dp"}
        status = "stopped" if number == 5 else "finished"
        write_trial(number, point, [[1.0, recall], [1.0, recall]], status, gallery=(5, 12))
    shown = []
    write_results(tmp_path, sweep, load_config(tmp_path / "base.yaml"), print_table=shown.append)
    sentence = (
        "best.yaml is trial 1, but trials 2 and 3 tie with trial 1 at t2v/R@1 50.00; trial 4 differs from trial 1 by less "
        "than the standard error of t2v/R@1 (13.4 points for 12 queries)"
    )
    assert rivals_of_best(read_trials(tmp_path), sweep) == [sentence]
    assert sentence in said
    page = (tmp_path / "report.html").read_text()
    assert f"<p>{sentence}.</p>" in page
    assert "<th>t2v/R@1 (chance 20.0, 5 clips)</th>" in page
    lines = (tmp_path / "best.yaml").read_text().splitlines()
    assert lines[0].endswith("t2v/R@1 on validation 50.00 ± 0.00 (chance 20.0, 5 clips), mean of 2 seeds.")
    assert lines[2] == f"# {sentence}."
    assert load_config(tmp_path / "best.yaml").train.lr == 0.02
    assert shown[0].title == "s: t2v/R@1 on validation (chance 20.0, 5 clips)"


def test_a_best_trial_that_stands_alone_has_no_rivals(tmp_path, write_trial, sweep):
    for number, recall in enumerate((20.0, 70.0)):
        write_trial(number, {"train.lr": 0.1}, [[1.0, recall]], "finished", gallery=(100, 400))
    assert rivals_of_best(read_trials(tmp_path), sweep) == []
    assert rivals_of_best([], sweep) == []


def test_no_trial_finished_means_no_best(tmp_path, write_trial, sweep, said):
    write_trial(0, {"train.lr": 0.01, "similarity.kind": "dp"}, [[1.0]], "stopped")
    assert best_config(tmp_path, read_trials(tmp_path), sweep) is None
    write_results(tmp_path, sweep, load_config(tmp_path / "base.yaml"), print_table=lambda table: None)
    assert not (tmp_path / "best.yaml").exists()
    assert "no trial is finished, so there is no best trial yet" in said


def test_columns_have_one_type(tmp_path, write_trial, sweep):
    for number, lr in enumerate((1, 0.5, "high")):
        write_trial(number, {"train.lr": lr, "similarity.kind": {"a": [1]}}, [[1.0]], "stopped")
    table = results_table(read_trials(tmp_path), sweep)
    assert table["train.lr"].to_pylist() == ["1", "0.5", "high"]
    assert table["similarity.kind"].to_pylist() == ['{"a": [1]}'] * 3
    assert table["similarity.wti_layers"].null_count == 3


def test_everything_that_is_written(tmp_path, written, sweep, said):
    shown = []
    write_results(tmp_path, sweep, load_config(tmp_path / "base.yaml"), print_table=shown.append)

    rows = pq.read_table(tmp_path / "results.parquet").to_pylist()
    assert [(row["trial"], row["seed"]) for row in rows] == [
        (1, 0),
        (1, 1),
        (0, 0),
        (0, 1),
        (2, 0),
        (4, 0),
        (4, 1),
        (3, None),
    ]
    assert rows[1] | {
        "status": "finished", "objective": 35.0, "train.lr": 0.02, "similarity.kind": "wti", "similarity.wti_layers": 2,
        "t2v/R@1": 40.0, "epochs": 2, "trial_seconds": 11.0, "trial_gpu_seconds": 5.0, "error": None,
    } == rows[1]  # fmt: skip
    assert rows[-1]["error"] == "loss = nan <at> step 3"
    assert pa_csv.read_csv(tmp_path / "results.csv").num_rows == len(rows)

    text = (tmp_path / "best.yaml").read_text()
    assert text.startswith("# The best of sweep s: trial 1, t2v/R@1 on validation 35.00 ± 7.07, mean of 2 seeds.\n")
    assert "it was 30." in text
    best = load_config(tmp_path / "best.yaml")
    assert (best.name, best.train.lr, best.similarity.kind, best.seed) == ("s-best", 0.02, "wti", 0)

    events = EventAccumulator(str(tmp_path / "events" / "trial_0001"))
    events.Reload()
    assert {"objective", "epochs", "0 best/t2v R@1"} <= set(events.Tags()["scalars"])
    about = {tag: metadata.plugin_data.content for tag, metadata in events.summary_metadata.items()}
    assert EXPERIMENT_TAG not in about  # it would decide which settings of other runs TensorBoard shows
    start = parse_session_start_info_plugin_data(about[SESSION_START_INFO_TAG])
    assert start.group_name == "s/0001"
    assert start.hparams["train.lr"].number_value == 0.02  # of the point
    assert start.hparams["loss.contrastive"].number_value == 1.0  # of the base
    assert [path.name for path in sorted((tmp_path / "events").iterdir())] == [f"trial_000{n}" for n in (0, 1, 2, 4)]

    console = Console(width=100, record=True, quiet=False, file=io.StringIO())
    console.print(shown[0])
    assert "35.00 ± 7.07" in console.export_text()

    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 1 + 3 + 1  # five trials are too few to tell importance from four of them
    assert "loss = nan &lt;at&gt; step 3" in page
    assert "5 trials: 2 finished, 1 stopped early, 1 failed, 1 interrupted" in page
    assert any("importance: needs 5 trials" in line for line in said)


def test_without_matplotlib_a_sentence_says_what_to_install(tmp_path, written, sweep, monkeypatch, said):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    write_results(tmp_path, sweep, load_config(tmp_path / "base.yaml"), print_table=lambda table: None)
    assert any("pip install 'waver[tune]'" in line for line in said)
    page = (tmp_path / "report.html").read_text()
    assert "<svg" not in page
    assert "<h2>Trials</h2>" in page


def test_a_stopped_trial_is_not_shown_as_running(tmp_path, written, sweep):
    """Neither in the tables of a sweep that ended nor by TensorBoard, to which a run without an end is running."""
    states = read_trials(tmp_path, runs=False)
    assert [state.status for state in states] == ["finished", "finished", "stopped", "failed", "interrupted"]
    events = states[2].runs[0].folder / "events"
    events.mkdir()
    end_runs(states[2])
    reader = EventAccumulator(str(events))
    reader.Reload()
    (content,) = (about.plugin_data.content for about in reader.summary_metadata.values())
    assert parse_session_end_info_plugin_data(content).status == STATUS_UNKNOWN


def test_short_names():
    assert short_names(["loss.distill", "knowledge.top_k"]) == ["distill", "top_k"]
    assert short_names(["loss.knowledge", "x.knowledge", "seed"]) == ["loss.knowledge", "x.knowledge", "seed"]
