"""Reads configuration files; an error lists all mistakes, each with its dotted path, its value and the remedy."""

import copy
import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from waver.config.drafts import Draft, draft_experiment
from waver.config.experiment import ExperimentConfig
from waver.config.mistakes import describe_missing_file, describe_mistakes, describe_other_kind
from waver.config.robustness import RobustnessConfig
from waver.config.sweep import SweepConfig
from waver.tools.errors import WaverError
from waver.tools.object_store import fetch
from waver.tools.section import Section, flatten

_Config = TypeVar("_Config", bound=Section)
_MAX_VALUES = 10_000
"""Largest number of values in a file, hundreds of times that of an experiment."""


class ConfigError(WaverError):
    """A configuration is invalid; the message lists all mistakes."""


def load_config(
    path: Path | str, overrides: Mapping[str, Any] | None = None, *, stored: bool = False
) -> ExperimentConfig:
    """Reads an experiment.

    Args:
        path: the YAML file.
        overrides: dotted key -> value, applied after reading: `{"train.lr": 3e-5}`.
        stored: whether the file is that of a run, which may be older than checks of settings that had no effect on it.

    Raises:
        ConfigError: with every mistake in the file and the overrides.
    """
    config, problems = check_config(path, overrides, stored=stored)
    if config is None:
        raise config_error(path, problems)
    return config


def check_config(
    path: Path | str, overrides: Mapping[str, Any] | None = None, *, stored: bool = False
) -> tuple[ExperimentConfig | None, list[str]]:
    """Reads an experiment like `load_config`, but returns its mistakes, so that a caller can try many overrides.

    Returns:
        The experiment, or None if it is invalid; one line for each mistake.

    Raises:
        ConfigError: if the file cannot be read.
    """
    draft = load_draft(path, overrides, stored=stored)
    return (None if draft.mistakes else draft.config), draft.mistakes


def load_draft(path: Path | str, overrides: Mapping[str, Any] | None = None, *, stored: bool = False) -> Draft:
    """Reads an experiment like `load_config`, but returns it even if it has mistakes, so that more of it can be checked.

    Raises:
        ConfigError: if the file cannot be read.
    """
    return draft_experiment(_read_experiment(path, overrides), stored=stored)


