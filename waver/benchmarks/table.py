"""The table of `waver bench`: its rows, as Markdown and as JSON."""

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from waver.benchmarks.timing import Timing, format_spread, ratios


@dataclass(frozen=True)
class Row:
    """What one way to do a work takes."""

    work: str
    way: str
    unit: str = ""
    values: tuple[float, ...] = ()
    """A value for each turn; empty if the way was not measured."""
    cpu_s: tuple[float, ...] = ()
    """Processor time of this process in each turn; empty if the work is done by other processes."""
    ratios: tuple[float, ...] = ()
    """How many times as fast as `reference`, in each turn."""
    reference: str = ""
    """The way that it is compared with."""
    target: str = ""
    note: str = ""


def not_measured(work: str, way: str, reason: str) -> Row:
    """Returns the row of a way that was not measured."""
    return Row(work, way, note=f"not run: {reason}")


def rows_of(
    work: str,
    found: dict[str, Timing],
    *,
    reference: str,
    num_items: int = 0,
    unit: str = "s",
    targets: dict[str, str] | None = None,
    notes: dict[str, str] | None = None,
) -> list[Row]:
    """Returns a row for each way of a work.

    Args:
        work: name of the work.
        found: what each way takes.
        reference: the way that the others are compared with.
        num_items: number of items in the work, to state items per second; 0 to state seconds.
        unit: of the values, such as "s" or "clips/s".
        targets: way -> what it should reach.
        notes: way -> remark.
    """
    rows = []
    for way, timing in found.items():
        values = tuple(num_items / seconds if num_items else seconds for seconds in timing.wall_s)
        compared = () if way == reference else ratios(found[reference], timing)
        texts = ((targets or {}).get(way, ""), (notes or {}).get(way, ""))
        rows.append(Row(work, way, unit, values, tuple(timing.cpu_s), compared, reference if compared else "", *texts))
    return rows


_HEAD = ("work", "way", "median (range)", "CPU, s", "times as fast", "target", "remark")


def to_markdown(rows: Iterable[Row]) -> str:
    """Returns the rows as a table in Markdown."""
    lines = [f"| {' | '.join(_HEAD)} |", f"|{'---|' * len(_HEAD)}"]
    last = ""
    for row in rows:
        value = f"{format_spread(row.values)} {row.unit}".strip() if row.values else "-"
        cpu = format_spread((statistics.median(row.cpu_s),)) if row.cpu_s else "-"
        ratio = f"{format_spread(row.ratios)} of {row.reference}" if row.ratios else "-"
        cells = ("" if row.work == last else row.work, row.way, value, cpu, ratio, row.target or "-", row.note)
        lines.append(f"| {' | '.join(cells)} |")
        last = row.work
    return "\n".join(lines)


def to_json(machine: dict[str, Any], rows: Iterable[Row]) -> dict[str, Any]:
    """Returns machine and rows for a JSON file; every turn is kept."""
    return {"machine": machine, "rows": [asdict(row) for row in rows]}
