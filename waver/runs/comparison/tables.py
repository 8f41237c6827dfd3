"""Formats a comparison of two runs as terminal tables."""

import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from waver.runs.comparison.compare import Comparison, ComparisonRow, MetricComparison

_ABSENT = "-"
_LONGEST = 160
"""Characters of a value that are shown."""


def comparison_tables(comparison: Comparison, *, all_rows: bool = False) -> Iterator[Table | Text]:
    """Yields tables, and the sentences between them, in the order in which to print them.

    Args:
        comparison: comparison of two runs.
        all_rows: whether to show rows whose values are equal, too.
    """
    for note in comparison.notes:
        yield Text(note, "yellow")
    sections = {
        "configuration": comparison.config,
        "data": comparison.data,
        "environment": comparison.environment,
        "training": comparison.training,
    }
    for name, rows in sections.items():
        shown = [row for row in rows if all_rows or row.differs or name == "training"]
        if shown:
            yield _table(name, comparison, shown)
        elif rows:
            yield Text(f"{name}: equal in all {len(rows)}", "dim")
    for metrics in comparison.metrics:
        yield _metrics_table(metrics, comparison)
        yield from (Text(f"  not comparable: {reason}", "bold red") for reason in metrics.not_comparable)
        yield from (Text(f"  {caution}", "dim") for caution in metrics.cautions)


def lower_is_better(metric: str) -> bool:
    """Returns whether lower values of a metric are better, which holds for median and mean rank only."""
    return metric.rpartition("/")[2] in ("MdR", "MnR")


def _table(title: str, comparison: Comparison, rows: Iterable[ComparisonRow]) -> Table:
    table = _empty(title, comparison, justify="left")
    for row in rows:
        # Values that cannot affect metrics are dim.
        table.add_row(*map(Text, (row.key, _text(row.a), _text(row.b))), style=None if row.counts else "dim")
    return table


def _metrics_table(metrics: MetricComparison, comparison: Comparison) -> Table:
    table = _empty(metrics.title, comparison, justify="right")
    table.add_column("difference", justify="right")
    for row in metrics.rows:
        difference = Text(_ABSENT)
        if row.a is not None and row.b is not None:
            change = row.b - row.a
            better = change < 0 if lower_is_better(row.key) else change > 0
            colour = "" if not change or metrics.not_comparable else "green" if better else "red"
            difference = Text("not comparable", "dim") if metrics.not_comparable else Text(f"{change:+.2f}", colour)
        table.add_row(Text(row.key), _number(row.a), _number(row.b), difference)
    return table


def _empty(title: str, comparison: Comparison, *, justify: Literal["left", "right"]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("", overflow="fold")
    for name in (comparison.a, comparison.b):
        table.add_column(Text(name), justify=justify, overflow="fold")
    return table


def _number(value: float | None) -> Text:
    return Text(_ABSENT if value is None else f"{value:.2f}")


def _text(value: Any) -> str:
    if value is None:
        return _ABSENT
    if isinstance(value, float):
        return f"{value:.6g}"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ... ({len(text)} characters)"
