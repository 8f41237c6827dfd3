import sys

import numpy as np
import pytest

from waver.sweeps.importance import importance


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


def test_fanova_finds_what_matters(trials):
    shares, how = importance(*trials)
    assert "functional ANOVA" in how
    check(shares)


def test_without_optuna_permutation_importance_does(trials, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)  # as if it were not installed
    shares, how = importance(*trials)
    assert "permutation importance" in how
    check(shares)


def test_without_both_a_sentence_says_what_to_install(trials, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    assert importance(*trials) == (
        {},
        "importance: not computed, it needs optuna or scikit-learn: pip install 'waver[tune]'",
    )


def test_where_nothing_can_be_told(trials):
    points, objective = trials
    assert importance([], [])[0] == {}
    assert "needs 5 trials" in importance(points[:4], objective[:4])[1]
    assert "same objective" in importance(points, [1.0] * 40)[1]
