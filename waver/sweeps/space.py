"""Turns a search space into points, the settings that trials change in their experiment.

A point maps dotted keys to values, as `--set` does. A key whose `when` condition does not hold is not in the point.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from waver.config import (
    ConfigError,
    ExperimentConfig,
    ParameterConfig,
    SweepConfig,
    check_config,
    load_config,
    load_sweep,
    split_overrides,
)
from waver.config.sweep import sort_by_conditions

Point = dict[str, Any]
Pick = Callable[[str, ParameterConfig], Any]
_MOST_CORNERS = 256
_SHOWN = 10
MISSING = object()


def base_overrides(sweep: SweepConfig, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the settings that all trials of a sweep change in the base experiment.

    Unless `set` of the sweep changes it, workers read the clip store without loader processes. A trial then needs resources
    for its workers only, and trials cannot block one another while they wait for loaders.

    Args:
        sweep: configuration of the sweep.
        overrides: dotted key -> value from the command line; takes precedence over the sweep.
    """
    return {"resources.loaders_per_worker": 0} | sweep.set | dict(overrides or {})


def read_sweep(path: Path, overrides: Mapping[str, Any] | None = None) -> tuple[SweepConfig, dict[str, Any]]:
    """Reads a sweep and the overrides of the command line.

    Args:
        path: YAML file of the sweep.
        overrides: dotted key of the sweep or of the experiment -> value, see `split_overrides`.

    Returns:
        The sweep, and the settings that all trials change in the base experiment, see `base_overrides`.

    Raises:
        ConfigError: with every mistake in the sweep, or if an override would be replaced by that of each trial.
    """
    of_sweep, of_experiment = split_overrides(overrides or {})
    sweep = load_sweep(path, of_sweep)
    if varied := sorted(of_experiment.keys() & sweep.space.keys()):
        lines = [f"--set 'space.{key}={{choice: [{of_experiment[key]}]}}'" for key in varied]
        raise ConfigError(f"the sweep varies {', '.join(varied)}: for one value write {' '.join(lines)}")
    return sweep, base_overrides(sweep, of_experiment)


def list_points(sweep: SweepConfig, base: ExperimentConfig, counts: Sequence[int] = ()) -> list[Point]:
    """Lists the distinct points of a random or grid search, in order. The same sweep always gives the same points.

    Args:
        sweep: configuration of the sweep.
        base: configuration of the base experiment; gives the values of keys in a `when` that the sweep does not vary.
        counts: num_samples in the order in which it grew, see `sample_counts`; by default it never did.
    """
    assert sweep.search != "optuna", "Optuna draws each point from the results of earlier ones"
    exhaustive = [key for key, parameter in sweep.space.items() if sweep.search == "grid" or parameter.kind == "grid"]
    rng = np.random.default_rng(sweep.seed)
    found: list[Point] = []
    combinations = list(itertools.product(*(sweep.space[key].values for key in exhaustive)))
    batches = [1] if sweep.search == "grid" else np.diff([0, *(counts or [sweep.num_samples])]).tolist()
    for batch, combination in itertools.product(batches, combinations):
        chosen = dict(zip(exhaustive, combination, strict=True))
        for _ in range(batch):
            found.append(
                build_point(
                    sweep.space,
                    base,
                    lambda key, parameter: chosen[key] if key in chosen else draw_value(parameter, rng),  # noqa: B023
                )
            )
    # Combinations that differ only in a key whose `when` does not hold give the same point.
    return [point for number, point in enumerate(found) if point not in found[:number]]


def build_point(space: Mapping[str, ParameterConfig], base: ExperimentConfig, pick: Pick) -> Point:
    """Builds one point: calls `pick` for each key whose `when` holds; a key comes after the keys that its `when` names."""
    point: Point = {}
    for key in sort_by_conditions(dict(space)):
        if _holds(space[key].when, point, space, base):
            point[key] = pick(key, space[key])
    return {key: point[key] for key in space if key in point}


def draw_value(parameter: ParameterConfig, rng: np.random.Generator) -> Any:
    """Draws a value of one key. Floats are rounded to six digits, so that files and tables show their exact value."""
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
    """Rounds a float to six significant digits."""
    return float(f"{value:.6g}")


