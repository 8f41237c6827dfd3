"""Commands in messages, written so that they work when they are pasted.

A message says `waver ingest CONFIG`. Whoever knows the experiment, such as the command line, completes the command.
"""

import json
import re
import shlex
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from waver.tools.errors import WaverError

_PLACEHOLDER = re.compile(r"(waver (?:ingest|embed|vocabulary|match|train|doctor)) CONFIG\b")


def complete_commands(text: str, experiment: str) -> str:
    """Replaces the word CONFIG in the commands of a message, such as `waver ingest CONFIG`.

    Args:
        text: the message.
        experiment: the arguments that name the experiment, quoted for a shell; empty if they are not known.
    """
    return _PLACEHOLDER.sub(lambda match: f"{match[1]} {experiment}", text) if experiment else text


@contextmanager
def completed_commands(experiment: str) -> Generator[None, None, None]:
    """Completes the commands in the message of a `WaverError` that the body raises; see `complete_commands`."""
    try:
        yield
    except WaverError as error:
        error.args = (complete_commands(str(error), experiment),)
        raise


def config_arguments(path: Path | str, assignments: Sequence[str] = (), workers: int | None = None) -> str:
    """Returns the arguments of a stage for a shell: the configuration and its overrides.

    Args:
        path: YAML file of the experiment.
        assignments: values of --set.
        workers: value of --workers; written as --set, which all stages have.
    """
    if workers is not None:
        assignments = [f"resources.workers={workers}", *assignments]
    return shlex.join([str(path), *(part for assignment in assignments for part in ("--set", assignment))])


def to_assignments(overrides: Mapping[str, Any]) -> list[str]:
    """Returns overrides, dotted key -> value, as values of --set."""
    return [f"{key}={_as_yaml(value)}" for key, value in overrides.items()]


def _as_yaml(value: Any) -> str:
    """Writes a value as YAML in one line; a path without quotes, which would only be noise."""
    if isinstance(value, str) and re.fullmatch(r"[./]?[./\w-]*/[./\w-]*", value):
        return value
    return json.dumps(value, ensure_ascii=False)  # JSON is YAML
