"""The command line: one file for each group of commands, which register themselves with `app`."""

from waver.cli import cluster, results, stages  # noqa: F401  they register their commands
from waver.cli.options import app

__all__ = ["app"]
