"""The report as one HTML page, that needs no other file."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from waver.evaluation.robustness.measures import CUTOFFS
from waver.evaluation.robustness.plots import dispersion_histogram, style_bars
from waver.evaluation.robustness.queries import TRACKS
from waver.evaluation.robustness.report import ALL
from waver.tools.files import write_text
from waver.tools.html import html_table, write_html

_STYLE = """
body { max-width: 80rem } table { font-size: 13.5px } td { white-space: nowrap }
td:first-child, th:first-child { text-align: left }
.text td { white-space: normal; text-align: left; max-width: 26rem }
.headline td { font-size: 1.1rem } dt { font-weight: 600 } dd { margin: 0 0 0.4rem 1.5rem }
"""
DEFINITIONS: Mapping[str, str] = {
    "reference": "of each clip the one caption with which its other versions are compared",
    "R@K": "share of queries that find their clip among the first K of the gallery",
    "clean R@1": "R@1 of the reference captions",
    "worst-case R@K": "share of clips that are found among the first K by EVERY version of their caption, the reference "
    "among them; best-case R@K: by at least one",
    "change": "R@K of a style minus R@K of the reference captions of the same clips, in points",
    "relative robustness": "R@1 of a style / R@1 of the reference captions of the same clips, "
    "= 1 - (R_reference - R_style) / R_reference (Schiappa et al., NeurIPS 2022)",
    "MRR, MdR": "mean of 1 / rank; median rank",
    "flip rate": "share of versions that find their clip at once where their reference does not, or the other way round",
    "dispersion": "standard deviation of log2(1 + rank) over a caption's versions, mean over clips; 0: all rank alike",
    "AO@10": "average overlap of the first 10 answers to a version and to its reference (Webber et al., 2010); "
    "Jaccard@10: answers that both have among those that one has",
    "correct and consistent@K": "share of versions for which both they and their reference find the clip among the first K. "
    "To be read with AO: a model that answers everything alike agrees with itself",
    "hubness": "skewness of the number of queries in whose first 10 a clip stands; high: a few clips are answered to "
    "everything",
    "controls": "queries that no longer describe their clip. What they find, they find for the wrong reason: a model that "
    "reads should lose R@1 here and give another first answer. They are part of no mean",
    "intervals": "95 %, percentile bootstrap over videos, the same draws for all figures; p: paired permutation test over "
    "videos, two-sided; Holm's correction over all tests of a table",
}


def write_page(path: Path, report: Mapping[str, Any]) -> list[str]:
    """Writes the page.

    Args:
        path: of the HTML file; plots go beside it as SVG files.
        report: see `waver.evaluation.robustness.report.make_report`.

    Returns:
        Sentences on what could not be drawn.
    """
    runs, missing = report["runs"], list(report["notes"])
    track = ALL if ALL in runs[0]["tracks"] else next(iter(runs[0]["tracks"]))
    try:
        plots = {"styles": style_bars(report), "dispersion": dispersion_histogram(report, track)}
    except ImportError:
        plots = {}
        missing.append("plots: not drawn, they need matplotlib: pip install 'waver[robustness]', and run this again")
    for name, plot in plots.items():
        write_text(path.parent / f"{name}.svg", plot)
    body = [
        f"<p>{escape(_summary(report))}</p>",
        '<div class="headline">',
        _headline(runs),
        "</div>",
        "".join(f"<p>{escape(sentence)}</p>" for sentence in missing),
        "<h2>Style by style</h2>",
        plots.get("styles", ""),
        *(_styles(run) for run in runs),
        "<h2>All versions of a caption together</h2>",
        *(_tracks(run) for run in runs),
        plots.get("dispersion", ""),
        *_controls(runs),
        *_comparisons(report["comparisons"]),
        *_lost(runs),
        "<h2>What the words mean</h2><dl>",
        *(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in DEFINITIONS.items()),
        "</dl><h2>What was asked of what</h2>",
        html_table(["", ""], _about(report)),
    ]
    write_html(path, "Does it matter how the query is written?", body, _STYLE)
    return missing


def _summary(report: Mapping[str, Any]) -> str:
    counts = report["num_queries"]
    asked = ", ".join(f"{counts[track]} {track} ({meaning})" for track, meaning in TRACKS.items() if counts[track])
    return (
        f"{report['num_clips']} clips of the {report['split']} split, each with one reference caption and other versions of "
        f"it: {asked}. A writing-style agnostic model has a worst case near its clean figure, and AO@10 near 100 %."
    )


def _headline(runs: Sequence[Mapping[str, Any]]) -> str:
    tracks = list(runs[0]["tracks"])
    rows = [
        [
            run["name"],
            _percent(run["headline"]["clean R@1"]),
            *(_percent(run["tracks"][track]["worst_case_R@1"]) for track in tracks),
            _percent(run["headline"]["AO@10"]),
        ]
        for run in runs
    ]
    return html_table(["run", "clean R@1", *(f"worst-case R@1, {track}" for track in tracks), "AO@10"], rows)


def _styles(run: Mapping[str, Any]) -> str:
    head = ["style", "queries", "of clips", "R@1", "R@5", "R@10", "MRR", "MdR", "change of R@1", "relative robustness"]
    head += ["AO@10", "hubness"]
    rows = []
    for name, entry in [
        ("reference", run["overall"]["reference"]),
        *((f"{entry['track']}: {entry['style']}", entry) for entry in run["styles"]),
        *((f"mean of {name}", entry) for name, entry in run["overall"].items() if name != "reference"),
    ]:
        is_reference = name == "reference"
        rows.append(
            [
                name,
                entry["num_queries"],
                f"{100 * entry['coverage']:.0f} %",
                _percent(entry["R@1"]),
                *(f"{100 * entry[f'R@{k}']['value']:.1f}" for k in CUTOFFS[1:]),
                f"{entry['MRR']['value']:.3f}",
                f"{entry['MdR']:g}",
                "" if is_reference else _percent(entry["change_R@1"], sign="+"),
                "" if is_reference else _number(entry["relative_robustness"]),
                "" if is_reference else f"{100 * entry['AO@10']['value']:.1f}",
                "" if entry["hubness"] is None else f"{entry['hubness']:.2f}",
            ]
        )
    return f"<h3>{escape(run['name'])}</h3>{html_table(head, rows)}"


def _tracks(run: Mapping[str, Any]) -> str:
    names = list(run["tracks"])
    rows: list[list[Any]] = [
        ["clips", *(run["tracks"][name]["num_clips"] for name in names)],
        ["versions", *(run["tracks"][name]["num_versions"] for name in names)],
    ]
    metrics = [key for key, value in run["tracks"][names[0]].items() if isinstance(value, dict)]
    for key in metrics:
        show = _number if key == "dispersion" else _percent
        rows.append([key.replace("_", " "), *(show(run["tracks"][name][key]) for name in names)])
    return f"<h3>{escape(run['name'])}</h3>{html_table(['', *names], rows)}"


def _controls(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        [
            run["name"],
            entry["control"],
            entry["num_queries"],
            _percent(entry["reference_R@1"]),
            _percent(entry["R@1"]),
            _percent(entry["first_answer_kept"]),
        ]
        for run in runs
        for entry in run["controls"]
    ]
    head = ["run", "control", "queries", "R@1 before", "R@1 after (should fall)", "same first answer (should be rare)"]
    return ["<h2>Controls: queries that mean something else</h2>", html_table(head, rows)] if rows else []


def _comparisons(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    elements = []
    for one in comparisons:
        head = ["", one["first"], one["second"], "difference", "p", "p, Holm"]
        rows = [
            [
                test["what"],
                f"{100 * test['first']:.1f}",
                f"{100 * test['second']:.1f}",
                _percent({"value": test["difference"], "interval": test["interval"]}, sign="+"),
                f"{test['p']:.4f}",
                f"{test['p_holm']:.4f}",
            ]
            for test in one["tests"]
        ]
        elements.append(f"<h2>{escape(one['second'])} against {escape(one['first'])}</h2>{html_table(head, rows)}")
    return elements


def _lost(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    elements = [
        "<h2>Found by its reference, lost in other words</h2><p>Of each style the versions that fell deepest.</p>"
    ]
    for run in runs:
        head = ["style", "reference (rank 1)", "version", "rank", "clip", "first answer"]
        rows = [
            [one["style"], one["reference"], one["version"], f"{one['rank']:g}", one["clip"], one["answer"]]
            for one in run["lost"]
        ]
        elements.append(f'<h3>{escape(run["name"])}</h3><div class="text">{html_table(head, rows)}</div>')
    return elements


def _about(report: Mapping[str, Any]) -> list[list[Any]]:
    skipped = {"runs", "comparisons", "num_queries", "notes", "imported", "sources"}
    rows = [[key.replace("_", " "), value] for key, value in report.items() if key not in skipped]
    rows += [[f"imported from {one['file']}", f"{one['queries']} by {one['by']}"] for one in report["imported"]]
    for source in report["sources"]:
        rows += [[f"{source['name']}: {key}", value] for key, value in source.items() if key != "name"]
    return rows


def _percent(ratio: Mapping[str, Any], sign: str = "") -> str:
    """A share in percent with its interval."""
    return _with_interval(ratio, 100.0, f"{sign}.1f")


def _number(ratio: Mapping[str, Any]) -> str:
    return _with_interval(ratio, 1.0, ".2f")


def _with_interval(ratio: Mapping[str, Any], scale: float, form: str) -> str:
    if ratio["value"] is None:
        return "-"
    low, high = ratio["interval"]
    ends = "" if low is None or high is None else f" ({scale * low:{form}} to {scale * high:{form}})"
    return f"{scale * ratio['value']:{form}}{ends}"
