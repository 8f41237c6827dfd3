"""Versions, machine and checkout with which a run was started."""

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
    """Where a run ran: enough to see why two runs differ."""
    packages = ("torch", "ray", "open_clip_torch", "decord", "av", "pyarrow", "numpy")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": sys.argv,
        "git_commit": _of_checkout("rev-parse", "HEAD"),
        "git_changes": _of_checkout("status", "--porcelain"),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("waver", *packages)},
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": gpus,
    }


def read_environment(folder: Path) -> dict[str, Any]:
    """Where the run of a folder was started, as `open_run` wrote it down; where it is not written, here."""
    path = fetch(folder / "environment.json")
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else environment()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except ModuleNotFoundError:  # decord is decord2 on some machines
        return None


def _of_checkout(*arguments: str) -> str | None:
    """What git says of waver's own checkout; None where it was installed without one.

    A job computes with a copy of the checkout, without git; `waver submit` says in its environment what it is a copy of.
    """
    told = run_git(Path(__file__).parent, *arguments)
    if told is None:
        return os.environ.get({"rev-parse": "WAVER_GIT_COMMIT", "status": "WAVER_GIT_CHANGES"}[arguments[0]])
    return told