def corner_points(sweep: SweepConfig, base: ExperimentConfig) -> list[Point]:
    """Lists points with the ends of all ranges and all choices, to validate a search whose points are not known in advance.

    If there are more than 256 combinations, 256 random ones are taken.
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
    sweep: SweepConfig, base: ExperimentConfig, overrides: Mapping[str, Any], points: list[Point]
) -> tuple[ExperimentConfig, ...]:
    """Resolves and validates the experiment of every point, and that of its fine-tuning.

    Args:
        sweep: configuration of the sweep.
        base: configuration of its base experiment.
        overrides: settings that all trials change, see `base_overrides`.
        points: the points.

    Returns:
        The experiments of the points; see `fine_tuned_configs` for those of their fine-tunings.

    Raises:
        ConfigError: with every distinct mistake, and the number of points that have it.
    """
    settings = base.model_dump(mode="json")
    problems: Counter[str] = Counter()
    for key, parameter in sweep.space.items():
        for on in parameter.when:
            if on not in sweep.space and lookup(settings, on) is MISSING:
                problems[f"space.{key}.when.{on}: no key of the experiment, and not varied"] = len(points)
    configs: list[ExperimentConfig] = []
    for point in points:
        config, mistakes = check_config(sweep.base, {**overrides, **point})
        if config is not None:
            configs.append(config)
        problems.update(mistakes)
        problems.update(_mistakes_of_then(sweep, config, {**overrides, **point}, known=mistakes))
    if problems:
        lines = [f"  {problem} (in {count} of {len(points)} points)" for problem, count in problems.most_common(_SHOWN)]
        if len(problems) > _SHOWN:
            lines.append(f"  and {len(problems) - _SHOWN} more like these")
        raise ConfigError(
            f"{len(problems)} mistakes in the settings of sweep {sweep.name}; narrow the ranges, or add a `when`\n"
            + "\n".join(lines)
        )
    return tuple(configs)


def fine_tuned_point(sweep: SweepConfig, point: Point) -> Point:
    """Returns a point with the values that its keys have in the fine-tuning."""
    changes = sweep.then.changes if sweep.then else {}
    return {key: changes.get(key, value) for key, value in point.items()}


def fine_tuned_configs(
    sweep: SweepConfig, overrides: Mapping[str, Any], points: Iterable[Point]
) -> tuple[ExperimentConfig, ...]:
    """Returns the experiment of the fine-tuning of every point, without the checkpoint that it starts from.

    Args:
        sweep: configuration of the sweep.
        overrides: settings that all trials change, see `base_overrides`.
        points: points that `point_configs` accepts.

    Returns:
        The experiments; none if the sweep hands nothing to fine-tuning.
    """
    if sweep.then is None:
        return ()
    return tuple(load_config(sweep.base, {**overrides, **point, **sweep.then.changes}) for point in points)


def _mistakes_of_then(
    sweep: SweepConfig, searched: ExperimentConfig | None, overrides: Mapping[str, Any], *, known: Sequence[str]
) -> list[str]:
    """Returns a line for each reason why a point cannot be fine-tuned as the sweep asks.

    Args:
        sweep: configuration of the sweep.
        searched: experiment of the point; None if it is invalid.
        overrides: settings that the trial changes in the base experiment.
        known: mistakes of the point itself, which are not repeated.
    """
    if sweep.then is None:
        return []
    changes = sweep.then.changes
    config, mistakes = check_config(sweep.base, {**overrides, **changes})
    if searched is not None and config is not None:
        mistakes = list(_misfits(searched, config))
    mistakes = [mistake for mistake in mistakes if mistake not in known]
    return [f"then{'.' if mistake.startswith(tuple(changes)) else ': '}{mistake}" for mistake in mistakes]


def _misfits(searched: ExperimentConfig, config: ExperimentConfig) -> Iterator[str]:
    """Says why a fine-tuning cannot start from the weights of its trial, or reads what that did not."""
    if config.loss.kind != searched.loss.kind:
        yield f"loss.kind = {config.loss.kind}, but the trial is trained with {searched.loss.kind}: remove it from `then`"
    if config.fusion_kind != searched.fusion_kind:
        have = "no weights of fusion, which the trial has" if searched.uses_fusion else "weights of fusion"
        if config.uses_fusion and searched.uses_fusion:
            have = f"weights of {config.fusion_kind} fusion, but the trial those of {searched.fusion_kind}"
        yield (
            f"the model would have {have}: loss.distill, knowledge.top_k, knowledge.fusion and knowledge.at_inference must "
            "leave it as in the search"
        )
    phrases = (config.knowledge.released, config.dictionary)
    if (
        config.uses_knowledge
        and searched.uses_knowledge
        and phrases != (searched.knowledge.released, searched.dictionary)
    ):
        yield "knowledge.released: the phrases must be those of the search: remove it from `then`"
    if config.embeddings.use == "never":
        return
    if refrozen := [tower for tower in config.frozen_towers if tower not in searched.frozen_towers]:
        yield (
            f"the search trains {' and '.join(refrozen)}, so that stored embeddings would be those of other weights: add "
            "embeddings.use: never to `then`"
        )


def _holds(when: Mapping[str, Any], point: Point, space: Mapping[str, ParameterConfig], base: ExperimentConfig) -> bool:
    if not when:
        return True
    settings = base.model_dump(mode="json")
    for key, wanted in when.items():
        # A key that the sweep varies but this point lacks has the value of the base experiment.
        value = point[key] if key in point else lookup(settings, key)
        if value not in (wanted if isinstance(wanted, list | tuple) else [wanted]):
            return False
    return True


def lookup(settings: Mapping[str, Any], dotted: str) -> Any:
    """Returns the value of a dotted key; MISSING if there is no such key."""
    value: Any = settings
    for part in dotted.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value
