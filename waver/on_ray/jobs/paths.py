"""What in the arguments of a job names files and folders, and whether a job on another machine would find them."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from waver.config import ExperimentConfig, SweepConfig, load_unresolved
from waver.sweeps.space import base_overrides

ON_RUNS = ("evaluate", "robustness")
"""Stages that are given runs instead of a file of settings."""
_PATHS = ("storage.path", "data.annotations", "data.videos", "model.weights", "knowledge.released")
_WEIGHTS = (".pt", ".pth", ".bin", ".safetensors")
_NETWORK = (
    *("nfs", "cifs", "smb", "afs", "9p", "virtiofs", "fuse."),
    *("lustre", "gpfs", "beegfs", "ceph", "gluster", "pvfs"),
)
"""How the types of file systems begin that several machines may mount."""


def named_paths(
    stage: str,
    parsed: Mapping[str, Any],
    config: ExperimentConfig | None,
    sweep: SweepConfig | None,
    path: Path,
    overrides: Mapping[str, Any],
) -> Iterator[tuple[str, str, str]]:
    """What names a file or folder outside the upload: (name, value as it is written, where it is written)."""
    if sweep:
        settings = load_unresolved(sweep.base, base_overrides(sweep, overrides))
        settings |= {f"space.{key}": parameter.values for key, parameter in sweep.space.items() if key in _PATHS}
        path = sweep.base
    else:
        settings = load_unresolved(path, overrides) if config else dict(overrides)
    if config and "storage.path" not in settings:
        yield "storage.path", "storage", " (the default)"
    for name in _PATHS:
        for key in (name, f"space.{name}"):
            values = settings.get(key)
            origin = " (--set)" if name in overrides else f" (in {path.name})" if key == name else " (in the sweep)"
            for value in values if isinstance(values, list | tuple) else [values]:
                if isinstance(value, str) and (name != "model.weights" or _is_file_of_weights(value)):
                    yield key, value, origin
    if stage in ON_RUNS:
        runs = parsed.get("runs") or [parsed["run_or_checkpoint"]]
        yield from (("run", str(run), "") for run in runs)
    for name in ("output", "export"):
        if value := parsed.get(name):
            yield f"--{name}", str(value[1] if name == "export" else value), ""


def _is_file_of_weights(value: str) -> bool:
    """Whether it names a file, not pretrained weights."""
    return "/" in value or value.endswith(_WEIGHTS) or Path(value).is_file()


def only_here(name: str, value: str, working_dir: Path, here: bool) -> list[str]:
    """Why a path means nothing, or something else, in a job; empty where nothing speaks against it.

    Args:
        name: of the setting.
        value: the path, as it is written.
        working_dir: the folder that is uploaded.
        here: whether the cluster may be on this machine, whose folders are then its own.
    """
    if "://" in value:
        return []
    place = "write an absolute path that every node sees"
    if name == "storage.path":
        place = "--set storage.path=/a/folder/that/every/node/sees, or an object store"
    path = Path(value)
    if value.startswith("~"):
        return [f"is the home of whoever runs Ray there: {place}"]
    if not path.is_absolute():
        if name in ("storage.path", "--output", "--export"):
            return [f"is relative, and a job's own folder is deleted when it ends: {place}"]
        return [f"is relative, and a job runs in a copy of the folder, at another path each time: {place}"]
    path = path.resolve()
    temporary = Path(tempfile.gettempdir()).resolve()
    for parent, what in ((working_dir, "the folder that is uploaded"), (temporary, "temporary files of one machine")):
        if path.is_relative_to(parent) and not here and not on_network(path):
            return [f"is in {parent}, {what}: nodes have nothing there; {place}"]
    return []


def on_network(path: Path, mounts: Path = Path("/proc/self/mounts")) -> bool:
    """Whether a path lies on a file system of the network, such as a home that all nodes mount."""
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return False
    holding = [(len(point), kind) for _, point, kind, *_ in lines if path.is_relative_to(point)]
    return bool(holding) and max(holding)[1].startswith(_NETWORK)


def patterns_below(paths: Sequence[Any], working_dir: Path) -> list[str]:
    """Patterns for those of some paths that lie in the folder."""
    inside = [Path(path) for path in paths if Path(path).is_relative_to(working_dir)]
    return [f"/{path.relative_to(working_dir).as_posix()}" for path in inside if path != working_dir]
