"""Runs git."""

import subprocess
from pathlib import Path


def run_git(folder: Path, *arguments: str) -> str | None:
    """Returns the output of a git command in a folder, or None if git is missing or the folder is not in a repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
