"""Draws the plots of a sweep as SVG."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from waver.tools.html import new_figure, svg

_COLOURS = {"finished": "#1f6fb4", "stopped": "#e08a1e", "interrupted": "#888888"}
TrialRow = Mapping[str, Any]


def parallel_coordinates(rows: Sequence[TrialRow], keys: Sequence[str], metric: str, mode: str) -> str:
    """Draws one line per trial through its value of every key and its objective; darker lines are better trials."""
    import matplotlib

    figure, axes = new_figure(width=2.0 + 1.5 * len(keys), height=3.6)
    columns = [_positions([row["values"][key] for row in rows]) for key in keys]
    columns.append(_positions([row["objective"] for row in rows]))
    places = np.array([position for position, _ in columns])
    goodness = places[-1] if mode == "max" else 1 - places[-1]
    for row in np.argsort(goodness).tolist():
        colour = matplotlib.colormaps["viridis_r"](0.1 + 0.85 * goodness[row])
        style = "-" if rows[row]["status"] == "finished" else ":"
        axes.plot(range(len(columns)), places[:, row], style, color=colour, linewidth=1.6)
    for x, (_, ticks) in enumerate(columns):
        axes.axvline(x, color="#555555", linewidth=0.8)
        for position, text in ticks:
            axes.text(x + 0.03, position, text, fontsize=7, va="center")
    axes.set_xticks(range(len(columns)), [*keys, metric], fontsize=8, rotation=12)
    axes.set_yticks([])
    axes.set_xlim(-0.1, len(columns) - 0.6)
    axes.set_frame_on(False)
    return svg(figure)


def marginal(rows: Sequence[TrialRow], key: str, metric: str) -> str:
    """Plots the objective over the value of one key; error bars are the standard deviation over seeds.

    If several trials have the same value, black bars show the mean and standard deviation over them.
    """
    figure, axes = new_figure(width=4.2, height=3.0)
    values = [row["values"][key] for row in rows]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    names = sorted({str(value) for value in values})
    x = (
        np.array(values, dtype=float)
        if numeric
        else np.array([names.index(str(value)) for value in values], dtype=float)
    )
    y = np.array([row["objective"] for row in rows])
    for status, colour in _COLOURS.items():
        chosen = np.array([row["status"] == status for row in rows])
        if chosen.any():
            spread = [rows[i]["deviation"] or 0.0 for i in np.flatnonzero(chosen)]
            axes.errorbar(x[chosen], y[chosen], yerr=spread, fmt="o", color=colour, markersize=4, label=status)
    levels = np.unique(x)
    if 1 < len(levels) < len(x):
        means = np.array([y[x == level].mean() for level in levels])
        spreads = np.array([y[x == level].std() for level in levels])
        # Values that are not numbers are not joined by a line, because they have no order.
        axes.errorbar(levels, means, spreads, fmt="-" if numeric else "_", color="#333333", linewidth=1, capsize=4)
    if not numeric:
        axes.set_xticks(range(len(names)), names, fontsize=7)
    elif x.min() > 0 and x.max() / x.min() > 50:
        axes.set_xscale("log")
    axes.set_xlabel(key)
    axes.set_ylabel(metric)
    axes.legend(fontsize=7)
    return svg(figure)


def best_so_far(rows: Sequence[TrialRow], metric: str, mode: str) -> str:
    """Plots the best objective so far over the minutes since the first trial ended; each point is a trial."""
    figure, axes = new_figure(width=6.0, height=3.0)
    ended = sorted((row for row in rows if row["ended_s"]), key=lambda row: row["ended_s"])
    minutes = np.array([(row["ended_s"] - ended[0]["ended_s"]) / 60 for row in ended])
    y = np.array([row["objective"] for row in ended])
    for status, colour in _COLOURS.items():
        chosen = np.array([row["status"] == status for row in ended])
        if not chosen.any():
            continue
        axes.plot(minutes[chosen], y[chosen], "o", color=colour, markersize=4, label=status)
    best = np.maximum.accumulate(y) if mode == "max" else np.minimum.accumulate(y)
    axes.step(minutes, best, where="post", color="#333333", linewidth=1.2)
    axes.set_xlabel("minutes since the first trial ended")
    axes.set_ylabel(metric)
    axes.legend(fontsize=7)
    return svg(figure)


def importance_bars(shares: Mapping[str, float]) -> str:
    """Draws the importance of each key as a bar."""
    figure, axes = new_figure(width=6.0, height=0.7 + 0.35 * len(shares))
    axes.barh(list(shares)[::-1], list(shares.values())[::-1], color="#1f6fb4")
    axes.set_xlim(0, 1)
    return svg(figure)


def _positions(values: Sequence[Any]) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Maps values to positions between 0 and 1; returns them, and the (position, label) pairs of the axis."""
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        numbers = np.array(values, dtype=float)
        low, high = numbers.min(), numbers.max()
        if low == high:
            return np.full(len(numbers), 0.5), [(0.5, f"{low:g}")]
        marks = sorted(set(values)) if len(set(values)) <= 6 else np.linspace(low, high, 5)
        return (numbers - low) / (high - low), [((mark - low) / (high - low), f"{mark:.3g}") for mark in marks]
    names = sorted({str(value) for value in values})
    place = {name: index / max(1, len(names) - 1) for index, name in enumerate(names)}
    return np.array([place[str(value)] for value in values]), [(place[name], name) for name in names]