def load_unresolved(path: Path | str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Reads an experiment and its overrides without validation, defaults and resolved paths.

    Returns:
        Dotted key -> value.

    Raises:
        ConfigError: if the file cannot be read.
    """
    return flatten(_read_experiment(path, overrides))


def split_overrides(overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits the overrides of `waver tune` into those of the sweep and those of the experiment of all trials.

    A key of the sweep (`num_samples`, `scheduler.kind`, `space.train.lr`) changes the sweep, any other key the experiment.
    `name` is that of the sweep, since trials are named after it. `seed`, which both have, is refused without the prefix that
    says which is meant: `sweep.seed` or `set.seed`. The prefix `sweep.` may stand before every key of the sweep.

    Args:
        overrides: dotted key -> value.

    Raises:
        ConfigError: if a key is in both.
    """
    if "seed" in overrides:
        value = overrides["seed"]
        raise ConfigError(
            f"--set seed={value}: a sweep and its experiment have a seed each: write --set set.seed={value} to train with "
            f"another seed, or --set sweep.seed={value} to draw other points"
        )
    of_sweep = {
        key.removeprefix("sweep."): value
        for key, value in overrides.items()
        if key.partition(".")[0] in {"sweep", *SweepConfig.model_fields}
    }
    return of_sweep, {key: value for key, value in overrides.items() if key.removeprefix("sweep.") not in of_sweep}


def load_sweep(path: Path | str, overrides: Mapping[str, Any] | None = None) -> SweepConfig:
    """Reads a sweep; the result's `base` is the path of the experiment, which the file names relative to itself.

    Args:
        path: the YAML file.
        overrides: dotted key of the sweep -> value, see `split_overrides`. In `space.`, `set.` and `then.` the rest is one
            key.

    Raises:
        ConfigError: with every mistake in the file and the overrides.
    """
    path = Path(path)
    raw = _read_yaml(path, "a sweep is a mapping (name, base, space, ...)", SweepConfig)
    for key, value in (overrides or {}).items():
        section, _, rest = key.partition(".")
        if section in ("space", "set", "then") and rest:
            there = raw.get(section)
            raw[section] = {**(there if isinstance(there, dict) else {}), rest: value}
        else:
            _set(raw, key, value)
    sweep, problems = _validate(SweepConfig, raw)
    if sweep is None:
        raise config_error(path, problems)
    folder = Path() if "base" in (overrides or {}) else path.parent
    return sweep.model_copy(update={"base": folder / sweep.base})


def load_robustness(path: Path | str | None, overrides: Mapping[str, Any] | None = None) -> RobustnessConfig:
    """Reads the settings of a writing-style report.

    Args:
        path: the YAML file; None for the defaults.
        overrides: key -> value, applied after reading.

    Raises:
        ConfigError: with every mistake in the file and the overrides.
    """
    what = "the settings of a report are a mapping (split, tracks, ...)"
    raw = _read_yaml(Path(path), what, RobustnessConfig) if path else {}
    settings, problems = _validate(RobustnessConfig, raw | dict(overrides or {}))
    if settings is None:
        raise config_error(path or "--set", problems)
    return settings


def _read_experiment(path: Path | str, overrides: Mapping[str, Any] | None) -> dict[str, Any]:
    what = "an experiment is a mapping of sections (name, data, train, ...)"
    raw = _read_yaml(Path(path), what, ExperimentConfig)
    for key, value in (overrides or {}).items():
        _set(raw, key, value)
    return raw


def _validate(kind: type[_Config], raw: dict[str, Any]) -> tuple[_Config | None, list[str]]:
    try:
        return kind.model_validate(raw), []
    except ValidationError as error:
        return None, describe_mistakes(error.errors(), raw, kind)


def config_error(path: Path | str, problems: list[str]) -> ConfigError:
    """Returns the error for a file with mistakes, a line or more each."""
    count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
    return ConfigError(f"{path}: {count}\n" + "\n".join(f"  {problem}" for problem in problems))


def parse_overrides(assignments: list[str]) -> dict[str, Any]:
    """Parses the values of `--set`: `["train.lr=3e-5"]` becomes `{"train.lr": 3e-5}`; the part after = is YAML.

    Raises:
        ConfigError: if an assignment has no key or is not YAML.
    """
    overrides, problems = {}, []
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or not re.fullmatch(r"\w+(\.\w+)*", key):
            problems.append(f"--set {assignment}: write it as section.key=value, for example train.lr=3e-5")
            continue
        if re.search(r",\s*\w+(\.\w+)+=", value):
            problems.append(f"--set {assignment}: write one --set for each setting")
            continue
        if not value.strip():  # YAML would read it as null, which for model.weights means random weights
            problems.append(f"--set {assignment}: the value is empty; write {key}=null for none, or give one")
            continue
        try:
            overrides[key] = _parse_yaml(value)
        except yaml.YAMLError as error:
            problems.append(f"--set {assignment}: the value is not YAML ({_where(error)})")
    if problems:
        raise ConfigError("\n".join(problems))
    return overrides


class _Loader(yaml.SafeLoader):
    """Loads YAML with the numbers of YAML 1.2 (such as 1e-4) and without duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        self.flatten_mapping(node)
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def _read_yaml(path: Path, what: str, kind: type[Section]) -> dict[str, Any]:
    try:
        raw = copy.deepcopy(_parse_file(fetch(path).read_text(encoding="utf-8")))
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(describe_missing_file(path)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text ({error}); {what}, in a YAML file") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {_where(error)}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: {what}, this is {type(raw).__name__}")
    if other := describe_other_kind(path, raw, kind):
        raise ConfigError(other)
    return raw


@functools.lru_cache(maxsize=4)
def _parse_file(text: str) -> Any:
    """Parses the text of a file. A sweep reads that of its base for each point: parsing takes far longer than all else."""
    return _parse_yaml(text)


def _parse_yaml(text: str) -> Any:
    """Parses YAML with plain values only; aliases must not expand to excessive size.

    Raises:
        yaml.YAMLError: if the text cannot be read.
    """
    try:
        value = yaml.load(text, _Loader)
        if _num_values(value, {}) > _MAX_VALUES:
            raise yaml.YAMLError(f"its aliases (*) expand to more than {_MAX_VALUES} values; write the values out")
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply, or contains itself") from None
    except (ValueError, TypeError) as error:  # numbers, dates and keys that Python cannot represent
        raise yaml.YAMLError(str(error)) from None
    return value


def _num_values(value: Any, known: dict[int, int]) -> int:
    """Counts the values with aliases expanded: a few lines of aliases can expand to billions."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_num_values(part, known) for part in parts)
    return known[id(value)]


def _where(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error)
    return f"{what} in line {mark.line + 1}, column {mark.column + 1}" if mark else what


def _set(raw: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    for name in parents:
        # A scalar in place of a section is replaced; validation then reports the section's missing keys.
        if not isinstance(raw.get(name), dict):
            raw[name] = {}
        raw = raw[name]
    raw[last] = value
