"""Which changes of a sweep extend it, and which need another name."""

from pathlib import Path

import pytest
import yaml

from waver.config import SweepConfig, load_config
from waver.sweeps.extension import check_sweep, open_sweep, sample_counts
from waver.sweeps.folder import SweepError, begin_trial
from waver.sweeps.space import list_points


@pytest.fixture
def begun(tmp_path, sweep, tiny_config) -> Path:
    """The folder of a sweep of 4 samples that has begun."""
    folder = tmp_path / "s"
    open_sweep(folder, sweep.model_copy(update={"num_samples": 4}), tiny_config)
    begin_trial(folder, 0, {})
    return folder


def test_a_sweep_that_has_not_begun_may_be_replaced(tmp_path, sweep, tiny_config):
    folder = tmp_path / "s"
    open_sweep(folder, sweep, tiny_config)
    open_sweep(folder, sweep.model_copy(update={"num_samples": 3, "repeats": 5}), tiny_config)
    assert sample_counts(folder, sweep.model_copy(update={"num_samples": 2})) == [2]


@pytest.mark.parametrize(
    ("of_sweep", "of_base"),
    [
        ({}, {}),
        ({"num_samples": 6}, {}),
        ({"num_samples": 4, "max_concurrent": 2, "max_failures": 0, "keep_best": 3}, {}),
        ({"base": Path("elsewhere.yaml"), "set": {"resources.workers": 2}}, {"resources.workers": 2, "name": "other"}),
        ({}, {"evaluate.dsl": True, "resources.wait_s": 5}),
    ],
)
def test_what_extends_a_sweep(begun, sweep, load_tiny, of_sweep, of_base):
    extended = sweep.model_copy(update={"num_samples": 4, **of_sweep})
    open_sweep(begun, extended, load_tiny(**of_base))
    assert yaml.safe_load((begun / "sweep.yaml").read_text()).get("num_samples") == extended.num_samples
    assert load_config(begun / "base.yaml").resources == load_tiny(**of_base).resources


@pytest.mark.parametrize(
    ("of_sweep", "of_base", "expected"),
    [
        ({"num_samples": 3}, {}, r"num_samples: 4 in the folder, 3 now, which can only grow\)"),
        ({"repeats": 3}, {}, r"repeats: 2 in the folder, 3 now\)"),
        ({"seed": 1}, {}, r"seed: 0 in the folder, 1 now\)"),
        ({"search": "optuna"}, {}, r"search: random in the folder, optuna now\)"),
        ({"space": {}}, {}, r"space: .*train.lr.* now\)"),
        ({"num_samples": 6}, {"train.lr": 0.5, "train.epochs": 9}, r"train.epochs: .* 9 now; train.lr: .* 0.5 now\)"),
        ({"set": {"train.epochs": 9}}, {"train.epochs": 9}, r"train.epochs: .* 9 now\)"),
    ],
)
def test_what_needs_another_name(begun, sweep, load_tiny, of_sweep, of_base, expected):
    other = sweep.model_copy(update={"num_samples": 4, **of_sweep})
    with pytest.raises(
        SweepError, match=rf"mean something else \(.*{expected}: choose another name \(--set name=\.\.\.\)"
    ):
        check_sweep(begun, other, load_tiny(**of_base))
    assert "num_samples: 4" in (begun / "sweep.yaml").read_text()


def test_with_optuna_the_resources_of_trials_stay(tmp_path, sweep, load_tiny):
    by_optuna = sweep.model_copy(update={"search": "optuna"})
    open_sweep(tmp_path / "s", by_optuna, load_tiny())
    begin_trial(tmp_path / "s", 0, {})
    with pytest.raises(SweepError, match=r"resources.workers: 1 in the folder, 2 now"):
        check_sweep(tmp_path / "s", by_optuna, load_tiny(**{"resources.workers": 2}))


def test_samples_grow_in_steps_that_are_remembered(begun, sweep, tiny_config):
    for more, counts in ((6, [4, 6]), (6, [4, 6]), (9, [4, 6, 9])):
        grown = sweep.model_copy(update={"num_samples": more})
        assert sample_counts(begun, grown) == counts
        open_sweep(begun, grown, tiny_config)
        assert sample_counts(begun, grown) == counts
    with pytest.raises(SweepError, match="num_samples: 9 in the folder, 6 now"):
        check_sweep(begun, sweep.model_copy(update={"num_samples": 6}), tiny_config)


def test_points_that_are_added_leave_the_others_their_numbers(sweep, tiny_config):
    random = sweep.model_copy(update={"num_samples": 6})
    points = list_points(random, tiny_config)
    assert list_points(random, tiny_config, [4, 6]) == points, "without grid values, as if 6 had been asked for at once"
    space = {"train.lr": {"uniform": [0, 1]}, "similarity.kind": {"grid": ["wti", "dp"]}}
    mixed = SweepConfig.model_validate({"name": "s", "base": "b", "space": space, "num_samples": 2})
    before = list_points(mixed, tiny_config)
    after = list_points(mixed.model_copy(update={"num_samples": 3}), tiny_config, [2, 3])
    assert after[:4] == before
    assert [point["similarity.kind"] for point in after] == ["wti", "wti", "dp", "dp", "wti", "dp"]
