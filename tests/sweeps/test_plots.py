"""Plots are drawn, and say what they show; how they look is for people to judge."""

import xml.etree.ElementTree as ET

import pytest

from waver.sweeps.plots import best_so_far, importance_bars, marginal, parallel_coordinates

ROWS = [
    {
        "values": {"a": a, "b": b, "c": c},
        "objective": objective,
        "deviation": deviation,
        "status": status,
        "ended_s": 1e9 + 60 * number,
    }
    for number, (a, b, c, objective, deviation, status) in enumerate(
        [
            (1e-4, "wti", 1, 10.0, 1.0, "finished"),
            (1e-2, "ti", 1, 12.0, None, "stopped"),
            (1e-3, None, 2, 11.0, 0.5, "finished"),
            (1.0, "wti", 2, 9.0, None, "interrupted"),
        ]
    )
]


@pytest.mark.slow
@pytest.mark.parametrize("rows", [ROWS, ROWS[:1]], ids=["four", "one"])
def test_each_is_an_svg_that_names_what_it_shows(rows):
    plots = [
        parallel_coordinates(rows, ["a", "b", "c"], "t2v/R@1", "max"),
        *(marginal(rows, key, "t2v/R@1") for key in ("a", "b", "c")),
        best_so_far(rows, "t2v/R@1", "max"),
        best_so_far(rows, "t2v/MnR", "min"),
        importance_bars({"a": 0.7, "b": 0.3}),
    ]
    for plot in plots:
        assert ET.fromstring(plot).tag.endswith("svg")
    for key, plot in zip("abc", plots[1:4], strict=True):
        assert f"<!-- {key} -->" in plot
