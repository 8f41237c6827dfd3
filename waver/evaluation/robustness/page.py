"""Writes the robustness report as one self-contained HTML page."""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from waver.evaluation.confidence import beside
from waver.evaluation.robustness.measures import CUTOFFS
from waver.evaluation.robustness.plots import dispersion_histogram, style_bars
from waver.evaluation.robustness.queries import TRACKS
from waver.evaluation.robustness.report import ALL
from waver.evaluation.robustness.statistics import FEW_VIDEOS
from waver.evaluation.robustness.tables import versions_per_clip
from waver.tools.files import write_text
from waver.tools.html import html_table, write_html

_STYLE = """
body { max-width: 80rem } table { font-size: 13.5px } td { white-space: nowrap }
td:first-child, th:first-child { text-align: left }
.text td { white-space: normal; text-align: left; max-width: 26rem }
.headline td { font-size: 1.1rem } dt { font-weight: 600 } dd { margin: 0 0 0.4rem 1.5rem }
"""
DEFINITIONS: Mapping[str, str] = {
    "reference": "the one caption of each clip with which other versions are compared",
    "R@K": "share of queries whose clip is among the first K of the ranked gallery",
    "cut": "number of queries that are longer than text.max_words of the run; the model reads only their beginning",
    "clean R@1": "R@1 of the reference captions",
    "chance": "R@1 of random scores, 100 / number of clips in the gallery",
    "worst-case R@K": "share of clips that are among the first K for EVERY version of their caption, including the "
    "reference; best-case R@K: for at least one version",
    "kind of version": "versions by rules of one kind, or by people. The worst case falls with the number of versions: "
    "compare it between runs, or between kinds with equally many. Not every rule applies to every caption: of each kind, "
    "those clips count that have its most frequent set of versions",
    "change": "R@K of a style minus R@K of the reference captions of the same clips, in percentage points",
    "relative robustness": "R@1 of a style / R@1 of the reference captions of the same clips, "
    "= 1 - (R_reference - R_style) / R_reference (Schiappa et al., NeurIPS 2022)",
    "MRR, MdR": "mean of 1 / rank; median rank",
    "flip rate": "share of versions with a hit at rank 1 whose reference has none, or vice versa",
    "dispersion": "standard deviation of log2(1 + rank) over the versions of a caption, mean over clips; "
    "0: all versions have the same rank",
    "AO@10": "average overlap of the top 10 clips of a version and of its reference (Webber et al., 2010); "
    "Jaccard@10: size of the intersection of both top-10 sets over the size of their union",
    "correct and consistent@K": "share of versions for which they and their reference both have the clip among the first K. "
    "Read it together with AO@10, which is 100 % for a model that retrieves the same clips for every query",
    "hubness": "skewness, over clips, of the number of queries that have a clip in their top 10; high: a few clips are "
    "retrieved for most queries",
    "controls": "queries whose words changed so that they no longer describe their clip. A model that uses the meaning "
    "has a low R@1 on them and retrieves another top clip. They are not part of any mean",
    "intervals": "95 %, percentile bootstrap over videos, with the same draws for all metrics; for a metric of fewer than "
    f"{FEW_VIDEOS} videos, Student's t, which can reach beyond 0 and 100; none for few videos that all have the same value; "
    "p: two-sided paired permutation test over videos; p, Holm: corrected for all tests of a table",
}


def write_page(path: Path, report: Mapping[str, Any]) -> list[str]:
    """Writes the report page.

    Args:
        path: path of the HTML file; the plots are also written beside it, as SVG files.
        report: see `waver.evaluation.robustness.report.make_report`.

    Returns:
        The notes of the report, and a sentence if the plots are missing.
    """
    runs, missing = report["runs"], list(report["notes"])
    track = ALL if ALL in runs[0]["tracks"] else next(iter(runs[0]["tracks"]))
    try:
        plots = {"styles": style_bars(report), "dispersion": dispersion_histogram(report, track)}
    except ImportError:
        plots = {}
        missing.append(
            "plots: not drawn, they need matplotlib: pip install 'waver[robustness]', and run this command again"
        )
    for name, plot in plots.items():
        write_text(path.parent / f"{name}.svg", plot)
    body = [
        f"<p>{escape(_summary(report))}</p>",
        '<div class="headline">',
        _headline(runs, beside(report["num_clips"])),
        "</div>",
        "".join(f"<p>{escape(sentence)}</p>" for sentence in missing),
        "<h2>Worst case by kind of version</h2>",
        *(_families(run, beside(report["num_clips"])) for run in runs),
        "<h2>Metrics by style</h2>",
        plots.get("styles", ""),
        *(_styles(run, beside(report["num_clips"])) for run in runs),
        "<h2>Metrics over all versions of a caption</h2>",
        *(_tracks(run) for run in runs),
        plots.get("dispersion", ""),
        *_controls(runs),
        *_comparisons(report["comparisons"]),
        *_lost(runs),
        "<h2>Definitions</h2><dl>",
        *(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in DEFINITIONS.items()),
        "</dl><h2>Data and models</h2>",
        html_table(["", ""], _about(report)),
    ]
    write_html(path, "Robustness to writing style", body, _STYLE)
    return missing


