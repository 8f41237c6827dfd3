"""What tests on Ray share: its settings, and the processes that it starts."""

import contextlib
import os
import signal
from pathlib import Path

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
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found = [pid]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found[::-1]


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
