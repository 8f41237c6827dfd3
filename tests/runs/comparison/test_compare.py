import io

import pytest
from rich.console import Console

from waver.runs.comparison import ComparisonError, compare_runs
from waver.runs.comparison.tables import comparison_tables
from waver.runs.folder import open_run
from waver.runs.tracking import Tracker
from waver.tools.files import write_json
from waver.tools.object_store import local_copy

DATA = {"num_train_clips": 13, "digest": "abc"}
EVALUATION = {
    "split": "test",
    "metrics": {"t2v/R@1": 50.0, "t2v/MnR": 3.0},
    "gallery_size": 9,
    "num_queries": 24,
    "missing_clips": ["v20"],
    "chosen_on": "validation",
    "validation": "own",
    "ties": "average",
    "styles": {"plain": {"t2v/R@1": 40.0}},
    "leaky": False,
    "device": "cpu",
    "precision": "fp32",
}


@pytest.fixture
def make(tmp_path, load_tiny):
    """Makes a run; `recall` of each epoch, finished or not, with an evaluation or without."""

    def make(
        name, recalls=(9.0, 5.0), *, finished=True, evaluation=None, data=DATA, folder=None, gallery=None, **overrides
    ):
        folder = folder or tmp_path / "runs" / name
        open_run(folder, load_tiny(name=name, **overrides), data)
        with Tracker(folder) as tracker:
            for epoch, recall in enumerate(recalls, 1):
                for step in (10 * epoch - 1, 10 * epoch):
                    tracker.log(step, {"loss/total": 1.0, "clips_per_s": 100.0 + step}, epoch=epoch)
                metrics = {"t2v/R@1": recall, "t2v/MnR": 10.0 - recall}
                sizes = dict(zip(("gallery_size", "num_queries"), gallery or (), strict=False))
                tracker.log(10 * epoch, metrics, epoch=epoch, split="validation", **sizes)
        if finished:
            result = {"epochs": 2, "validation_split": "own", "seconds": 12.5, "peak_memory_bytes_of_worker": 7}
            write_json(folder / "result.json", result)
        if evaluation is not None:
            write_json(folder / "evaluation_test.json", EVALUATION | evaluation)
        return folder

    return make


def differing(rows):
    return {row.key: (row.a, row.b) for row in rows if row.differs}


def printed(comparison, **how):
    console = Console(width=200, record=True, file=io.StringIO())
    for part in comparison_tables(comparison, **how):
        console.print(part)
    return console.export_text()


def test_settings_data_and_metrics_are_compared(make):
    a = make("a", (9.0, 5.0), evaluation={})
    b = make(
        "b",
        (4.0, 11.0),
        evaluation={"metrics": {"t2v/R@1": 62.5, "t2v/MnR": 2.0}},
        data=DATA | {"digest": "xyz"},
        **{"train.lr": 3e-3, "resources.workers": 2},
    )
    comparison = compare_runs(a, b)
    assert (comparison.a, comparison.b) == ("a", "b")
    assert differing(comparison.config) == {"train.lr": (1e-3, 3e-3), "resources.workers": (1, 2)}
    counts = {row.key: row.counts for row in comparison.config}
    assert counts["train.lr"]
    assert not counts["resources.workers"]
    assert differing(comparison.data) == {"digest": ("abc", "xyz")}
    assert differing(comparison.environment) == {}
    assert differing(comparison.training) == {"best epoch": (1, 2)}
    training = {row.key: row.a for row in comparison.training}
    assert training["seconds (since its workers were last started)"] == 12.5
    assert training["clips per second (median)"] == 119.0  # of steps 10, 19 and 20: the first waited for everything
    validation, test = comparison.metrics
    assert differing(validation.rows) == {"t2v/R@1": (9.0, 11.0), "t2v/MnR": (1.0, -1.0)}
    assert differing(test.rows) == {"t2v/R@1": (50.0, 62.5), "t2v/MnR": (3.0, 2.0)}
    assert ("t2v/R@1, plain", 40.0, 40.0) in [(row.key, row.a, row.b) for row in test.rows]
    assert validation.not_comparable == test.not_comparable == ()
    assert test.cautions == (
        "one query of 24 is 4.17 points of R@K from text to video",
        "R@1: chance 11.1, 9 clips; the standard error is 9.8 points of t2v/R@1 (24 captions)",
    )
    assert comparison.notes == ()


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ({"gallery_size": 8}, "another gallery: 9 and 8"),
        ({"num_queries": 9}, "other queries: 24 and 9"),
        ({"ties": "lucky"}, "ties are counted in another way"),
        ({"split": "validation"}, "another split: test and validation"),
    ],
)
def test_metrics_of_other_protocols_are_not_comparable(make, other, reason):
    comparison = compare_runs(make("a", evaluation={}), make("b", evaluation=other))
    assert any(reason in sentence for sentence in comparison.metrics[1].not_comparable)
    assert reason in printed(comparison)
    assert "+0.00" not in printed(comparison).partition("evaluation_test")[2]


