"""Which keys of a search space the objective depends on."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_FEWEST = 5
_TREES = 64


def importance(points: Sequence[Mapping[str, Any]], objective: Sequence[float]) -> tuple[dict[str, float], str]:
    """The share of each key in the differences between trials, and how it was found, or why not.

    With Optuna by functional ANOVA over a random forest (Hutter et al., ICML 2014), else with scikit-learn by permutation
    importance of the same forest. Both describe the forest: of few trials it knows little.

    Args:
        points: a value for every key, of each trial.
        objective: of each trial.

    Returns:
        Key -> share, 1 in all, largest first; empty where it cannot be told. And a sentence.
    """
    keys = [key for key in points[0] if len({_hashable(point[key]) for point in points}) > 1] if points else []
    if len(points) < _FEWEST or not keys:
        return {}, f"importance: needs {_FEWEST} trials that differ, there are {len(points)}"
    if len(set(objective)) == 1:
        return {}, "importance: all trials have the same objective"
    columns = [_numbers([point[key] for point in points]) for key in keys]
    try:
        shares, how = _fanova(keys, columns, objective), "functional ANOVA (Optuna)"
    except ImportError:
        try:
            shares, how = _permutation(columns, objective), "permutation importance (scikit-learn)"
        except ImportError:
            return {}, "importance: not computed, it needs optuna or scikit-learn: pip install 'waver[tune]'"
    total = float(np.sum(shares))
    if total <= 0:
        return {}, f"importance: {how} finds no key that the objective depends on"
    by_key = {key: float(share) / total for key, share in zip(keys, shares, strict=True)}
    return dict(sorted(by_key.items(), key=lambda item: -item[1])), f"importance by {how}, over {len(points)} trials"


def _fanova(keys: list[str], columns: list[np.ndarray], objective: Sequence[float]) -> list[float]:
    import optuna
    import sklearn  # noqa: F401  Optuna needs it for this, and says so late

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {
        key: optuna.distributions.FloatDistribution(float(column.min()), float(column.max()))
        for key, column in zip(keys, columns, strict=True)
    }
    study = optuna.create_study(direction="maximize")
    for row, value in enumerate(objective):
        params = {key: float(column[row]) for key, column in zip(keys, columns, strict=True)}
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=float(value)))
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=_TREES, seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return [found[key] for key in keys]


def _permutation(columns: list[np.ndarray], objective: Sequence[float]) -> np.ndarray:
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    inputs = np.stack(columns, axis=1)
    forest = RandomForestRegressor(n_estimators=_TREES, random_state=0).fit(inputs, objective)
    found = permutation_importance(forest, inputs, objective, n_repeats=20, random_state=0).importances_mean
    return np.maximum(found, 0)


def _numbers(values: Sequence[Any]) -> np.ndarray:
    """Numbers as they are; anything else by its place among the values there are."""
    if all(isinstance(value, int | float) for value in values):
        return np.array(values, dtype=float)
    places = {value: place for place, value in enumerate(sorted({_hashable(value) for value in values}))}
    return np.array([places[_hashable(value)] for value in values], dtype=float)


def _hashable(value: Any) -> str:
    return str(value)
