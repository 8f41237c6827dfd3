"""Finds the conventional baseline: a file beside the experiments, which is no part of the package."""

import importlib
import sys
from pathlib import Path
from typing import Any

from waver.tools.errors import WaverError

DEFAULT = Path("experiments") / "benchmarks" / "conventional.py"
"""Where a checkout of waver has it."""


class BaselineError(WaverError):
    """The file of the conventional baseline is missing or is something else."""


def load_conventional(path: Path | None) -> tuple[Any, str]:
    """Imports the baseline.

    Its folder is put on `sys.path`, so that worker processes of its data loader can import it too.

    Args:
        path: its file; None for `DEFAULT`, if that exists.

    Returns:
        The module, or None; the reason if there is none.

    Raises:
        BaselineError: if `path` is given and cannot be imported.
    """
    place = (path or DEFAULT).absolute()
    if not place.is_file():
        if path is None:
            return None, f"there is no {DEFAULT} here: run it in a clone of waver, or name the file with --against"
        raise BaselineError(f"--against {path}: no such file")
    if str(place.parent) not in sys.path:
        sys.path.insert(0, str(place.parent))
    try:
        module = importlib.import_module(place.stem)
    except Exception as error:  # a file may contain anything
        raise BaselineError(f"--against {path or DEFAULT}: it cannot be imported ({error})") from error
    if not hasattr(module, "compare_in_blocks"):
        raise BaselineError(
            f"--against {path or DEFAULT}: it is not the baseline, experiments/benchmarks/conventional.py"
        )
    return module, ""
