"""Plans a job: its command line, the folder that is uploaded, its environment and its metadata."""

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from waver.config import ExperimentConfig, SweepConfig, load_config
from waver.on_ray.jobs.address import is_loopback
from waver.on_ray.jobs.paths import RUN_STAGES, exclude_patterns, named_paths, path_problem
from waver.runs.places import names_experiment
from waver.sweeps.folder import sweep_folder
from waver.sweeps.space import corner_points, list_points, point_configs, read_sweep
from waver.tools.errors import WaverError
from waver.tools.git import run_git
from waver.tools.hub import HubError
from waver.tools.object_store import display_path

STOP_WAIT_S = 60
"""Seconds between SIGTERM and SIGKILL when a job is stopped, to write a checkpoint. Ray's default is 3."""
EXCLUDES = (
    *(".git", ".hg", ".venv", "venv", "node_modules", "__pycache__", "*.pyc", "*.egg-info", ".env", ".aws", ".ssh"),
    *(".pytest_cache", ".ruff_cache", ".mypy_cache", ".import_linter_cache", ".hypothesis"),
    *("/storage", "/quickstart", "/style_world"),  # default output folders of waver
)
"""Patterns of files that are never uploaded, as in .gitignore."""
_WRITTEN_FOLDERS = {
    "ingest": "clip_store",
    "embed": "frame_embeddings",
    "vocabulary": "dictionary",
    "match": "knowledge_store",
    "train": "run_folder",
}
"""Stage -> property of the experiment with the folder that the stage writes to."""
_FORWARDED = ("OMP_NUM_THREADS", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
"""Variables that a job inherits if they are set: number of threads, address of an object store; no credentials."""
_SECRET_WORDS = ("KEY", "SECRET", "TOKEN", "PASSWORD", "PASSWD", "CREDENTIAL")


class SubmissionError(WaverError):
    """The job would not work on the cluster; the message lists every reason."""


@dataclass(frozen=True)
class Submission:
    """A job that passed all checks and can be sent."""

    entrypoint: str
    """Command line that a shell runs in the copy of `working_dir`."""
    working_dir: Path
    """Folder that is uploaded."""
    needs: tuple[str, ...]
    """Files that the job reads, relative to `working_dir`."""
    excludes: tuple[str, ...]
    """Patterns of files that are not uploaded, as in .gitignore."""
    environment: dict[str, str]
    """Environment variables of the job."""
    metadata: dict[str, str]
    """Stage, experiment, digest of its configuration, git commit, and the folder that the job writes, if known."""
    runs: str | None
    """Folder for `waver board`; None if the job logs no metrics."""


def default_working_dir(folder: Path) -> Path:
    """Returns the root of the git clone that contains a folder, or the folder itself."""
    top = run_git(folder, "rev-parse", "--show-toplevel")
    return Path(top) if top else folder.absolute()


@dataclass(frozen=True)
class StageCommand:
    """A command line of waver, as typed."""

    stage: str
    """train, tune, ingest, embed, vocabulary, match, evaluate, robustness or doctor."""
    arguments: Sequence[str]
    """Arguments of `waver STAGE`; the first is the experiment, sweep or run."""
    parsed: Mapping[str, Any]
    """The arguments as parsed by the command: parameter name -> value."""
    overrides: Mapping[str, Any]
    """Dotted key -> value, from `--set` and `--workers` among the arguments."""
    folder: Path
    """Current folder: relative paths in the arguments are relative to it, on this machine and in the job."""

    @property
    def reads_run(self) -> bool:
        """Whether its first argument is a run, not the YAML file of an experiment or sweep."""
        zero_shot = self.stage == "evaluate" and names_experiment(self.arguments[0], self.folder)
        return self.stage in RUN_STAGES and not zero_shot


@dataclass(frozen=True)
class _Inputs:
    """Configuration that the command of a stage reads, and its YAML files."""

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
    """Plans the job that runs a command, and checks its configuration, paths and environment. Sends nothing.

    Args:
        command: command that the job runs.
        working_dir: folder that is uploaded.
        address: address of the dashboard.
        excludes: patterns of other files that are not uploaded, as in .gitignore.
        variables: NAME=VALUE for the environment of the job.
        environ: environment variables of this process.

    Raises:
        ConfigError: with every mistake in the configuration.
        SubmissionError: with every other reason why the job would not work on the cluster.
    """
    working_dir, folder = working_dir.resolve(), command.folder.resolve()
    start = folder if folder.is_relative_to(working_dir) else working_dir
    inputs = _read_inputs(command, folder, start)
    environment, problems = _environment(variables, environ)
    problems = _path_problems(command, inputs, folder, working_dir, local=is_loopback(address)) + problems
    problems += [
        f"--set {key}: {problem}" for key, value in command.overrides.items() if (problem := _password_problem(value))
    ]
    if problems:
        raise SubmissionError(
            "\n".join(["the job would not work on the cluster:", *(f"  {problem}" for problem in problems)])
        )

    commit, changes = run_git(working_dir, "rev-parse", "HEAD"), run_git(working_dir, "status", "--porcelain")
    if commit and (working_dir / "waver" / "__main__.py").is_file():  # the job runs this code, and has no .git
        environment |= {"WAVER_GIT_COMMIT": commit, "WAVER_GIT_CHANGES": changes or ""}
    config, sweep = inputs.config, inputs.sweep
    written = _if_known(lambda: _written_folder(command.stage, config, sweep))
    metadata = {
        "waver.stage": command.stage,
        "waver.experiment": sweep.name if sweep else config.name if config else None,
        "waver.config": config.digest() if config else None,
        "waver.git_commit": f"{commit}, with changes" if commit and changes else commit,
        "waver.folder": written,
    }
    local_data = (config.storage.folder, config.data.videos) if config else ()
    return Submission(
        entrypoint=_entrypoint(command, folder, start, working_dir),
        working_dir=working_dir,
        needs=tuple(_resolve_parent(path).relative_to(working_dir).as_posix() for path in inputs.files),
        excludes=(*EXCLUDES, *exclude_patterns(local_data, working_dir), *excludes),
        environment=environment,
        metadata={key: value for key, value in metadata.items() if value},
        runs={"train": written and written.rpartition("/")[0], "tune": written}.get(command.stage),
    )


def _read_inputs(command: StageCommand, folder: Path, start: Path) -> _Inputs:
    """Reads the configuration of a stage.

    Args:
        command: command of the job.
        folder: current folder on this machine.
        start: folder on this machine whose copy is the current folder of the job.
    """
    config, sweep, files = None, None, []
    if not command.reads_run:
        path = folder / command.arguments[0]
        config, sweep = _load(command.stage, path, command.overrides)
        files += [path] + ([sweep.base] if sweep else [])
    if command.stage == "robustness" and command.parsed.get("config"):
        files.append(start / command.parsed["config"])
    return _Inputs(config, sweep, tuple(files))


def _path_problems(
    command: StageCommand, inputs: _Inputs, folder: Path, working_dir: Path, *, local: bool
) -> list[str]:
    """Returns what is wrong with each path that is not uploaded or exists only on this machine."""
    problems = [
        f"{path} is not in {working_dir}, the uploaded folder: move it there, or give another --working-dir"
        for path in inputs.files
        if not _resolve_parent(path).is_relative_to(working_dir)
    ]
    first = folder / command.arguments[0]
    named = named_paths(command.stage, command.parsed, inputs.config, inputs.sweep, first, command.overrides)
    for name, value, origin in named:
        if problem := path_problem(name, value, working_dir, local=local):
            problems.append(f"{name}: {value}{origin} {problem}")
    return problems


def _entrypoint(command: StageCommand, folder: Path, start: Path, working_dir: Path) -> str:
    """Returns the command line of the job, which starts in its copy of `working_dir`."""
    first, *others = command.arguments
    if not command.reads_run:
        first = os.path.relpath(folder / first, start)
    line = shlex.join(["python", "-m", "waver", command.stage, first, *others])
    if start == working_dir:
        return line
    return f"cd {shlex.quote(str(start.relative_to(working_dir)))} && {line}"


def _load(stage: str, path: Path, overrides: Mapping[str, Any]) -> tuple[ExperimentConfig, SweepConfig | None]:
    """Loads the experiment of a stage; for tune the sweep, after validating its points, and its base experiment."""
    if stage != "tune":
        return load_config(path, overrides), None
    sweep, for_all = read_sweep(path, overrides)
    base = load_config(sweep.base, for_all)
    point_configs(sweep, base, for_all, list((corner_points if sweep.search == "optuna" else list_points)(sweep, base)))
    return base, sweep


def _if_known(find: Callable[[], str | None]) -> str | None:
    """Returns the result of a function; None if it needs a file of the hub, which this machine cannot reach."""
    try:
        return find()
    except HubError:
        return None


def _written_folder(stage: str, config: ExperimentConfig | None, sweep: SweepConfig | None) -> str | None:
    if sweep:
        assert config is not None, "a sweep has a base experiment"
        return display_path(sweep_folder(config.storage.folder, sweep.name))
    if stage == "evaluate" and config:
        from waver.runs.untrained import zero_shot_experiment  # it imports torch, which takes seconds

        return display_path(zero_shot_experiment(config).run_folder)
    return display_path(getattr(config, _WRITTEN_FOLDERS[stage])) if stage in _WRITTEN_FOLDERS else None


def _environment(variables: Sequence[str], environ: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Returns the environment variables of the job, and what is wrong with them."""
    environment, problems = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}, []
    environment |= {name: environ[name] for name in _FORWARDED if environ.get(name)}
    for variable in variables:
        name, equals, value = variable.partition("=")
        if any(part in name.upper() for part in _SECRET_WORDS):
            problems.append(
                f"--env {name}: looks like a credential and is not sent, because everyone who can see the job can read its "
                "environment. Give it to the nodes instead: by a role of the machine, in the environment of `ray start`, or "
                "in files such as ~/.aws/credentials"
            )
        elif not equals or not name.isidentifier():
            problems.append(f"--env {variable}: write it as NAME=VALUE")
        else:
            environment[name] = value
    return environment, problems + [
        f"{name}: {problem}" for name, value in environment.items() if (problem := _password_problem(value))
    ]


def _password_problem(value: Any) -> str:
    """Returns a message, without the value, if a value is a URL with a password; else an empty string."""
    try:
        password = isinstance(value, str) and "://" in value and urlsplit(value).password
    except ValueError:
        return ""
    return "contains a password in its URL, which everyone who can see the job can read" if password else ""


def _resolve_parent(path: Path) -> Path:
    """Resolves links in the folder of a path, but not the file itself: Ray uploads the target under the link's name."""
    return path.parent.resolve() / path.name
