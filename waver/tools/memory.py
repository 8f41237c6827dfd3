"""Measures the memory of this machine and of processes, in bytes."""

import resource
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

_SAMPLE_EVERY_S = 1.0
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


@dataclass
class PeakMemory:
    """The largest sample of memory so far, bytes."""

    peak: int = 0


@contextmanager
def sample_peak_memory() -> Iterator[PeakMemory]:
    """Samples the memory of this process and its descendants once a second, while the body runs."""
    memory, stop = PeakMemory(), threading.Event()

    def sample() -> None:
        while not stop.wait(_SAMPLE_EVERY_S):
            memory.peak = max(memory.peak, memory_of_tree())

    sampler = threading.Thread(target=sample, name="waver-memory", daemon=True)
    sampler.start()
    try:
        yield memory
    finally:
        stop.set()
        sampler.join()


def memory_of_tree() -> int:
    """Returns the resident memory of this process and its descendants; shared memory (Ray's object store) counts once."""
    this = psutil.Process()
    own = shared = 0
    for process in [this, *this.children(recursive=True)]:
        try:
            info = process.memory_info()
        except psutil.Error:  # the process has ended
            continue
        common = getattr(info, "shared", 0)  # reported on Linux only
        own += info.rss - common
        shared = max(shared, common)
    return own + shared


def peak_rss() -> int:
    """Returns the peak resident memory of this process so far."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def available_memory() -> int:
    """Returns the memory that new processes can use without swapping, at most the limit of the container."""
    available = psutil.virtual_memory().available
    if _CGROUP_LIMIT.exists() and (limit := _CGROUP_LIMIT.read_text().strip()).isdigit():
        return min(available, int(limit))
    return available
