"""Says what a path is that was given in place of a run, and which run may be meant."""

import difflib
import shlex
from collections.abc import Iterable
from pathlib import Path

from waver.config import ConfigError, check_config, load_sweep
from waver.tools.names import abbreviate
from waver.tools.object_store import display_path, exists, is_url, list_names, remote_of

_STORES = {
    "clips": "a clip store",
    "embeddings": "an embedding store",
    "dictionaries": "a dictionary",
    "knowledge": "the knowledge of clips",
}
"""Folder of `storage.path` -> what the folders in it are."""


def names_experiment(argument: str, folder: Path = Path()) -> bool:
    """Returns whether an argument is the YAML file of an experiment; False for that of a run, which names the run.

    Args:
        argument: path or URL, as typed.
        folder: the folder that a relative path is relative to.
    """
    path = folder / argument
    if is_url(argument) or path.suffix not in (".yaml", ".yml") or path.is_dir():
        return False
    inside = ("environment.json", "model.safetensors")  # of a run, of a checkpoint
    return not (path.name == "config.yaml" and any((path.parent / name).exists() for name in inside))


def describe_place(path: Path) -> str:
    """Says what a path is that is neither a run nor a checkpoint, and which run may be meant.

    Args:
        path: a file, a folder, a local copy of a URL, or nothing that exists.
    """
    shown = display_path(path)
    if path.is_file():
        return f"{shown} is {_describe_file(path)}"
    if not exists(path):
        broken = f", it is a link to {path.readlink()}, which is gone" if path.is_symlink() else ""
        return f"{shown} does not exist{broken}: {_suggest_run(path)}"
    if exists(path / "sweep.yaml"):
        return f"{shown} is a sweep: {_name_trials(path)}"
    if inside := runs_in(path):
        return f"{shown} holds runs: name one, such as {abbreviate(_quoted(inside))}"
    if exists(path.parent / "config.yaml"):
        return f"{shown} is a part of the run {display_path(path.parent)}: name the run"
    if exists(path / "manifest.json"):
        return f"{shown} is {_STORES.get(path.parent.name, 'no run')}: {_suggest_run(path)}"
    return f"{shown} is neither a run nor a checkpoint: {_suggest_run(path)}"


def runs_in(folder: Path) -> list[Path]:
    """Returns the runs in a folder, and those of the trials in it, sorted."""
    if remote_of(folder):
        return [folder / name for name in list_names(folder) if exists(folder / name / "config.yaml")]
    found = [run for place in ("*", "trials/*/*", "then/trials/*/*") for run in folder.glob(f"{place}/config.yaml")]
    return sorted(path.parent for path in found)


def _describe_file(path: Path) -> str:
    if exists(path.parent / "config.yaml"):
        what = "checkpoint" if exists(path.parent / "model.safetensors") else "run"
        return f"a file of the {what} {display_path(path.parent)}: name the folder"
    if path.suffix not in (".yaml", ".yml"):
        return f"a file, not the folder of a run: {_suggest_run(path)}"
    try:
        config, _ = check_config(path)
    except ConfigError:
        return _describe_sweep(path)
    if config is None:
        return f"an experiment, and not a valid one: `waver doctor {shlex.quote(str(path))}` lists its mistakes"
    run = config.run_folder
    if exists(run / "config.yaml"):
        return f"an experiment, not a run: its run is {shlex.quote(display_path(run))}"
    return (
        f"an experiment, and its run does not exist yet: `waver train {shlex.quote(str(path))}` makes it, in "
        f"{display_path(run)}"
    )


def _describe_sweep(path: Path) -> str:
    try:
        sweep = load_sweep(path)
        base, _ = check_config(sweep.base, sweep.set)
    except ConfigError:
        return f"a YAML file, not the folder of a run: {_suggest_run(path)}"
    folder = base.storage.folder / "sweeps" / sweep.name if base else None
    if folder and exists(folder / "sweep.yaml"):
        return f"a sweep: {_name_trials(folder)}"
    return f"a sweep that has not begun: `waver tune {shlex.quote(str(path))}` runs it"


def _name_trials(folder: Path) -> str:
    """Names the runs of a sweep that can be evaluated: it keeps the checkpoints of its best trials alone."""
    runs = runs_in(folder)
    if kept := [run for run in runs if list_names(run, "checkpoint_epoch_*")]:
        return f"its runs with checkpoints, those of its best trials, are {abbreviate(_quoted(kept))}"
    return f"its runs, without checkpoints, are {abbreviate(_quoted(runs))}" if runs else "it has no run yet"


def _suggest_run(path: Path) -> str:
    """Names the runs whose name is close to that of the path, else some runs nearby, else the command that makes one."""
    known = _known_runs(path)
    names = {run.name: run for run in reversed(known)}
    if near := difflib.get_close_matches(path.stem if path.is_file() else path.name, names, 3):
        return f"did you mean {' or '.join(_quoted(names[name] for name in near))}?"
    return f"there is {abbreviate(_quoted(known))}" if known else "train one with `waver train CONFIG`"


def _known_runs(path: Path) -> list[Path]:
    """Returns the runs beside a path, in `runs/` of the same storage, and in the storages of the current folder."""
    places = [path.parent, path.parent / "runs", path.parent.parent / "runs", path.parent.parent.parent / "runs"]
    if not remote_of(path):
        places += sorted(Path().glob("*/runs"))
    found = {run.absolute(): run for place in places if exists(place) for run in runs_in(place)}
    return list(found.values())


def _quoted(runs: Iterable[Path]) -> list[str]:
    return [shlex.quote(display_path(run)) for run in runs]