def test_metrics_on_other_data_are_not_comparable(make):
    comparison = compare_runs(
        make("a", evaluation={}), make("b", evaluation={}, **{"data.annotations": "/other.jsonl"})
    )
    assert all("data.annotations" in metrics.not_comparable[0] for metrics in comparison.metrics)


def test_validation_in_other_styles_is_not_comparable_but_test_is(make):
    a, b = make("a", evaluation={}), make("b", evaluation={}, **{"data.train_styles": ["plain"]})
    validation, test = compare_runs(a, b).metrics
    assert "data.train_styles = None and ['plain']" in validation.not_comparable[0]
    assert test.not_comparable == ()


def test_validation_on_other_held_out_videos_is_not_comparable(make):
    a, b = make("a"), make("b", **{"data.validation_seed": 1})
    assert compare_runs(a, b).metrics[0].not_comparable == ()  # the data set has a split of its own
    for folder in (a, b):
        write_json(folder / "result.json", {"validation_split": "5% of train, held out"})
    assert "data.validation_seed = 0 and 1" in compare_runs(a, b).metrics[0].not_comparable[0]


def test_the_usual_fraction_of_an_earlier_version_is_the_same_validation_if_its_gallery_is(make):
    """It was written down as 0.05, and is null now."""
    a, b = make("a", gallery=(9, 24)), make("b", gallery=(9, 24), **{"data.validation_fraction": 0.05})
    other = make("other", gallery=(8, 20), **{"data.validation_fraction": 0.05})
    for folder in (a, b, other):
        write_json(folder / "result.json", {"validation_split": "held out of train"})
    (validation,) = compare_runs(a, b).metrics
    assert validation.not_comparable == ()
    assert validation.cautions[-1].startswith("R@1: chance 11.1, 9 clips; the standard error is 6.4 points of t2v/R@1")
    assert "data.validation_fraction = None and 0.05" in compare_runs(a, other).metrics[0].not_comparable[0]


def test_differences_of_evaluations_are_cautions(make):
    comparison = compare_runs(make("a", evaluation={}), make("b", evaluation={"missing_clips": ["v1"], "leaky": True}))
    assert "leaky dictionary: no and yes" in comparison.metrics[1].cautions
    assert any(
        "2 clips of the gallery failed to decode for one" in caution for caution in comparison.metrics[1].cautions
    )


def test_runs_that_are_not_finished(make):
    a, b, c = make("a"), make("b", (4.0,), finished=False), make("c", (), finished=False)
    comparison = compare_runs(a, b)
    assert differing(comparison.training)["status"] == ("finished", "not finished: step 10, epoch 1 of 2")
    assert comparison.metrics[0].cautions == ("b not finished: its best metrics so far",)
    comparison = compare_runs(a, c)
    assert comparison.metrics == ()
    assert comparison.notes == ("validation is not compared: c has no evaluation yet",)
    assert "not finished: no step yet" in printed(comparison)


def test_evaluation_of_one_run_only_is_noted(make):
    a, b = make("a", evaluation={}), make("b")
    assert compare_runs(a, b).notes == (
        f"evaluation_test.json exists for a only: run `waver evaluate {b} --split test`",
    )


