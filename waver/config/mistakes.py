"""Describes mistakes in a configuration, one line each: dotted path, value, error, remedy."""

import difflib
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from waver.config.experiment import ExperimentConfig
from waver.config.robustness import RobustnessConfig
from waver.config.sweep import ParameterConfig, SweepConfig
from waver.data.annotations import DATA_SETS, CommonData
from waver.tools.object_store import hide_secrets
from waver.tools.section import Section

_USUAL_NAMES = {
    "learning_rate": "train.lr",
    "max_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "batch_size": "train.global_batch_size",
    "fps": "video.frames_per_second",
    "image_size": "video.size",
    "num_frames": "video.max_frames",
    "pretrained": "model.weights",
    "checkpoint": "model.weights",
    "output_dir": "storage.path",
    "num_workers": "resources.workers",
    "num_gpus": "resources.gpus_per_worker",
    "trials": "num_samples",
}
"""Names of settings in other tools -> dotted keys of waver."""


def describe_mistakes(problems: Iterable[Mapping[str, Any]], raw: Any, kind: type[Section]) -> list[str]:
    """Returns a line for each mistake: dotted path, value, error, remedy.

    Args:
        problems: pydantic's errors.
        raw: the content of the file, with overrides.
        kind: what it was validated as.
    """
    lines = (line for problem in problems for line in _describe(problem, raw, kind))
    return list(dict.fromkeys(lines))


def location_of(problem: Mapping[str, Any]) -> list[str]:
    """Returns the keys that lead to the mistake; empty if settings do not fit together."""
    # Pydantic's path has the name of the chosen variant of a union (the data set's format), which the file has not.
    location = [str(part) for part in problem["loc"]]
    if len(location) > 1 and location[0] == "data" and location[1] in DATA_SETS:
        del location[1]
    return location


def meant_key(location: list[str], raw: Any, kind: type[Section]) -> str | None:
    """Returns the known key that an unknown one resembles most; None if there is none."""
    return next(iter(difflib.get_close_matches(location[-1], _keys_of(location[:-1], raw, kind), 1)), None)


def _describe(problem: Mapping[str, Any], raw: Any, kind: type[Section]) -> list[str]:
    location = location_of(problem)
    if not location:  # settings that do not fit together, one line for each combination
        return problem["msg"].removeprefix("Value error, ").splitlines()
    return [_describe_value(problem, location, raw, kind)]


def _describe_value(problem: Mapping[str, Any], location: list[str], raw: Any, kind: type[Section]) -> str:
    # For a union pydantic reports an error for each type; one line replaces them.
    doc = _doc_of(location[:2], raw, kind)
    if location[:2] == ["model", "backbone"]:
        return f"model.backbone: {raw['model']['backbone']!r}: is neither a name nor a mapping ({doc})"
    if location[:3] == ["knowledge", "teacher", "backbone"]:
        return (
            f"knowledge.teacher.backbone: {raw['knowledge']['teacher']['backbone']!r}: is neither a name nor a mapping"
        )
    if location[:2] == ["resources", "workers"]:
        if not any("WorkersRange" in part for part in location[2:]):
            return f"resources.workers: {raw['resources']['workers']!r}: is neither a number nor a range ({doc})"
        del location[2]
    dotted, mistake = ".".join(location), problem["type"]
    if mistake == "extra_forbidden":
        return f"{dotted}: unknown key; {_remedy_for_key(location, raw, kind)}"
    if mistake == "missing":
        return f"{dotted}: is missing; {_doc_of(location, raw, kind) or 'add it'}"
    if mistake.startswith("union_tag"):
        return f"data.format: must be one of {', '.join(DATA_SETS)}"
    message = problem["msg"].removeprefix("Value error, ")
    remedy = f" ({doc})" if (doc := _doc_of(location, raw, kind)) else ""
    return f"{dotted}: {hide_secrets(repr(problem['input']))}: {message[0].lower() + message[1:]}{remedy}"


def dotted_keys(kind: type[Section], raw: Any = None) -> list[str]:
    """Lists the keys of a configuration, those of its sections with a dot.

    Args:
        kind: the configuration.
        raw: the content of a file; its `data.format` decides which keys `data` has.
    """
    found = []
    for name in kind.model_fields:
        section = _section([name], raw or {}, kind)
        found += [f"{name}.{key}" for key in section.model_fields] if section else [name]
    return found


def similar_keys(name: str, keys: list[str], *, guess: bool = True) -> list[str]:
    """Returns the dotted keys that a name without its section, or of another tool, may stand for, the likeliest first.

    Args:
        name: such as `lr`, `batch-size` or `learning_rate`.
        keys: from `dotted_keys`.
        guess: whether keys count whose name only contains this name, or resembles it.
    """
    name = name.replace("-", "_")
    last = {key: key.rpartition(".")[2] for key in keys}
    usual = [_USUAL_NAMES[name]] if _USUAL_NAMES.get(name) in keys else []
    exact = usual + [key for key in keys if last[key] == name]
    if exact or not guess:
        return exact
    containing = [key for key in keys if f"_{name}_" in f"_{last[key]}_"]
    return containing or [key for key in keys if last[key] in difflib.get_close_matches(name, last.values(), 3, 0.75)]


