"""Metrics as people read them."""

from collections.abc import Mapping

from rich.table import Table

_DIRECTIONS = {"t2v": "text to video", "v2t": "video to text"}
_VARIANTS = {"excused": "excused", "dsl": "DSL", "qb_norm": "QB-Norm"}
_COLUMNS = ("R@1", "R@5", "R@10", "MdR", "MnR")


def styles_table(title: str, columns: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Table:
    """R@1 from text to video: for each style of writing a line.

    Args:
        title: above the table.
        columns: name of the column -> style -> metrics of the captions in it.
    """
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("R@1, text to video")
    for name in columns:
        table.add_column(name, justify="right")
    for style in next(iter(columns.values())):
        table.add_row(style, *(f"{by_style[style]['t2v/R@1']:.1f}" for by_style in columns.values()))
    return table


def rows_of(result: Mapping) -> dict[str, Mapping[str, float]]:
    """Rows of `metrics_table` for what `waver evaluate` writes: the plain figures first, then those beside them."""
    return {"plain": result["metrics"]} | {_VARIANTS[name]: metrics for name, metrics in result["variants"].items()}


def metrics_table(title: str, rows: Mapping[str, Mapping[str, float]]) -> Table:
    """A table of `retrieval_metrics`: for each direction a line for each entry of `rows`.

    Args:
        title: above the table.
        rows: name of the line -> metrics, of both directions or one; the name of a single line is left out.
    """
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    for direction, words in _DIRECTIONS.items():
        for name, metrics in rows.items():
            if f"{direction}/{_COLUMNS[0]}" not in metrics:
                continue
            label = f"{words}, {name}" if len(rows) > 1 else words
            table.add_row(label, *(f"{metrics[f'{direction}/{column}']:.1f}" for column in _COLUMNS))
    return table
