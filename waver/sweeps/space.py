"""From a search space to points: which values the keys of an experiment take in each trial.

A point is a mapping of dotted keys to values, as `--set` would give them. A key whose `when` does not hold is left out.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from waver.config import ConfigError, ExperimentConfig, ParameterConfig, SweepConfig, check_config
from waver.config.sweep import order

Point = dict[str, Any]
Pick = Callable[[str, ParameterConfig], Any]
_MOST_CORNERS = 256
_SHOWN = 10
MISSING = object()


def base_overrides(sweep: SweepConfig, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What all trials of a sweep change in its experiment.

    Trials read the clip store by themselves unless `set` says otherwise: then a trial takes nothing beside its workers, and
    trials cannot wait for one another.

    Args:
        sweep: the sweep.
        overrides: dotted key -> value, those of the command line, which win.
    """
    return {"resources.loaders_per_worker": 0} | sweep.set | dict(overrides or {})


def list_points(sweep: SweepConfig, base: ExperimentConfig) -> list[Point]:
    """The points of a sweep that knows them in advance (random, grid), in their order, each once.

    The same sweep gives the same points.

    Args:
        sweep: the sweep.
        base: its experiment, which answers for keys in a `when` that are not varied.
    """
    assert sweep.search != "optuna", "Optuna draws a point when it knows what came of the earlier ones"
    exhaustive = [key for key, parameter in sweep.space.items() if sweep.search == "grid" or parameter.kind == "grid"]
    rng = np.random.default_rng(sweep.seed)
    found: list[Point] = []
    for combination in itertools.product(*(sweep.space[key].values for key in exhaustive)):
        chosen = dict(zip(exhaustive, combination, strict=True))
        for _ in range(1 if sweep.search == "grid" else sweep.num_samples):
            found.append(
                build_point(
                    sweep.space,
                    base,
                    lambda key, parameter: chosen[key] if key in chosen else draw_value(parameter, rng),  # noqa: B023
                )
            )
    # Where a `when` does not hold, combinations of the key that it switches off are one and the same.
    return [point for number, point in enumerate(found) if point not in found[:number]]


def build_point(space: Mapping[str, ParameterConfig], base: ExperimentConfig, pick: Pick) -> Point:
    """One point: asks for the value of each key that is varied in it, those first on which others depend."""
    point: Point = {}
    for key in order(dict(space)):
        if _holds(space[key].when, point, space, base):
            point[key] = pick(key, space[key])
    return {key: point[key] for key in space if key in point}


def draw_value(parameter: ParameterConfig, rng: np.random.Generator) -> Any:
    """A value of one key. Floats have six digits, so that files and tables show them as they are."""
    if parameter.kind == "uniform":
        value = round_float(rng.uniform(*parameter.values))
    elif parameter.kind == "loguniform":
        value = round_float(np.exp(rng.uniform(*np.log(parameter.values))))
    elif parameter.kind == "randint":
        return int(rng.integers(*parameter.values, endpoint=True))
    else:
        return parameter.values[int(rng.integers(len(parameter.values)))]
    return min(max(value, parameter.values[0]), parameter.values[1])


def round_float(value: float) -> float:
    """A float of six significant digits."""
    return float(f"{value:.6g}")


def corner_points(sweep: SweepConfig, base: ExperimentConfig) -> list[Point]:
    """Points at the ends of all ranges, with all choices: what can be known of a search that draws as it goes.

    Of more than 256 combinations that many are drawn.
    """
    keys = list(sweep.space)
    ends = [sweep.space[key].values for key in keys]
    number = int(np.prod([len(values) for values in ends], dtype=float))
    if number <= _MOST_CORNERS:
        combinations = [dict(zip(keys, values, strict=True)) for values in itertools.product(*ends)]
    else:
        rng = np.random.default_rng(sweep.seed)
        combinations = [
            {key: values[rng.integers(len(values))] for key, values in zip(keys, ends, strict=True)}
            for _ in range(_MOST_CORNERS)
        ]
    found: list[Point] = []
    for combination in combinations:
        point = build_point(sweep.space, base, lambda key, _: combination[key])  # noqa: B023
        if point not in found:
            found.append(point)
    return found


def point_configs(
    sweep: SweepConfig, base: ExperimentConfig, overrides: Mapping[str, Any], found: list[Point]
) -> tuple[ExperimentConfig, ...]:
    """The experiment of every point.

    Args:
        sweep: the sweep.
        base: its experiment.
        overrides: what all trials change in it.
        found: the points.

    Raises:
        ConfigError: with every mistake once, and in how many points it is.
    """
    settings = base.model_dump(mode="json")
    problems: Counter[str] = Counter()
    for key, parameter in sweep.space.items():
        for on in parameter.when:
            if on not in sweep.space and lookup(settings, on) is MISSING:
                problems[f"space.{key}.when.{on}: no key of the experiment, and not varied"] = len(found)
    configs = []
    for point in found:
        config, mistakes = check_config(sweep.base, {**overrides, **point})
        configs.append(config)
        problems.update(mistakes)
    if problems:
        lines = [f"  {problem} (in {count} of {len(found)} points)" for problem, count in problems.most_common(_SHOWN)]
        if len(problems) > _SHOWN:
            lines.append(f"  and {len(problems) - _SHOWN} more like these")
        raise ConfigError(
            f"{len(problems)} mistakes in what sweep {sweep.name} would try; narrow the ranges, or add a `when`\n"
            + "\n".join(lines)
        )
    return tuple(configs)


def _holds(when: Mapping[str, Any], point: Point, space: Mapping[str, ParameterConfig], base: ExperimentConfig) -> bool:
    if not when:
        return True
    settings = base.model_dump(mode="json")
    for key, wanted in when.items():
        # A key that is varied elsewhere, but not in this point, is as in the base.
        value = point[key] if key in point else lookup(settings, key)
        if value not in (wanted if isinstance(wanted, list | tuple) else [wanted]):
            return False
    return True


def lookup(settings: Mapping[str, Any], dotted: str) -> Any:
    """The value of a dotted key; NOTHING where there is none."""
    value: Any = settings
    for part in dotted.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value
