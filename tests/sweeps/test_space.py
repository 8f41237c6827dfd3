from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waver.config import ConfigError, ExperimentConfig, ParameterConfig, SweepConfig, load_config
from waver.sweeps.space import base_overrides, build_point, corner_points, draw_value, list_points, point_configs

BASE = """
name: x
data: {format: table, annotations: a.jsonl, videos: v}
knowledge: {top_k: 3}
"""


@pytest.fixture
def plan(tmp_path: Path):
    """A sweep over a small experiment, and the experiment."""
    (tmp_path / "base.yaml").write_text(BASE)

    def make(space: dict, **settings) -> tuple[SweepConfig, ExperimentConfig]:
        sweep = SweepConfig.model_validate({"name": "s", "base": tmp_path / "base.yaml", "space": space, **settings})
        return sweep, load_config(sweep.base, base_overrides(sweep))

    return make


def test_the_same_sweep_gives_the_same_points_and_another_seed_others(plan):
    space = {
        "loss.distill": {"uniform": [0, 2]},
        "knowledge.top_k": {"choice": [1, 3]},
        "video.size": {"randint": [8, 9]},
    }
    sweep, base = plan(space, num_samples=20)
    found = list_points(sweep, base)
    assert found == list_points(sweep, base)
    assert len(found) == 20
    assert found != list_points(*plan(space, num_samples=20, seed=1))


def test_a_grid_has_every_combination_once_and_conditions_fold_it(plan):
    sweep, base = plan(
        {
            "similarity.wti_layers": {"choice": [1, 2, 3], "when": {"similarity.kind": "wti"}},
            "similarity.kind": {"grid": ["wti", "ti", "dp"]},
        },
        search="grid",
    )
    found = list_points(sweep, base)
    assert len(found) == 5
    for point in (
        *({"similarity.wti_layers": layers, "similarity.kind": "wti"} for layers in (1, 2, 3)),
        {"similarity.kind": "ti"},
        {"similarity.kind": "dp"},
    ):
        assert point in found


def test_random_draws_for_each_combination_of_a_grid(plan):
    sweep, base = plan({"loss.distill": {"uniform": [0, 2]}, "knowledge.top_k": {"grid": [1, 5]}}, num_samples=3)
    assert [point["knowledge.top_k"] for point in list_points(sweep, base)] == [1, 1, 1, 5, 5, 5]


def test_conditions_look_at_the_base_where_a_key_is_not_varied(plan):
    layers = {"similarity.wti_layers": {"choice": [1], "when": {"similarity.kind": ["wti", "ti"]}}}
    assert list_points(*plan(layers, num_samples=1)) == [{"similarity.wti_layers": 1}]
    assert list_points(*plan(layers, num_samples=1, set={"similarity.kind": "dp"})) == [{}]


def test_conditions_in_a_chain(plan):
    sweep, base = plan(
        {
            "loss.temperature": {"choice": [9.0], "when": {"loss.distill": [1.0]}},
            "loss.distill": {"choice": [1.0, 0.0], "when": {"knowledge.at_inference": False}},
            "knowledge.at_inference": {"choice": [True, False]},
        },
        search="grid",
    )
    assert {len(point) for point in list_points(sweep, base)} == {1, 2, 3}
    for point in list_points(sweep, base):
        assert ("loss.distill" in point) == (point["knowledge.at_inference"] is False)
        assert ("loss.temperature" in point) == (point.get("loss.distill") == 1.0)


ENDS = st.tuples(st.integers(1, 10**6), st.integers(1, 10**6)).filter(lambda ends: ends[0] < ends[1])


@settings(max_examples=60, deadline=None)
@given(ends=ENDS, scale=st.floats(1e-6, 1e3), seed=st.integers(0, 100), kind=st.sampled_from(["uniform", "loguniform"]))
def test_floats_stay_between_their_ends(ends, scale, seed, kind):
    low, high = ends[0] * scale, ends[1] * scale
    value = draw_value(ParameterConfig.model_validate({kind: [low, high]}), np.random.default_rng(seed))
    assert low <= value <= high
    assert isinstance(value, float)


