"""Writes pages as single HTML files with SVG plots. matplotlib, an optional dependency, is imported on the first plot."""

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from waver.tools.files import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 0.5rem 0; display: block; overflow-x: auto }
td, th { padding: 0.2rem 0.7rem; border-bottom: 1px solid #ddd; text-align: right }
th { border-bottom: 2px solid #888 } svg { max-width: 100%; height: auto }
.plots { display: flex; flex-wrap: wrap; gap: 1rem } pre { background: #f5f5f5; padding: 1rem; overflow-x: auto }
"""


def new_figure(*, width: float, height: float) -> tuple["Figure", "Axes"]:
    """Returns a new figure (width and height in inches) and its axes, outside of pyplot's global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def svg(figure: "Figure") -> str:
    """Renders a figure as an SVG element."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        text.set_parse_math(False)  # users' texts may contain $
    file = io.StringIO()
    # Without the date, equal results give equal pages.
    figure.savefig(file, format="svg", metadata={"Date": None})
    text = file.getvalue()
    return text[text.index("<svg") :]


def html_table(head: Sequence[str], rows: Sequence[Sequence[Any]], classes: Sequence[str] = ()) -> str:
    """Renders a table; every cell is escaped.

    Args:
        head: names of the columns.
        rows: cells of each row.
        classes: CSS class of each row; empty for none.
    """
    lines = [f"<tr>{''.join(f'<th>{escape(name)}</th>' for name in head)}</tr>"]
    for number, row in enumerate(rows):
        name = f' class="{classes[number]}"' if classes else ""
        lines.append(f"<tr{name}>{''.join(f'<td>{escape(str(cell))}</td>' for cell in row)}</tr>")
    return f"<table>{''.join(lines)}</table>"


def write_html(path: Path, title: str, body: Sequence[str], style: str = "") -> None:
    """Writes a self-contained page.

    Args:
        path: the file.
        title: title and heading, plain text.
        body: HTML elements.
        style: additional CSS.
    """
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    head = f"<head>{head}<style>{_STYLE}{style}</style></head>"
    body = f"<h1>{escape(title)}</h1>{''.join(body)}"
    write_text(path, f'<!doctype html><html lang="en">{head}<body>{body}</body></html>\n')