def _summary(report: Mapping[str, Any]) -> str:
    counts = report["num_queries"]
    versions = ", ".join(f"{counts[track]} {track} ({meaning})" for track, meaning in TRACKS.items() if counts[track])
    return (
        f"{report['num_clips']} clips of the {report['split']} split, each with one reference caption and other versions of "
        f"it: {versions}. A writing-style agnostic model has a worst-case R@1 near its clean R@1, and AO@10 near 100 %."
    )


def _headline(runs: Sequence[Mapping[str, Any]], chance: str) -> str:
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
    worst = (f"worst-case R@1, {track} ({versions_per_clip(runs[0], track)})" for track in tracks)
    return html_table(["run", f"clean R@1 ({chance})", *worst, "AO@10"], rows)


def _families(run: Mapping[str, Any], chance: str) -> str:
    head = ["kind", "versions", "clips", f"clean R@1 ({chance})", "mean R@1 of the versions", "worst-case R@1"]
    rows = [
        [
            entry["family"],
            f"{len(entry['versions'])}: {_listed(entry['versions'])}",
            entry["num_clips"],
            *(_percent(entry[key]) for key in ("clean_R@1", "mean_R@1", "worst_case_R@1")),
        ]
        for entry in run["families"]
    ]
    return f"<h3>{escape(run['name'])}</h3>{html_table(head, rows)}"


def _listed(styles: Sequence[str]) -> str:
    """Returns styles in words; one that occurs several times with its number."""
    counts = Counter(styles)
    return ", ".join(style if number == 1 else f"{number} x {style}" for style, number in counts.items())


def _styles(run: Mapping[str, Any], chance: str) -> str:
    head = ["style", "queries", "cut", "of clips", f"R@1 ({chance})", "R@5", "R@10", "MRR", "MdR", "change of R@1"]
    head += ["relative robustness", "AO@10", "hubness"]
    rows: list[list[Any]] = []
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
                entry["num_cut_queries"],
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
        format_value = _number if key == "dispersion" else _percent
        rows.append([key.replace("_", " "), *(format_value(run["tracks"][name][key]) for name in names)])
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
    head = [
        "run",
        "control",
        "queries",
        "R@1 of the reference",
        "R@1 (should be low)",
        "same top clip (should be rare)",
    ]
    return ["<h2>Controls: queries that no longer describe their clip</h2>", html_table(head, rows)] if rows else []


def _comparisons(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    elements: list[str] = []
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
        elements.append(
            f"<h2>{escape(one['second'])} compared with {escape(one['first'])}</h2>{html_table(head, rows)}"
        )
    return elements


def _lost(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    elements = [
        "<h2>Largest drops in rank</h2><p>Per style, the versions with the worst rank whose reference has rank 1.</p>"
    ]
    for run in runs:
        head = ["style", "reference (rank 1)", "version", "rank", "clip", "top clip"]
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
    """Formats a share in percent, with its interval."""
    return _with_interval(ratio, 100.0, f"{sign}.1f")


def _number(ratio: Mapping[str, Any]) -> str:
    return _with_interval(ratio, 1.0, ".2f")


def _with_interval(ratio: Mapping[str, Any], scale: float, form: str) -> str:
    if ratio["value"] is None:
        return "-"
    low, high = ratio["interval"]
    ends = "" if low is None or high is None else f" ({scale * low:{form}} to {scale * high:{form}})"
    return f"{scale * ratio['value']:{form}}{ends}"
