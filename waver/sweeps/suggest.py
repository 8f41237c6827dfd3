"""Draws points with Optuna: a define-by-run search space, that is a function of an Optuna trial."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from waver.config import ExperimentConfig, ParameterConfig
from waver.sweeps.space import build_point, round_float

if TYPE_CHECKING:
    import optuna


@dataclass(frozen=True)
class Suggest:
    """Define-by-run search space; its instances are pickled into the state of a sweep."""

    space: dict[str, ParameterConfig]
    base: ExperimentConfig

    def __call__(self, trial: "optuna.Trial") -> dict[str, Any]:
        """Returns the point of an Optuna trial and its `number`.

        A key whose `when` does not hold is not suggested, so that Optuna's model has no values without effect.
        """
        point = build_point(self.space, self.base, lambda key, parameter: suggest(trial, key, parameter))
        return {**point, "number": trial.number}


def suggest(trial: "optuna.Trial", key: str, parameter: ParameterConfig) -> Any:
    """Asks Optuna for the value of one key."""
    if parameter.kind in ("uniform", "loguniform"):
        low, high = parameter.values
        value = round_float(trial.suggest_float(key, low, high, log=parameter.kind == "loguniform"))
        return min(max(value, low), high)
    if parameter.kind == "randint":
        return trial.suggest_int(key, *parameter.values)
    # Optuna can store the index of a choice, but not a choice that is a list or mapping.
    return parameter.values[trial.suggest_categorical(key, list(range(len(parameter.values))))]
