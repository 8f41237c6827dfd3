"""A search space as Optuna asks for it: one function of a trial, that names the keys it wants values for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from waver.config import ExperimentConfig, ParameterConfig
from waver.sweeps.space import build_point, round_float

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Suggest:
    """Called with a trial of Optuna; returns its point, and its number."""

    space: dict[str, ParameterConfig]
    base: ExperimentConfig

    def __call__(self, trial: "optuna.Trial") -> dict[str, Any]:
        """Keys that depend on others are asked for only where they count, so Optuna learns nothing false of them."""
        point = build_point(self.space, self.base, lambda key, parameter: suggest(trial, key, parameter))
        return {**point, "number": trial.number}


def suggest(trial: "optuna.Trial", key: str, parameter: ParameterConfig) -> Any:
    """Optuna's value for one key."""
    if parameter.kind in ("uniform", "loguniform"):
        low, high = parameter.values
        value = round_float(trial.suggest_float(key, low, high, log=parameter.kind == "loguniform"))
        return min(max(value, low), high)
    if parameter.kind == "randint":
        return trial.suggest_int(key, *parameter.values)
    # By place: Optuna stores numbers, words and nothing else.
    return parameter.values[trial.suggest_categorical(key, list(range(len(parameter.values))))]
