"""Measures ways to do the same work in turns, so that other work of the machine affects all of them."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass
class Timing:
    """What one way takes, a value for each turn."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    """Processor time of all threads of this process."""


def take_turns(ways: Mapping[str, Callable[[], object]], repeats: int, *, warm_up: bool = True) -> dict[str, Timing]:
    """Runs each way once per turn.

    Args:
        ways: name -> work.
        repeats: number of turns.
        warm_up: whether to run a turn that is not measured before.
    """
    if warm_up:
        for work in ways.values():
            work()
    found = {name: Timing() for name in ways}
    for _ in range(repeats):
        for name, work in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            work()
            found[name].wall_s.append(time.perf_counter() - wall)
            found[name].cpu_s.append(time.process_time() - cpu)
    return found


def ratios(slower: Timing, faster: Timing) -> tuple[float, ...]:
    """Returns how many times as long one way took as the other, in each turn."""
    return tuple(a / b for a, b in zip(slower.wall_s, faster.wall_s, strict=True))


def format_spread(values: tuple[float, ...]) -> str:
    """Formats a median and, of several values, their range: `1.23 (1.10 to 1.62)`."""
    median = statistics.median(values)
    if len(values) == 1:
        return format_number(median)
    return f"{format_number(median)} ({format_number(min(values))} to {format_number(max(values))})"


def format_number(value: float) -> str:
    """Formats a number with three digits, large ones with a comma for thousands."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
