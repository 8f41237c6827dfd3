"""What tests on Ray share: its settings, and the processes that it starts."""

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
"""Ray reads them while it is imported, here and in its processes; what waver.on_ray would choose for users is overruled."""


def family(pid: int) -> list[int]:
    """A process and its descendants, the oldest last, so that nobody is adopted before it is found."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return [*(child.pid for child in reversed(psutil.Process(pid).children(recursive=True))), pid]
    return [pid]


def kill(processes: list[int]) -> None:
    """Ends processes at once; those that have ended already are no error."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def titled(processes: list[int], words: str) -> list[int]:
    """Those of some processes that have these words in their title."""
    found = []
    for process in processes:
        with contextlib.suppress(OSError):
            if words in Path(f"/proc/{process}/cmdline").read_text():
                found.append(process)
    return found
