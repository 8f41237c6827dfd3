"""Drafts of experiments: a configuration with mistakes, read as far as possible, so that all mistakes are found at once."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from waver.config.contradictions import contradictions
from waver.config.earlier import BEFORE, with_settings_before
from waver.config.experiment import ALLOW_CONTRADICTIONS, STORED, ExperimentConfig
from waver.config.mistakes import describe_mistakes, location_of, meant_key
from waver.config.preprocessing import Preprocessing

_PLACEHOLDERS = {
    "name": "unnamed",
    "data": {"format": "table", "annotations": "annotations", "videos": "videos"},
    "data.annotations": "annotations",
    "data.videos": "videos",
}
"""Values in place of the settings that have no default."""


@dataclass(frozen=True)
class Draft:
    """An experiment as a file says it, mistakes included."""

    config: ExperimentConfig
    """The experiment, with a default or a placeholder for each mistake; its settings may contradict each other."""
    mistakes: list[str]
    """A line for each mistake, with its dotted path."""
    uncertain: frozenset[str] = frozenset()
    """Dotted keys of the settings and sections whose value in `config` is not what the file means."""

    def is_certain(self, *keys: str) -> bool:
        """Returns whether these settings, or all settings of these sections, are as the file means them."""
        return not any(
            f"{key}.".startswith(f"{other}.") or f"{other}.".startswith(f"{key}.")
            for key in keys
            for other in self.uncertain
        )


def draft_experiment(raw: dict[str, Any], *, stored: bool = False) -> Draft:
    """Reads an experiment from the settings of a file, with all mistakes.

    Args:
        raw: the content of the file, with overrides.
        stored: whether the file is that of a run, see `STORED`.
    """
    if stored:
        raw = _as_stored(raw)
    try:
        return Draft(ExperimentConfig.model_validate(raw, context=STORED if stored else None), [])
    except ValidationError as error:
        problems = error.errors()
    mistakes = describe_mistakes(problems, raw, ExperimentConfig)
    config = ExperimentConfig.model_validate(_without(problems, raw), context=ALLOW_CONTRADICTIONS)
    draft = Draft(config, mistakes, frozenset(_uncertain_keys(problems, raw)))
    if all(problem["loc"] for problem in problems):  # then pydantic has not compared the settings with each other
        key = re.compile(r"\b[a-z]+\.[a-z_]+\b")
        mistakes += [sentence for sentence in contradictions(config) if draft.is_certain(*key.findall(sentence))]
    return draft


def _as_stored(raw: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings of a run with what older versions of waver computed where it has none.

    They knew no preprocessing but CLIP's.
    """
    usual = Preprocessing()
    preprocessing = {
        "video": {"size": usual.size, "resize": usual.resize, "interpolation": usual.interpolation},
        "model": {"pixel_mean": usual.mean, "pixel_std": usual.std},
    }
    return with_settings_before(with_settings_before(raw, preprocessing), BEFORE)


def _without(problems: Iterable[Mapping[str, Any]], raw: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings without those that have a mistake; a file's keys need not be text."""
    wrong = {tuple(location_of(problem)[:2]) for problem in problems}
    settings: dict[str, Any] = {
        section: {key: value for key, value in part.items() if (str(section), str(key)) not in wrong}
        if isinstance(part, dict)
        else part
        for section, part in raw.items()
        if (str(section),) not in wrong
    }
    for dotted, value in _PLACEHOLDERS.items():
        section, _, key = dotted.partition(".")
        (settings[section] if key else settings).setdefault(key or section, value)
    return settings


def _uncertain_keys(problems: Iterable[Mapping[str, Any]], raw: dict[str, Any]) -> Iterator[str]:
    for problem in problems:
        location = location_of(problem)
        if problem["type"] != "extra_forbidden":
            yield from [".".join(location[:2])] if location else []
        elif meant := meant_key(location, raw, ExperimentConfig):
            yield ".".join([*location[:-1], meant])
