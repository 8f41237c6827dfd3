"""Tables of metrics for the terminal."""

from collections.abc import Collection, Mapping
from statistics import mean
from typing import Any

from rich.table import Table

from waver.evaluation.confidence import beside

_DIRECTIONS = {"t2v": "text to video", "v2t": "video to text"}
_VARIANTS = {"excused": "excused", "dsl": "DSL", "qb_norm": "QB-Norm"}
_COLUMNS = ("R@1", "R@5", "R@10", "MdR", "MnR")


def styles_table(
    title: str,
    columns: Mapping[str, Mapping[str, Mapping[str, float]]],
    *,
    num_clips: int | None = None,
    train_styles: Collection[str] = (),
) -> Table:
    """Builds a table of R@1, text to video, with one row per writing style.

    Args:
        title: title of the table.
        columns: name of the column -> style -> metrics of its captions; every column has the same styles.
        num_clips: size of the gallery, which the title gives with R@1 by chance; None to leave both out.
        train_styles: styles that training has read. The table says which styles were seen, and has their means; not if this
            is empty, since then it is unknown.
    """
    table = _empty(title, num_clips)
    for name in ("R@1, text to video", *(["in training"] if train_styles else [])):
        table.add_column(name)
    for name in columns:
        table.add_column(name, justify="right")
    styles = list(next(iter(columns.values())))
    groups = {word: [style for style in styles if _seen(style, train_styles) == word] for word in ("seen", "unseen")}
    for style in [*groups["seen"], *groups["unseen"]] if train_styles else styles:
        word = [_seen(style, train_styles)] if train_styles else []
        table.add_row(style, *word, *(f"{by_style[style]['t2v/R@1']:.1f}" for by_style in columns.values()))
    if train_styles and all(groups.values()):
        table.add_section()
        for word, members in groups.items():
            means = (mean_recall(by_style, members) for by_style in columns.values())
            table.add_row("mean", word, *(f"{value:.1f}" for value in means))
    return table


def mean_recall(by_style: Mapping[str, Mapping[str, float]], styles: Collection[str]) -> float:
    """Returns the mean over styles of R@1, text to video, in percent."""
    return mean(by_style[style]["t2v/R@1"] for style in styles)


def _seen(style: str, train_styles: Collection[str]) -> str:
    return "seen" if style in train_styles else "unseen"


def rows_of(result: Mapping[str, Any]) -> dict[str, Mapping[str, float]]:
    """Returns the rows of `metrics_table` for a result of `waver evaluate`: plain metrics first, then the variants."""
    return {"plain": result["metrics"]} | {_VARIANTS[name]: metrics for name, metrics in result["variants"].items()}


def metrics_table(title: str, rows: Mapping[str, Mapping[str, float]], *, num_clips: int | None = None) -> Table:
    """Builds a table of `retrieval_metrics`, with one row per direction and entry of `rows`.

    Args:
        title: title of the table.
        rows: name of the row -> metrics, of both directions or one; the name of a single row is left out.
        num_clips: size of the gallery, which the title gives with R@1 by chance; None to leave both out.
    """
    table = _empty(title, num_clips)
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


def _empty(title: str, num_clips: int | None) -> Table:
    title += f" (R@1: {beside(num_clips)})" if num_clips else ""
    return Table(title=title, title_justify="left", title_style="bold")
