"""Metrics as people read them."""

from collections.abc import Mapping

from rich.table import Table

_DIRECTIONS = {"t2v": "text to video", "v2t": "video to text"}
_COLUMNS = ("R@1", "R@5", "R@10", "MdR", "MnR")


def styles_table(title: str, rows: Mapping[str, Mapping[str, Mapping[str, float]]], metric: str = "t2v/R@1") -> Table:
    """One metric for each style of writing.

    Args:
        title: above the table.
        rows: name of the line -> style -> metrics of the captions in it; the name of a single line is left out.
        metric: which one.
    """
    styles = list(next(iter(rows.values())))
    table = Table(title=title, title_justify="left", title_style="bold")
    for column in (metric, *styles):
        table.add_column(column, justify="left" if column == metric else "right")
    for name, by_style in rows.items():
        table.add_row(name if len(rows) > 1 else "", *(f"{by_style[style][metric]:.1f}" for style in styles))
    return table


def metrics_table(title: str, rows: Mapping[str, Mapping[str, float]]) -> Table:
    """A table of `retrieval_metrics`: for each direction a line for each entry of `rows`.

    Args:
        title: above the table.
        rows: name of the line -> metrics; the name of a single line is left out.
    """
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    for direction, words in _DIRECTIONS.items():
        for name, metrics in rows.items():
            label = f"{words}, {name}" if len(rows) > 1 else words
            table.add_row(label, *(f"{metrics[f'{direction}/{column}']:.1f}" for column in _COLUMNS))
    return table