def _remedy_for_key(location: list[str], raw: Any, kind: type[Section]) -> str:
    """Says what to write in place of an unknown key: a key beside it, in another section, or in another kind of file."""
    name, known = location[-1], _keys_of(location[:-1], raw, kind)
    if near := meant_key(location, raw, kind):
        return f"did you mean {near}?"
    if kind is SweepConfig and len(location) == 1:
        first = name.partition(".")[0]
        if first in ExperimentConfig.model_fields:
            return f"it is a key of the experiment: write it in `set`, with its section, such as set: {{{name}: ...}}"
    if kind is ExperimentConfig and len(location) == 1:
        if name in SweepConfig.model_fields:
            return "it is a key of a sweep, which `waver tune` runs"
        if near := difflib.get_close_matches(name, SweepConfig.model_fields, 1, 0.8):
            return f"did you mean {near[0]}, a key of a sweep, which `waver tune` runs?"
    if near := similar_keys(name, dotted_keys(kind, raw), guess=len(location) == 1):
        return f"did you mean {' or '.join(near)}?"
    return f"known keys here: {', '.join(known)}"


def find_kind(raw: Mapping[str, Any]) -> type[Section] | None:
    """Returns what the content of a file is by its keys: experiment, sweep or settings of a report; None if unknown."""
    if {"base", "space"} & raw.keys() and "data" not in raw:
        return SweepConfig
    if "data" in raw:
        return ExperimentConfig
    return RobustnessConfig if raw and raw.keys() <= RobustnessConfig.model_fields.keys() else None


def describe_other_kind(path: Path, raw: Mapping[str, Any], wanted: type[Section]) -> str | None:
    """Says what a file is if it is not what is wanted, and the command for it; None if it may be what is wanted."""
    found, file = find_kind(raw), shlex.quote(str(path))
    if found in (wanted, None):
        return None
    if found is RobustnessConfig and wanted is ExperimentConfig and "name" not in raw:
        return f"{path} has the settings of a report, not an experiment: use it with `waver robustness RUN --config {file}`"
    if found is SweepConfig and wanted is ExperimentConfig:
        base = f"; its experiment is {path.parent / raw['base']}" if isinstance(raw.get("base"), str) else ""
        return f"{path} is a sweep, not an experiment: run it with `waver tune {file}`{base}"
    if found is ExperimentConfig and wanted is SweepConfig and not {"base", "space"} & raw.keys():
        return (
            f"{path} is an experiment, not a sweep: train it with `waver train {file}`, or write a sweep, a file with "
            f"`name`, `base: {path.name}` and the `space` to search"
        )
    if wanted is RobustnessConfig:
        what = "a sweep" if found is SweepConfig else "an experiment"
        return f"{path} is {what}; --config takes the settings of a report ({', '.join(RobustnessConfig.model_fields)})"
    return None


def describe_missing_file(path: Path) -> str:
    """Says what is near a path that is no file: a folder, and the files beside it or in it."""
    if len(path.parts) > 1 and path.parts[0].endswith(":"):
        return f"{path}: no such file; a configuration must be a file on this machine, not in an object store"
    beside = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
    near = [path.name + ending for ending in (".yaml", ".yml") if path.name + ending in beside]
    near = near or difflib.get_close_matches(path.name, beside, 1, 0.8)
    hint = f"did you mean {path.with_name(near[0])}?" if near else ""
    if not path.is_dir():
        where = "the working folder" if path.parent == Path() else path.parent
        listed = f"in {where} there is: {', '.join(beside)}" if beside and not near else ""
        return "; ".join(filter(None, (f"{path}: no such file", hint, listed)))
    if (path / "config.yaml").is_file():
        what = "checkpoint" if (path / "model.safetensors").is_file() else "run"
        return f"{path} is the folder of a {what}; name its configuration, {path / 'config.yaml'}"
    if (path / "sweep.yaml").is_file():
        best = f", or that of its best trial, {path / 'best.yaml'}" if (path / "best.yaml").is_file() else ""
        return f"{path} is the folder of a sweep; name its configuration, {path / 'sweep.yaml'}{best}"
    inside = sorted(p.name for p in path.glob("*.y*ml"))
    listed = f"in it there is: {', '.join(inside)}" if inside else ""
    return "; ".join(filter(None, (f"{path} is a folder: name the YAML file of a configuration", hint, listed)))


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
    # A section that may be null is a union with None.
    annotation = next((part for part in get_args(annotation) if part is not NoneType), annotation)
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _keys_of(location: list[str], raw: Any, kind: type[Section]) -> list[str]:
    section = _section(location, raw, kind)
    return list(section.model_fields) if section else []


def _doc_of(location: list[str], raw: Any, kind: type[Section]) -> str:
    section = _section(location[:-1], raw, kind) if location else None
    field = section.model_fields.get(location[-1]) if section else None
    return (field.description or "").replace("\n", " ") if field else ""
