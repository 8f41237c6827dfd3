import sys

import numpy as np
import pytest

from waver.sweeps.importance import compute_importance


@pytest.fixture
def trials() -> tuple[list[dict], list[float]]:
    """40 trials whose objective depends much on a, little on the words b, not at all on c; d is always the same."""
    rng = np.random.default_rng(0)
    points = [{"a": rng.uniform(), "b": str(rng.choice(["x", "y"])), "c": rng.uniform(), "d": 1} for _ in range(40)]
    return points, [10 * point["a"] + (point["b"] == "x") for point in points]


def check(shares: dict[str, float]) -> None:
    assert next(iter(shares)) == "a"
    assert shares["a"] > 0.8
    assert shares["c"] < 0.1
    assert sum(shares.values()) == pytest.approx(1)
    assert "d" not in shares


def test_fanova_gives_the_largest_share_to_the_key_with_the_largest_effect(trials):
    shares, note = compute_importance(*trials)
    assert "functional ANOVA" in note
    check(shares)


@pytest.mark.parametrize("package", ["optuna", "sklearn"])
def test_missing_extra_is_reported_with_the_command_that_installs_it(trials, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    shares, note = compute_importance(*trials)
    assert shares == {}
    assert note == "importance: not computed because Optuna or scikit-learn is not installed: pip install 'waver[tune]'"


def test_importance_that_cannot_be_computed_is_empty_with_a_reason(trials):
    points, objective = trials
    assert compute_importance([], [])[0] == {}
    assert "needs 5 trials" in compute_importance(points[:4], objective[:4])[1]
    assert "same objective" in compute_importance(points, [1.0] * 40)[1]
