"""Describes the environment of a run: versions, hardware, git commit and command line."""

import json
import os
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from waver.tools.git import run_git
from waver.tools.object_store import fetch


def environment() -> dict[str, str | int | list[str] | None]:
    """Describes this process: command line, git commit, versions of Python and packages, and hardware."""
    packages = ("torch", "ray", "open_clip_torch", "decord", "av", "pyarrow", "numpy")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": sys.argv,
        "git_commit": _git_of_waver("rev-parse", "HEAD"),
        "git_changes": _git_of_waver("status", "--porcelain"),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("waver", *packages)},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": gpus,
    }


def read_environment(folder: Path) -> dict[str, Any]:
    """Returns the environment in which a run was started, as `open_run` wrote it; that of this process if it did not."""
    path = fetch(folder / "environment.json")
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else environment()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ModuleNotFoundError:  # on some platforms decord is called decord2
        return None


def _git_of_waver(*arguments: str) -> str | None:
    """Runs git in waver's own checkout; returns None if waver was installed without one.

    A submitted job runs in a copy without git, for which `waver submit` sets WAVER_GIT_COMMIT and WAVER_GIT_CHANGES.
    """
    output = run_git(Path(__file__).parent, *arguments)
    if output is None:
        return os.environ.get({"rev-parse": "WAVER_GIT_COMMIT", "status": "WAVER_GIT_CHANGES"}[arguments[0]])
    return output
