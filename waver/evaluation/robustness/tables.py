"""Tables of the report for a terminal."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from waver.evaluation.confidence import beside


def headline_table(report: Mapping[str, Any]) -> Table:
    """Makes a table with one row per run: clean R@1, worst-case R@1 of each track and of all, AO@10, with intervals."""
    runs = report["runs"]
    tracks = list(runs[0]["tracks"])
    title = f"{report['split']} split (R@1: {beside(report['num_clips'])}); in brackets: 95 % interval over videos"
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in (
        "",
        "clean R@1",
        *(f"worst case, {track} ({versions_per_clip(runs[0], track)})" for track in tracks),
        "AO@10",
    ):
        table.add_column(name, justify="right" if name else "left")
    for run in runs:
        headline = run["headline"]
        metrics = [headline["clean R@1"], *(run["tracks"][t]["worst_case_R@1"] for t in tracks), headline["AO@10"]]
        table.add_row(run["name"], *map(_percent, metrics))
    return table


def families_table(report: Mapping[str, Any]) -> Table:
    """Makes a table of the worst case of each kind of version: number of versions and clips, then one column per run."""
    runs = report["runs"]
    title = "worst-case R@1 by kind of version; of clips that have the same versions, whose number stands beside"
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("", "versions", "clips", *(run["name"] for run in runs)):
        table.add_column(name, justify="right" if name else "left")
    for number, entry in enumerate(runs[0]["families"]):
        cells = (_percent(run["families"][number]["worst_case_R@1"]) for run in runs)
        table.add_row(entry["family"], str(len(entry["versions"])), str(entry["num_clips"]), *cells)
    return table


def versions_per_clip(run: Mapping[str, Any], track: str) -> str:
    """Returns the mean number of versions of a clip, on which the worst case depends, in words."""
    entry = run["tracks"][track]
    return f"{entry['num_versions'] / entry['num_clips']:.1f} versions a clip"


def styles_table(report: Mapping[str, Any]) -> Table:
    """Makes a table of R@1 and its change from the reference caption: one row per style or control, one column per run."""
    runs = report["runs"]
    title = f"R@1 ({beside(report['num_clips'])}), and its change from the reference caption"
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("")
    for run in runs:
        table.add_column(run["name"], justify="right")
    table.add_row("reference", *(f"{100 * run['overall']['reference']['R@1']['value']:.1f}" for run in runs))
    for number, entry in enumerate(runs[0]["styles"]):
        name = f"{entry['track']}: {entry['style']}"
        table.add_row(name, *(_change(run["styles"][number]) for run in runs))
    if runs[0]["controls"]:
        table.add_section()
    for number, entry in enumerate(runs[0]["controls"]):
        name = f"control: {entry['control']} (should fall)"
        table.add_row(name, *(_change(run["controls"][number]) for run in runs))
    return table


def _percent(ratio: Mapping[str, Any]) -> str:
    low, high = ratio["interval"]
    ends = "" if low is None or high is None else f" ({100 * low:.0f}-{100 * high:.0f})"
    return f"{100 * ratio['value']:.1f}{ends}"


def _change(entry: Mapping[str, Any]) -> str:
    return f"{100 * entry['R@1']['value']:.1f} ({100 * entry['change_R@1']['value']:+.1f})"
