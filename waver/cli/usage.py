"""Says what to write in place of arguments that a command does not know, such as `--epochs 3`."""

import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from waver.cli.options import EVALUATION_SECTIONS
from waver.config import ExperimentConfig, SweepConfig
from waver.config.mistakes import dotted_keys, similar_keys

_ASSIGNMENT = re.compile(r"\w+(\.\w+)*=.*", re.DOTALL)
_NAMES_OF_THE_ARGUMENT = ("config", "cfg", "experiment", "run", "sweep", "logdir", "log-dir", "run-dir")


def usage_hints(arguments: Sequence[str], commands: Mapping[str, Any]) -> list[str]:
    """Says what to write in place of arguments that a command does not know.

    Args:
        arguments: of the command line, without the name of the program.
        commands: name -> click command.

    Returns:
        Sentences; none if nothing is known to help.
    """
    command = next((argument for argument in arguments if argument in commands), None)
    if command is None:
        return []
    place = arguments.index(command)
    before, given = list(arguments[:place]), list(arguments[place + 1 :])
    if before:
        return [f"options come after the command: waver {shlex.join([command, *given, *before])}"]
    if command == "submit" and len(given) > 1 and given[0] in commands:
        return [
            f"the configuration comes before the stage: waver submit {shlex.join([given[1], given[0], *given[2:]])}"
        ]
    options = {option for parameter in commands[command].params for option in parameter.opts}
    hints = []
    for previous, argument, following in zip(["", *given], given, [*given[1:], ""], strict=False):
        name, equals, value = argument.removeprefix("--").partition("=")
        value = value if equals or following.startswith("--") else following
        if argument == "--set" and not following:
            hints.append("--set needs a setting and its value, such as --set train.lr=3e-5")
        elif previous == "--set":
            if not equals and value:
                hints.append(f"write a setting and its value as one argument: --set {name.rstrip(':')}={value}")
        elif argument.startswith("--") and f"--{name}" not in options:
            hints += _hints_for_option(command, name, value, settable="--set" in options)
        elif "--set" in options and _ASSIGNMENT.fullmatch(argument):
            hints.append(f"a setting is given with --set: --set {shlex.quote(argument)}")
    return hints


def _hints_for_option(command: str, name: str, value: str, *, settable: bool) -> list[str]:
    """Says what an unknown option may stand for: a setting, the argument of the command, or another command."""
    if name in _NAMES_OF_THE_ARGUMENT and value:
        return [f"it needs no --{name}: waver {command} {shlex.quote(value)}"]
    if name == "dry-run":
        return ["`waver doctor CONFIG` checks an experiment without running it, `waver tune SWEEP --dry-run` a sweep"]
    keys = _settable_keys(command) if settable else []
    near = [name] if name in keys else similar_keys(name, keys)
    return [f"--{name} is a setting: --set {key}={shlex.quote(value) if value else 'VALUE'}" for key in near[:2]]


def _settable_keys(command: str) -> list[str]:
    keys = dotted_keys(ExperimentConfig)
    if command in ("evaluate", "robustness", "export"):
        return [key for key in keys if key.partition(".")[0] in EVALUATION_SECTIONS]
    if command != "tune":
        return keys
    of_sweep = [key for key in dotted_keys(SweepConfig) if key not in ("seed", "set", "space")]
    return [*of_sweep, "set.seed", *(key for key in keys if key not in ("name", "seed"))]