@settings(max_examples=60, deadline=None)
@given(ends=ENDS, seed=st.integers(0, 100))
def test_integers_stay_between_their_ends_and_reach_them(ends, seed):
    low, high = ends
    value = draw_value(ParameterConfig(randint=ends), np.random.default_rng(seed))
    assert low <= value <= high
    assert type(value) is int
    both = {draw_value(ParameterConfig(randint=(low, low + 1)), np.random.default_rng(i)) for i in range(30)}
    assert both == {low, low + 1}


@settings(max_examples=60, deadline=None)
@given(
    graph=st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=6),
    answers=st.lists(st.booleans(), min_size=6, max_size=6),
    order=st.randoms(use_true_random=False),
)
def test_a_key_is_in_a_point_exactly_where_its_condition_holds(tiny_config, graph, answers, order):
    """Any forest of conditions, written in any order: each key depends on an earlier one, or on none."""
    space = {}
    for number, (parent, wanted) in enumerate(graph):
        when = {f"k{parent}": wanted} if parent < number else {}
        space[f"k{number}"] = ParameterConfig(choice=(True, False), when=when)
    keys = list(space)
    order.shuffle(keys)
    point = build_point({key: space[key] for key in keys}, tiny_config, lambda key, _: answers[int(key[1:])])
    for key, parameter in space.items():
        holds = all(point.get(on, "absent") == value for on, value in parameter.when.items())
        assert (key in point) == holds


def test_loguniform_has_each_order_of_magnitude_as_often(plan):
    parameter, rng = ParameterConfig(loguniform=(1e-4, 1.0)), np.random.default_rng(0)
    values = np.array([draw_value(parameter, rng) for _ in range(4000)])
    counts = np.histogram(np.log10(values), bins=[-4, -3, -2, -1, 0])[0]
    assert counts.min() > 850


def test_mistakes_of_all_points_are_told_once(plan):
    sweep, base = plan(
        {
            "loss.distil": {"uniform": [0, 1]},
            "knowledge.top_k": {"grid": [1, 31]},
            "similarity.wti_layers": {"grid": [1, 4]},
            "train.lr": {"choice": [1.0], "when": {"train.optimizer": "adam"}},
        },
        num_samples=5,
    )
    with pytest.raises(ConfigError) as caught:
        point_configs(sweep, base, base_overrides(sweep), list_points(sweep, base))
    message = str(caught.value)
    assert "loss.distil: unknown key; did you mean distill? (in 20 of 20 points)" in message
    assert "similarity.wti_layers: 4" in message
    assert "(in 10 of 20 points)" in message
    assert "space.train.lr.when.train.optimizer: no key of the experiment" in message


def test_settings_that_do_not_fit_together_are_found_before_the_start(plan):
    sweep, base = plan({"knowledge.top_k": {"choice": [0, 3]}, "loss.distill": {"choice": [0.0, 1.0]}}, search="grid")
    with pytest.raises(ConfigError, match=r"loss.distill = 1 needs phrases.*\(in 1 of 4 points\)"):
        point_configs(sweep, base, base_overrides(sweep), list_points(sweep, base))
    sweep, base = plan(
        {"knowledge.top_k": {"choice": [0, 3]}, "loss.distill": {"choice": [0.0, 1.0], "when": {"knowledge.top_k": 3}}},
        search="grid",
    )
    configs = point_configs(sweep, base, base_overrides(sweep), list_points(sweep, base))
    assert [(config.knowledge.top_k, config.loss.distill) for config in configs] == [(0, 0), (3, 0), (3, 1)]


def test_corners_have_all_ends_and_choices(plan):
    sweep, base = plan(
        {"loss.distill": {"uniform": [0, 2]}, "similarity.kind": {"choice": ["wti", "ti"]},
         "similarity.wti_layers": {"randint": [1, 3], "when": {"similarity.kind": "wti"}}}, search="optuna"
    )  # fmt: skip
    found = corner_points(sweep, base)
    assert len(found) == 2 * 2 + 2
    assert {point["loss.distill"] for point in found} == {0, 2}
    many, base = plan({f"k.a{i}": {"choice": list(range(9))} for i in range(9)}, search="optuna")
    assert 200 < len(corner_points(many, base)) <= 256


def test_what_is_set_for_all_trials(plan):
    sweep, base = plan({"loss.distill": {"uniform": [0, 2]}}, set={"train.epochs": 9})
    assert (base.train.epochs, base.resources.loaders_per_worker) == (9, 0)
    assert base_overrides(sweep, {"train.epochs": 2})["train.epochs"] == 2
