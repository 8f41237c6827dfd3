"""Finds the paths in the arguments and settings of a job, and checks that the job would find them on another machine."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from waver.config import ExperimentConfig, SweepConfig, load_unresolved, split_overrides
from waver.sweeps.space import base_overrides

RUN_STAGES = ("evaluate", "robustness")
"""Stages whose argument is a run, not the YAML file of an experiment or sweep; evaluate takes an experiment, too."""
_PATH_KEYS = (
    "storage.path",
    "data.annotations",
    "data.videos",
    "model.weights",
    "knowledge.released",
    "train.start_from",
)
_WEIGHTS_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
_HUB = "hf-hub:"
"""Prefix of the name of a repository of the hub, as in `waver.model.pretrained.downloads`."""
_NETWORK_FILE_SYSTEMS = (
    *("nfs", "cifs", "smb", "afs", "9p", "virtiofs", "fuse."),
    *("lustre", "gpfs", "beegfs", "ceph", "gluster", "pvfs"),
)
"""Prefixes of the types of file systems that several machines can mount."""


def named_paths(
    stage: str,
    parsed: Mapping[str, Any],
    config: ExperimentConfig | None,
    sweep: SweepConfig | None,
    path: Path,
    overrides: Mapping[str, Any],
) -> Iterator[tuple[str, str, str]]:
    """Yields the paths that a stage reads or writes outside the uploaded folder.

    Args:
        stage: name of the stage.
        parsed: parameters of the command: name -> value.
        config: experiment, or base experiment of the sweep; None for a stage that is given a run.
        sweep: sweep; None for other stages.
        path: YAML file of the experiment; ignored for a sweep, whose base is read.
        overrides: dotted key -> value, from --set and --workers.

    Yields:
        (name of the setting or option, value as written, where it is written, for an error message).
    """
    if sweep:
        settings = load_unresolved(sweep.base, base_overrides(sweep, split_overrides(overrides)[1]))
        settings |= {f"space.{key}": parameter.values for key, parameter in sweep.space.items() if key in _PATH_KEYS}
        path = sweep.base
    else:
        settings = load_unresolved(path, overrides) if config else dict(overrides)
    if config and "storage.path" not in settings:
        yield "storage.path", "storage", " (the default)"
    for name in _PATH_KEYS:
        for key in (name, f"space.{name}"):
            values = settings.get(key)
            origin = " (--set)" if name in overrides else f" (in {path.name})" if key == name else " (in the sweep)"
            for value in values if isinstance(values, list | tuple) else [values]:
                if isinstance(value, str) and (name != "model.weights" or _is_weights_file(value)):
                    yield key, value, origin
    if stage in RUN_STAGES and config is None:
        runs = parsed.get("runs") or [parsed["run_or_config"]]
        yield from (("run", str(run), "") for run in runs)
    for name in ("output", "export"):
        if value := parsed.get(name):
            yield f"--{name}", str(value[1] if name == "export" else value), ""


def _is_weights_file(value: str) -> bool:
    """Returns whether model.weights names a file or folder, and not a pretrained tag or a repository of the hub."""
    if value.startswith(_HUB):
        return False
    return "/" in value or value.endswith(_WEIGHTS_SUFFIXES) or Path(value).is_file()


def path_problem(name: str, value: str, working_dir: Path, *, local: bool) -> str | None:
    """Returns why a job would not find a path, and what to write instead; None if nothing speaks against the path.

    Args:
        name: name of the setting or option.
        value: the path as written.
        working_dir: folder that is uploaded.
        local: whether the cluster may be on this machine, and so have its folders.
    """
    if "://" in value:
        return None
    remedy = "write an absolute path that every node sees"
    if name == "storage.path":
        remedy = "--set storage.path=/a/folder/that/every/node/sees, or an object store"
    path = Path(value)
    if value.startswith("~"):
        return f"is the home of the user who runs Ray on the cluster: {remedy}"
    if not path.is_absolute():
        if name in ("storage.path", "--output", "--export"):
            return f"is relative, and the folder in which a job runs is deleted when it ends: {remedy}"
        return f"is relative, and a job runs in a copy of the folder, at another path each time: {remedy}"
    path = path.resolve()
    temporary = Path(tempfile.gettempdir()).resolve()
    for parent, what in ((working_dir, "the uploaded folder"), (temporary, "a temporary folder of this machine")):
        if path.is_relative_to(parent) and not local and not on_network(path):
            return f"is in {parent}, {what}, which the nodes do not have: {remedy}"
    return None


def on_network(path: Path, mounts: Path = Path("/proc/self/mounts")) -> bool:
    """Returns whether a path is on a network file system, such as a home folder that all nodes mount.

    Args:
        path: absolute path.
        mounts: table of mounted file systems.
    """
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return False
    holding = [(len(point), kind) for _, point, kind, *_ in lines if path.is_relative_to(point)]
    return bool(holding) and max(holding)[1].startswith(_NETWORK_FILE_SYSTEMS)


def exclude_patterns(paths: Sequence[Any], working_dir: Path) -> list[str]:
    """Returns anchored .gitignore patterns for those of the paths that are inside the folder."""
    inside = [Path(path) for path in paths if Path(path).is_relative_to(working_dir)]
    return [f"/{path.relative_to(working_dir).as_posix()}" for path in inside if path != working_dir]
