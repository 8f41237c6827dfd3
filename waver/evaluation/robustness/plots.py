"""Draws the plots of the robustness report as SVG."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from waver.tools.html import new_figure, svg

_COLOURS = ("#1f6fb4", "#e08a1e", "#3b8f4a", "#8a4fb0", "#b3261e", "#777777")
Report = Mapping[str, Any]


def style_bars(report: Report) -> str:
    """Draws R@1 of every style with its interval, one bar per run; dashed lines show R@1 of the reference captions."""
    runs = report["runs"]
    names = [f"{entry['track']}: {entry['style']}" for entry in runs[0]["styles"]]
    figure, axes = new_figure(width=9.0, height=1.2 + len(names) * (0.16 + 0.14 * len(runs)))
    height = 0.8 / len(runs)
    for number, run in enumerate(runs):
        colour = _COLOURS[number % len(_COLOURS)]
        values = np.array([100 * entry["R@1"]["value"] for entry in run["styles"]])
        ends = 100 * np.array([entry["R@1"]["interval"] for entry in run["styles"]], dtype=float)
        place = np.arange(len(names)) + (number - (len(runs) - 1) / 2) * height
        spread = np.abs(ends.T - values)
        axes.barh(place, values, 0.9 * height, color=colour, xerr=spread, error_kw={"lw": 0.8}, label=run["name"])
        axes.axvline(100 * run["overall"]["reference"]["R@1"]["value"], color=colour, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set_xlabel("R@1, text to video, % (dashed: reference captions)")
    figure.legend(fontsize=8, loc="outside upper right", ncols=len(runs))
    return svg(figure)


def dispersion_histogram(report: Report, track: str) -> str:
    """Draws the histogram over clips of the standard deviation of log2(1 + rank) over the queries of a track."""
    figure, axes = new_figure(width=7.0, height=3.2)
    spreads = [np.array(run["tracks"][track]["spread_of_clips"]) for run in report["runs"]]
    edges = np.linspace(0, max(1e-9, *(spread.max() for spread in spreads)), 25).tolist()
    for number, (run, spread) in enumerate(zip(report["runs"], spreads, strict=True)):
        axes.hist(spread, edges, histtype="step", color=_COLOURS[number % len(_COLOURS)], lw=1.6, label=run["name"])
    axes.set_xlabel("standard deviation of log2(1 + rank) over the versions of a clip's caption")
    axes.set_ylabel("clips")
    axes.legend(fontsize=8)
    return svg(figure)
