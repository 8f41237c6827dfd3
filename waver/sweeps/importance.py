"""Estimates how much the objective of a sweep depends on each key of the search space."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_MIN_TRIALS = 5
_NUM_TREES = 64


def compute_importance(
    points: Sequence[Mapping[str, Any]], objectives: Sequence[float]
) -> tuple[dict[str, float], str]:
    """Computes the share of each key in the variance of the objective between trials.

    The method is functional ANOVA over a random forest (Hutter, Hoos and Leyton-Brown, "An Efficient Approach for Assessing
    Hyperparameter Importance", ICML 2014), as Optuna implements it. It describes the forest, which is unreliable if trained
    on few trials.

    Args:
        points: the value of every key, one mapping per trial.
        objectives: one value per trial.

    Returns:
        Key -> share, largest first; the shares sum to 1. Empty if the importance cannot be computed. Second, a sentence that
        names the method, or the reason for the empty result.
    """
    keys = [key for key in points[0] if len({str(point[key]) for point in points}) > 1] if points else []
    if len(points) < _MIN_TRIALS or not keys:
        return {}, f"importance: needs {_MIN_TRIALS} trials that differ, there are {len(points)}"
    if len(set(objectives)) == 1:
        return {}, "importance: all trials have the same objective"
    try:
        shares = _run_fanova({key: _encode([point[key] for point in points]) for key in keys}, objectives)
    except ImportError:
        return {}, "importance: not computed because Optuna or scikit-learn is not installed: pip install 'waver[tune]'"
    return shares, f"importance by functional ANOVA (Optuna), over {len(points)} trials"


def _run_fanova(columns: Mapping[str, np.ndarray], objectives: Sequence[float]) -> dict[str, float]:
    import optuna
    import sklearn  # noqa: F401  Optuna imports it only when it fits the forest; both belong to the same extra

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        key: optuna.distributions.FloatDistribution(float(column.min()), float(column.max()))
        for key, column in columns.items()
    }
    study = optuna.create_study(direction="maximize")
    for row, value in enumerate(objectives):
        params = {key: float(column[row]) for key, column in columns.items()}
        study.add_trial(optuna.create_trial(params=params, distributions=distributions, value=float(value)))
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=_NUM_TREES, seed=0)
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _encode(values: Sequence[Any]) -> np.ndarray:
    """Returns numbers unchanged, and any other value as its index in the sorted distinct values."""
    if all(isinstance(value, int | float) for value in values):
        return np.array(values, dtype=float)
    return np.unique([str(value) for value in values], return_inverse=True)[1].astype(float)
