"""Reads configuration files; an error lists all mistakes, each with its dotted path, its value and the remedy."""

import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from waver.config.experiment import ExperimentConfig
from waver.config.robustness import RobustnessConfig
from waver.config.sweep import ParameterConfig, SweepConfig
from waver.data.annotations import DATA_SETS, CommonData
from waver.tools.errors import WaverError
from waver.tools.object_store import fetch, hide_secrets
from waver.tools.section import Section, flatten

_Config = TypeVar("_Config", bound=Section)
_MAX_VALUES = 10_000
"""Largest number of values in a file, hundreds of times that of an experiment."""


class ConfigError(WaverError):
    """A configuration is invalid; the message lists all mistakes."""


def load_config(path: Path | str, overrides: Mapping[str, Any] | None = None) -> ExperimentConfig:
    """Reads an experiment.

    Args:
        path: the YAML file.
        overrides: dotted key -> value, applied after reading: `{"train.lr": 3e-5}`.

    Raises:
        ConfigError: with every mistake in the file and the overrides.
    """
    config, problems = check_config(path, overrides)
    if config is None:
        raise _config_error(path, problems)
    return config


def check_config(
    path: Path | str, overrides: Mapping[str, Any] | None = None
) -> tuple[ExperimentConfig | None, list[str]]:
    """Reads an experiment like `load_config`, but returns its mistakes, so that a caller can try many overrides.

    Returns:
        The experiment, or None if it is invalid; one line for each mistake.

    Raises:
        ConfigError: if the file cannot be read.
    """
    raw = _read_yaml(Path(path), "an experiment is a mapping of sections (name, data, train, ...)")
    for key, value in (overrides or {}).items():
        _set(raw, key, value)
    return _validate(ExperimentConfig, raw)


def load_unresolved(path: Path | str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Reads an experiment and its overrides without validation, defaults and resolved paths.

    Returns:
        Dotted key -> value.

    Raises:
        ConfigError: if the file cannot be read.
    """
    raw = _read_yaml(Path(path), "an experiment is a mapping of sections (name, data, train, ...)")
    for key, value in (overrides or {}).items():
        _set(raw, key, value)
    return flatten(raw)


def load_sweep(path: Path | str) -> SweepConfig:
    """Reads a sweep; the result's `base` is the path of the experiment, which the file names relative to itself.

    Raises:
        ConfigError: with every mistake in the file.
    """
    path = Path(path)
    raw = _read_yaml(path, "a sweep is a mapping (name, base, space, ...)")
    sweep, problems = _validate(SweepConfig, raw)
    if sweep is None:
        raise _config_error(path, problems)
    return sweep.model_copy(update={"base": path.parent / sweep.base})


def load_robustness(path: Path | str | None, overrides: Mapping[str, Any] | None = None) -> RobustnessConfig:
    """Reads the settings of a writing-style report.

    Args:
        path: the YAML file; None for the defaults.
        overrides: key -> value, applied after reading.

    Raises:
        ConfigError: with every mistake in the file and the overrides.
    """
    raw = _read_yaml(Path(path), "the settings of a report are a mapping (split, tracks, ...)") if path else {}
    settings, problems = _validate(RobustnessConfig, raw | dict(overrides or {}))
    if settings is None:
        raise _config_error(path or "--set", problems)
    return settings


def _validate(kind: type[_Config], raw: dict[str, Any]) -> tuple[_Config | None, list[str]]:
    try:
        return kind.model_validate(raw), []
    except ValidationError as error:
        return None, list(dict.fromkeys(_describe(problem, raw, kind) for problem in error.errors()))


def _config_error(path: Path | str, problems: list[str]) -> ConfigError:
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


def _read_yaml(path: Path, what: str) -> dict[str, Any]:
    try:
        raw = _parse_yaml(fetch(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        siblings = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = f"; in {path.parent} there is: {', '.join(siblings)}" if siblings else ""
        raise ConfigError(f"{path}: no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {_where(error)}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: {what}, this is {type(raw).__name__}")
    return raw


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


def _describe(problem: Mapping[str, Any], raw: Any, kind: type[Section]) -> str:
    """Describes a mistake in one line: dotted path, value, error, remedy."""
    # Pydantic's path has the name of the chosen variant of a union (the data set's format), which the file has not.
    location = [str(part) for part in problem["loc"]]
    if len(location) > 1 and location[0] == "data" and location[1] in DATA_SETS:
        del location[1]
    # For a union pydantic reports an error for each type; one line replaces them.
    doc = _doc_of(location[:2], raw, kind)
    if location[:2] == ["model", "backbone"]:
        return f"model.backbone: {raw['model']['backbone']!r}: is neither a name nor a mapping ({doc})"
    if location[:2] == ["resources", "workers"]:
        if not any("WorkersRange" in part for part in location[2:]):
            return f"resources.workers: {raw['resources']['workers']!r}: is neither a number nor a range ({doc})"
        del location[2]
    dotted, mistake = ".".join(location), problem["type"]
    if mistake == "extra_forbidden":
        known = list(_keys_of(location[:-1], raw, kind))
        near = difflib.get_close_matches(location[-1], known, 1)
        hint = f"did you mean {near[0]}?" if near else f"known keys here: {', '.join(known)}"
        return f"{dotted}: unknown key; {hint}"
    if mistake == "missing":
        return f"{dotted}: is missing; {_doc_of(location, raw, kind) or 'add it'}"
    if mistake.startswith("union_tag"):
        return f"data.format: must be one of {', '.join(DATA_SETS)}"
    message = problem["msg"].removeprefix("Value error, ")
    if not dotted:
        return message
    remedy = f" ({doc})" if (doc := _doc_of(location, raw, kind)) else ""
    return f"{dotted}: {hide_secrets(repr(problem['input']))}: {message[0].lower() + message[1:]}{remedy}"


def _section(location: list[str], raw: Any, kind: type[Section]) -> type[Section] | None:
    if not location:
        return kind
    if location[0] == "space":
        return ParameterConfig if len(location) > 1 else None
    if location[0] == "data":
        chosen = raw.get("data", {}).get("format") if isinstance(raw.get("data"), dict) else None
        return DATA_SETS.get(chosen, CommonData) if isinstance(chosen, str) else CommonData
    annotation = kind.model_fields.get(location[0])
    annotation = annotation.annotation if annotation else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _keys_of(location: list[str], raw: Any, kind: type[Section]) -> Iterator[str]:
    section = _section(location, raw, kind)
    yield from (section.model_fields if section else ())


def _doc_of(location: list[str], raw: Any, kind: type[Section]) -> str:
    section = _section(location[:-1], raw, kind) if location else None
    field = section.model_fields.get(location[-1]) if section else None
    return (field.description or "").replace("\n", " ") if field else ""
