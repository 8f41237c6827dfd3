"""Helpers for tests on Ray: its settings, and functions for its processes."""

import contextlib
import os
import signal
from pathlib import Path

import psutil

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_DATA_USE_DATASOURCE_V2": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}
"""Variables that Ray reads while it is imported, here and in its processes; they replace the defaults of waver.on_ray."""


def family(pid: int) -> list[int]:
    """Returns a process and its descendants; children come first, so that each still has its parent when it is killed."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [*(child.pid for child in reversed(psutil.Process(pid).children(recursive=True))), pid]
    return [pid]


def kill(processes: list[int]) -> None:
    """Kills processes; one that has ended already is no error."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def titled(processes: list[int], words: str) -> list[int]:
    """Returns the processes whose title contains `words`."""
    found = []
    for process in processes:
        with contextlib.suppress(OSError):
            if words in Path(f"/proc/{process}/cmdline").read_text():
                found.append(process)
    return found
