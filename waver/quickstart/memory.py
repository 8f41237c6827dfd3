"""Peak memory of this process and all it starts; what they share through Ray's object store is counted once."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_EVERY_S = 1.0


@dataclass
class Peak:
    """Bytes; None where the system does not tell (it takes Linux's /proc)."""

    peak: int | None = None


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Samples once a second while the body runs."""
    memory, stop = Peak(), threading.Event()

    def sample() -> None:
        while not stop.wait(_EVERY_S):
            memory.peak = max(memory.peak or 0, _size(_family()))

    sampler = threading.Thread(target=sample, name="waver-memory", daemon=True)
    if (_PROC / "self" / "status").exists():
        sampler.start()
    try:
        yield memory
    finally:
        stop.set()
        if sampler.is_alive():
            sampler.join()


def _family() -> list[Path]:
    """This process and its descendants."""
    children: dict[str, list[str]] = {}
    for stat in _PROC.glob("[0-9]*/stat"):
        try:
            # The name of a program stands in brackets and may hold spaces; the parent is the second field after it.
            parent = stat.read_text().rpartition(")")[2].split()[1]
        except OSError:  # it has ended in the meantime
            continue
        children.setdefault(parent, []).append(stat.parent.name)
    family = [(_PROC / "self").resolve().name]
    for process in family:
        family += children.get(process, [])
    return [_PROC / process for process in family]


def _size(processes: list[Path]) -> int:
    """Memory of their own, and the largest part of the shared memory that one of them has touched."""
    own = shared = 0
    for process in processes:
        try:
            lines = (process / "status").read_text().splitlines()
        except OSError:
            continue
        fields = {name: value for name, _, value in (line.partition(":") for line in lines)}
        own += _bytes(fields.get("RssAnon", "0 kB"))
        shared = max(shared, _bytes(fields.get("RssShmem", "0 kB")))
    return own + shared


def _bytes(text: str) -> int:
    return int(text.split()[0]) * 1024