def test_damaged_files_are_noted_and_the_rest_is_compared(make):
    a, b = make("a", evaluation={}), make("b", evaluation={})
    (b / "data.json").unlink()
    (b / "environment.json").write_text("{")
    (b / "evaluation_test.json").write_text("[]")
    (b / "evaluation_train.json").write_text('{"metrics": 3}')
    (b / "config.yaml").write_text("name: b\nsurprise: 1\n")
    with (b / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    comparison = compare_runs(a, b)
    text = "\n".join(comparison.notes)
    for expected in (
        "data.json is missing",
        "environment.json is damaged",
        "evaluation_test.json holds a list instead of an object",
        "evaluation_train.json holds no metrics",
        "surprise",
        "1 lines without a step",
        "settings are not compared",
    ):
        assert expected in text
    assert comparison.config == ()
    assert [metrics.title for metrics in comparison.metrics] == ["best validation (epochs 1 and 1)"]
    assert "data.json is missing" in printed(comparison)


def test_damaged_metrics_are_noted(make):
    a, b = make("a"), make("b")
    (b / "metrics.jsonl").write_text("garbage\n")
    notes = "\n".join(compare_runs(a, b).notes)
    assert "metrics.jsonl is damaged" in notes
    assert "b has no evaluation yet" in notes


def test_seeds_of_a_trial_are_compared_as_runs(make, tmp_path):
    trial = tmp_path / "sweeps" / "s" / "trials" / "0001"
    a = make("s-0001-seed0", folder=trial / "seed_0")
    b = make("s-0001-seed1", folder=trial / "seed_1", seed=1)
    assert differing(compare_runs(a, b).config) == {"seed": (0, 1)}
    with pytest.raises(ComparisonError, match=r"0001 holds runs: name one, such as .*0001/seed_0"):
        compare_runs(trial, b)
    with pytest.raises(ComparisonError, match=r"s holds runs: name one, such as .*0001/seed_0"):
        compare_runs(tmp_path / "sweeps" / "s", b)


def test_runs_of_the_same_name_are_shown_by_folder(make, tmp_path):
    comparison = compare_runs(make("a"), make("a", folder=tmp_path / "elsewhere"))
    assert (comparison.a, comparison.b) == (str(tmp_path / "runs" / "a"), str(tmp_path / "elsewhere"))


def test_one_error_names_both_folders_that_are_not_runs(make, tmp_path):
    a = make("a")
    (a / "checkpoint_epoch_0001").mkdir()
    (a / "checkpoint_epoch_0001" / "model.safetensors").touch()
    with pytest.raises(ComparisonError) as caught:
        compare_runs(tmp_path / "typo", a / "checkpoint_epoch_0001")
    assert "typo does not exist" in str(caught.value)
    assert f"is a checkpoint: name its run, {a}" in str(caught.value)
    with pytest.raises(ComparisonError, match="are the same run"):
        compare_runs(a, a / ".." / "a")


def test_tables_show_differing_or_all_rows(make):
    comparison = compare_runs(make("a", evaluation={}), make("b"))
    short, long = printed(comparison), printed(comparison, all_rows=True)
    assert "configuration: equal in all" in short
    assert "train.lr" not in short
    assert "train.lr" in long


def test_tables_show_signed_differences_and_literal_brackets(make):
    a = make("a", evaluation={})
    b = make("b", evaluation={"metrics": {"t2v/R@1": 47.5, "t2v/MnR": 3.5}}, **{"text.prompt": "[red]{}"})
    text = printed(compare_runs(a, b))
    assert "[red]{}" in text
    rows = {
        line.split()[0]: line.split()[1:] for line in text.partition("evaluation_test")[2].splitlines() if "/" in line
    }
    assert rows["t2v/R@1"] == ["50.00", "47.50", "-2.50"]
    assert rows["t2v/MnR"] == ["3.00", "3.50", "+0.50"]


@pytest.mark.slow
def test_runs_in_an_object_store(make, s3, tmp_path):
    here, there = (local_copy(f"{s3}/runs", tmp_path / machine) for machine in ("here", "there"))
    make("a", folder=here / "a", evaluation={})
    make("b", folder=here / "b", finished=False, **{"train.lr": 0.5})
    found, expected = compare_runs(there / "a", there / "b"), compare_runs(here / "a", here / "b")
    assert printed(found, all_rows=True) == printed(expected, all_rows=True)
    for name, message in (("typo", "does not exist"), ("", r"holds runs: name one, such as s3://waver/.*/runs/a")):
        with pytest.raises(ComparisonError, match=message):
            compare_runs(there / name, there / "a")
