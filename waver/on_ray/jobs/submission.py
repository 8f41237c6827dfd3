"""What is sent to a cluster as a job: a command, the folder that it runs in, its environment, and what is known of it."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from waver.config import ExperimentConfig, SweepConfig, load_config, load_sweep
from waver.on_ray.jobs.address import is_loopback
from waver.on_ray.jobs.paths import ON_RUNS, named_paths, only_here, patterns_below
from waver.sweeps.folder import sweep_folder
from waver.sweeps.space import base_overrides, corner_points, list_points, point_configs
from waver.tools.errors import WaverError
from waver.tools.git import run_git
from waver.tools.object_store import display_path

STOP_WAIT_S = 60
"""Seconds between SIGTERM and SIGKILL for a job that is stopped: it writes a checkpoint in them. Ray's own are 3."""
EXCLUDES = (
    *(".git", ".hg", ".venv", "venv", "node_modules", "__pycache__", "*.pyc", "*.egg-info", ".env", ".aws", ".ssh"),
    *(".pytest_cache", ".ruff_cache", ".mypy_cache", ".import_linter_cache", ".hypothesis"),
    *("/storage", "/quickstart", "/style_world"),  # what waver writes by default
)
"""Never uploaded, written as in .gitignore."""
_FOLDERS = {"ingest": "clip_store", "vocabulary": "dictionary", "match": "knowledge_store", "train": "run_folder"}
"""Stage -> property of the experiment that is the folder it writes."""
_FORWARDED = ("OMP_NUM_THREADS", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
"""Goes along where it is set: how many threads, and where an object store is; never who may read it."""
_SECRET = ("KEY", "SECRET", "TOKEN", "PASSWORD", "PASSWD", "CREDENTIAL")


class SubmissionError(WaverError):
    """The job cannot be sent as asked; the message lists every reason."""


@dataclass(frozen=True)
class Submission:
    """A job that can be sent."""

    entrypoint: str
    """What a shell runs in the copy of `working_dir`."""
    working_dir: Path
    needs: tuple[str, ...]
    """Files within `working_dir` without which the job cannot start."""
    excludes: tuple[str, ...]
    environment: dict[str, str]
    metadata: dict[str, str]
    """Stage, experiment, digest of its configuration, git commit, and the folder that the job writes, if known."""
    runs: str | None
    """Folder for `waver board`; None where the job draws no curves."""


def default_working_dir(folder: Path) -> Path:
    """The git clone that a folder is in, else the folder."""
    top = run_git(folder, "rev-parse", "--show-toplevel")
    return Path(top) if top else folder.absolute()


@dataclass(frozen=True)
class StageCommand:
    """A command line of waver, as it was typed."""

    stage: str
    """train, tune, ingest, vocabulary, match, evaluate, robustness or doctor."""
    arguments: Sequence[str]
    """Of `waver STAGE`; the first of them is the experiment, sweep or run."""
    parsed: Mapping[str, Any]
    """The same, parsed by the command: name of the parameter -> value."""
    overrides: Mapping[str, Any]
    """From `--set` and `--workers` among the arguments."""
    folder: Path
    """The working directory: relative paths name files in it, on this machine and in the job."""


@dataclass(frozen=True)
class _Inputs:
    """What the command of a stage reads before it starts."""

    config: ExperimentConfig | None = None
    sweep: SweepConfig | None = None
    files: tuple[Path, ...] = ()


def plan_submission(
    command: StageCommand,
    *,
    working_dir: Path,
    address: str,
    excludes: Sequence[str] = (),
    variables: Sequence[str] = (),
    environ: Mapping[str, str],
) -> Submission:
    """Turns the command of a stage into a job; reads its configuration, sends nothing.

    Args:
        command: what the job runs.
        working_dir: the folder that is uploaded.
        address: of the dashboard.
        excludes: patterns of further files that are not uploaded, written as in .gitignore.
        variables: NAME=VALUE for the environment of the job.
        environ: the environment of this process.

    Raises:
        ConfigError: with every mistake in the configuration.
        SubmissionError: with everything else that is wrong.
    """
    working_dir, folder = working_dir.resolve(), command.folder.resolve()
    start = folder if folder.is_relative_to(working_dir) else working_dir
    inputs = _read_inputs(command, folder, start)
    environment, problems = _environment(variables, environ)
    problems = _path_problems(command, inputs, folder, working_dir, local=is_loopback(address)) + problems
    problems += [f"--set {key}: {wrong}" for key, value in command.overrides.items() if (wrong := _secret_in(value))]
    if problems:
        raise SubmissionError("\n".join(["the job would not find its way:", *(f"  {problem}" for problem in problems)]))

    commit, changes = run_git(working_dir, "rev-parse", "HEAD"), run_git(working_dir, "status", "--porcelain")
    if commit and (working_dir / "waver" / "__main__.py").is_file():  # the job computes with this code, without .git
        environment |= {"WAVER_GIT_COMMIT": commit, "WAVER_GIT_CHANGES": changes or ""}
    config, sweep = inputs.config, inputs.sweep
    written = _written_folder(command.stage, config, sweep)
    metadata = {
        "waver.stage": command.stage,
        "waver.experiment": sweep.name if sweep else config.name if config else None,
        "waver.config": config.digest() if config else None,
        "waver.git_commit": f"{commit}, with changes" if commit and changes else commit,
        "waver.folder": written,
    }
    kept = (config.storage.folder, config.data.videos) if config else ()
    return Submission(
        entrypoint=_entrypoint(command, folder, start, working_dir),
        working_dir=working_dir,
        needs=tuple(_unlinked(path).relative_to(working_dir).as_posix() for path in inputs.files),
        excludes=(*EXCLUDES, *patterns_below(kept, working_dir), *excludes),
        environment=environment,
        metadata={key: value for key, value in metadata.items() if value},
        runs={"train": written and written.rpartition("/")[0], "tune": written}.get(command.stage),
    )


def _read_inputs(command: StageCommand, folder: Path, start: Path) -> _Inputs:
    """Reads the configuration of a stage, and lists the files that it needs."""
    config, sweep, files = None, None, []
    if command.stage not in ON_RUNS:
        path = folder / command.arguments[0]
        config, sweep = _load(command.stage, path, command.overrides)
        files += [path] + ([sweep.base] if sweep else [])
    if command.stage == "robustness" and command.parsed.get("config"):
        files.append(start / command.parsed["config"])
    return _Inputs(config, sweep, tuple(files))


def _path_problems(
    command: StageCommand, inputs: _Inputs, folder: Path, working_dir: Path, *, local: bool
) -> list[str]:
    """Paths that the job would not find: not uploaded, or only on this machine."""
    problems = [
        f"{path} is not below {working_dir}, which is all that is uploaded: move it, or name another --working-dir"
        for path in inputs.files
        if not _unlinked(path).is_relative_to(working_dir)
    ]
    first = folder / command.arguments[0]
    named = named_paths(command.stage, command.parsed, inputs.config, inputs.sweep, first, command.overrides)
    for name, value, origin in named:
        problems += [f"{name}: {value}{origin} {what}" for what in only_here(name, value, working_dir, local)]
    return problems


def _entrypoint(command: StageCommand, folder: Path, start: Path, working_dir: Path) -> str:
    """The command line of the job, in its copy of `working_dir`."""
    first, *others = command.arguments
    if command.stage not in ON_RUNS:
        first = os.path.relpath(folder / first, start)
    line = shlex.join(["python", "-m", "waver", command.stage, first, *others])
    if start == working_dir:
        return line
    return f"cd {shlex.quote(str(start.relative_to(working_dir)))} && {line}"


def _load(stage: str, path: Path, overrides: Mapping[str, Any]) -> tuple[ExperimentConfig, SweepConfig | None]:
    if stage != "tune":
        return load_config(path, overrides), None
    sweep = load_sweep(path)
    for_all = base_overrides(sweep, overrides)
    base = load_config(sweep.base, for_all)
    point_configs(sweep, base, for_all, list((corner_points if sweep.search == "optuna" else list_points)(sweep, base)))
    return base, sweep


def _written_folder(stage: str, config: ExperimentConfig | None, sweep: SweepConfig | None) -> str | None:
    if sweep:
        assert config is not None, "a sweep has a base experiment"
        return display_path(sweep_folder(config.storage.folder, sweep.name))
    return display_path(getattr(config, _FOLDERS[stage])) if stage in _FOLDERS else None


def _environment(variables: Sequence[str], environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """The environment of the job, and what is wrong with it."""
    chosen, problems = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}, []
    chosen |= {name: environ[name] for name in _FORWARDED if environ.get(name)}
    for variable in variables:
        name, equals, value = variable.partition("=")
        if any(part in name.upper() for part in _SECRET):
            problems.append(
                f"--env {name}: what looks like a credential is not sent, because everybody who sees the job sees its "
                "environment: nodes get it from a role of the machine, from the environment of `ray start`, or from their "
                "own files, such as ~/.aws/credentials"
            )
        elif not equals or not name.isidentifier():
            problems.append(f"--env {variable}: write it as NAME=VALUE")
        else:
            chosen[name] = value
    return chosen, problems + [f"{name}: {wrong}" for name, value in chosen.items() if (wrong := _secret_in(value))]


def _secret_in(value: Any) -> str:
    """What is wrong with a value that has a password in it; does not repeat it."""
    try:
        password = isinstance(value, str) and "://" in value and urlsplit(value).password
    except ValueError:
        return ""
    return "has a password in its address, which everybody who sees the job would see" if password else ""


def _unlinked(path: Path) -> Path:
    """Where a file is named, without links on the way; one that is a link itself is uploaded as what it leads to."""
    return path.parent.resolve() / path.name
