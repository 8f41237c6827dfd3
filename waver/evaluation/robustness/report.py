"""Computes the report: metrics of every run and tests between runs, as JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from waver.evaluation.intervals import holm
from waver.evaluation.robustness.families import FamilyMetrics, compute_families
from waver.evaluation.robustness.measures import (
    CUTOFFS,
    Answers,
    Ratio,
    StyleMetrics,
    VersionMetrics,
    compute_style_metrics,
    compute_version_metrics,
    hubness,
    mean_ratio,
)
from waver.evaluation.robustness.queries import TRACKS, Queries
from waver.evaluation.robustness.statistics import difference_interval, draw_bootstrap, interval, permutation_p

ALL = "all"
"""Name of the union of all tracks."""
_EXAMPLES = 2
"""Number of example queries per style."""


@dataclass(frozen=True)
class RunMetrics:
    """All metrics of one run."""

    name: str
    answers: Answers
    clean: dict[int, Ratio]
    """k -> R@k of the reference captions, over all clips."""
    tracks: dict[str, VersionMetrics]
    """Track or `all` -> metrics of its versions; tracks without queries are left out."""
    overall: dict[str, StyleMetrics]
    """`reference`, track or `all` -> metrics of all its queries, of any style."""
    styles: dict[tuple[str, str], StyleMetrics]
    """(track, style) -> metrics of its queries."""
    families: dict[str, FamilyMetrics]
    """Kind of version, such as typing mistakes -> metrics of clips that have the same versions of it."""
    controls: dict[str, StyleMetrics]
    """Name of a control -> metrics of its queries, which no longer describe their clip."""


def compute_run_metrics(name: str, answers: Answers, queries: Queries) -> RunMetrics:
    """Computes the metrics of a run from its ranks and top clips of all queries."""
    place = queries.reference, queries.clip, queries.video

    def of(rows: np.ndarray, compute: Any) -> Any:
        return compute(answers, rows, place[0][rows], place[1], place[2])

    first = reference_queries(queries)
    rows_of = {track: queries.of_track(track) for track in TRACKS}
    rows_of = {track: rows for track, rows in rows_of.items() if len(rows)}
    if len(rows_of) > 1:
        rows_of[ALL] = queries.of_track(*TRACKS)
    return RunMetrics(
        name=name,
        answers=answers,
        clean={
            k: mean_ratio(answers.hits(first, k), queries.video[first], int(queries.video.max()) + 1) for k in CUTOFFS
        },
        tracks={track: of(rows, compute_version_metrics) for track, rows in rows_of.items()},
        overall={track: of(rows, compute_style_metrics) for track, rows in {"reference": first, **rows_of}.items()},
        styles={
            (track, style): of(queries.of_style(track, style), compute_style_metrics)
            for track, style in queries.styles(*TRACKS)
        },
        families=compute_families(answers, queries),
        controls={
            style: of(queries.of_style("control", style), compute_style_metrics)
            for _, style in queries.styles("control")
        },
    )


def reference_queries(queries: Queries) -> np.ndarray:
    """Returns the first reference query of each clip; clips with imported versions of other captions have several."""
    return np.unique(queries.clip, return_index=True)[1]


def headline_metrics(run: RunMetrics) -> dict[str, Ratio]:
    """Returns clean R@1, worst-case R@1 and AO@10 over all versions of all tracks."""
    versions = run.tracks[ALL] if ALL in run.tracks else next(iter(run.tracks.values()))
    return {"clean R@1": run.clean[1], "worst-case R@1": versions.worst_case[1], "AO@10": versions.overlap}


def compare_with_baseline(
    first: RunMetrics, second: RunMetrics, bootstrap: np.ndarray, *, permutations: int, seed: int
) -> dict[str, Any]:
    """Tests for differences of two runs in the headline metrics, the worst case of each family and R@1 of each style.

    p-values are corrected by Holm.
    """
    pairs = {name: (ratio, headline_metrics(second)[name]) for name, ratio in headline_metrics(first).items()}
    pairs |= {
        f"worst-case R@1, {family}": (metrics.worst_case, second.families[family].worst_case)
        for family, metrics in first.families.items()
    }
    pairs |= {
        f"R@1 {track}/{style}": (metrics.recall[1], second.styles[track, style].recall[1])
        for (track, style), metrics in first.styles.items()
    }
    p_values = np.array([permutation_p(*pair, resamples=permutations, seed=seed) for pair in pairs.values()])
    return {
        "first": first.name,
        "second": second.name,
        "tests": [
            {
                "what": name,
                "first": one.value,
                "second": other.value,
                "difference": other.value - one.value,
                "interval": _finite_values(difference_interval(one, other, bootstrap)),
                "p": float(p),
                "p_holm": float(corrected),
            }
            for (name, (one, other)), p, corrected in zip(pairs.items(), p_values, holm(p_values), strict=True)
        ],
    }


def make_report(
    runs: Sequence[RunMetrics],
    queries: Queries,
    *,
    about: Mapping[str, Any],
    resamples: int,
    permutations: int,
    seed: int,
) -> dict[str, Any]:
    """Makes the report as a JSON object. Shares are between 0 and 1; intervals are (low, high), 95 %, over videos.

    Args:
        runs: metrics of the runs; all but the first are compared with the first.
        queries: queries of the report.
        about: further entries, which are copied into the report.
        resamples: number of resamples of the bootstrap.
        permutations: number of permutations of each test.
        seed: seed of both.
    """
    bootstrap = draw_bootstrap(int(queries.video.max()) + 1, resamples=resamples, seed=seed)
    return {
        **about,
        "num_clips": len(queries.clip_ids),
        "num_videos": int(queries.video.max()) + 1,
        "num_queries": {track: len(queries.of_track(track)) for track in ("reference", *TRACKS, "control")},
        "resamples": resamples,
        "permutations": permutations,
        "seed": seed,
        "runs": [_run(run, queries, bootstrap) for run in runs],
        "comparisons": [
            compare_with_baseline(runs[0], run, bootstrap, permutations=permutations, seed=seed) for run in runs[1:]
        ],
    }


def _run(run: RunMetrics, queries: Queries, bootstrap: np.ndarray) -> dict[str, Any]:
    num_clips = len(queries.clip_ids)
    return {
        "name": run.name,
        "headline": {name: _ratio(ratio, bootstrap) for name, ratio in headline_metrics(run).items()},
        "num_missing_clips": int((~run.answers.available).sum()),
        "tracks": {name: _versions(metrics, bootstrap) for name, metrics in run.tracks.items()},
        "overall": {name: _style(metrics, num_clips, bootstrap) for name, metrics in run.overall.items()},
        "styles": [
            {"track": track, "style": style, **_style(metrics, num_clips, bootstrap)}
            for (track, style), metrics in run.styles.items()
        ],
        "families": [_family(name, metrics, bootstrap) for name, metrics in run.families.items()],
        "controls": [
            {"control": name, **_style(metrics, num_clips, bootstrap)} for name, metrics in run.controls.items()
        ],
        "hubness_of_references": _finite_or_none(
            hubness(run.answers.top[reference_queries(queries)], run.answers.available)
        ),
        "lost": find_largest_drops(run, queries),
    }


def find_largest_drops(run: RunMetrics, queries: Queries) -> list[dict[str, Any]]:
    """Returns per style the versions with the worst rank, among those whose reference has rank 1."""
    ranks, reference = run.answers.ranks, queries.reference
    chosen: list[int] = []
    for track, style in run.styles:
        rows = queries.of_style(track, style)
        rows = rows[(ranks[reference[rows]] <= 1) & (ranks[rows] > 1)]
        chosen += rows[np.argsort(-ranks[rows], kind="stable")][:_EXAMPLES].tolist()
    return [
        {
            "style": f"{queries.rows[row].track}/{queries.rows[row].style}",
            "clip": queries.rows[row].clip_id,
            "reference": queries.rows[reference[row]].text,
            "version": queries.rows[row].text,
            "rank": float(ranks[row]),
            "answer": queries.clip_ids[run.answers.top[row, 0]],
        }
        for row in chosen
    ]


def _versions(metrics: VersionMetrics, bootstrap: np.ndarray) -> dict[str, Any]:
    by_cutoff = {"clean": metrics.clean, "worst_case": metrics.worst_case, "best_case": metrics.best_case}
    return {
        "num_clips": metrics.num_clips,
        "num_versions": metrics.num_versions,
        **{f"{name}_R@{k}": _ratio(of_k[k], bootstrap) for name, of_k in by_cutoff.items() for k in CUTOFFS},
        "flip_rate": _ratio(metrics.flip_rate, bootstrap),
        "dispersion": _ratio(metrics.dispersion, bootstrap),
        "AO@10": _ratio(metrics.overlap, bootstrap),
        "Jaccard@10": _ratio(metrics.jaccard, bootstrap),
        **{f"correct_and_consistent@{k}": _ratio(metrics.consistent[k], bootstrap) for k in CUTOFFS},
        "spread_of_clips": [round(float(value), 4) for value in metrics.spread],
    }


def _family(name: str, metrics: FamilyMetrics, bootstrap: np.ndarray) -> dict[str, Any]:
    return {
        "family": name,
        "versions": list(metrics.versions),
        "num_clips": metrics.sets.num_clips,
        "clean_R@1": _ratio(metrics.sets.clean[1], bootstrap),
        "mean_R@1": _ratio(metrics.queries.recall[1], bootstrap),
        "worst_case_R@1": _ratio(metrics.worst_case, bootstrap),
    }


def _style(metrics: StyleMetrics, num_clips: int, bootstrap: np.ndarray) -> dict[str, Any]:
    return {
        "num_queries": metrics.num_queries,
        "num_cut_queries": metrics.num_cut,
        "num_clips": metrics.num_clips,
        "coverage": metrics.num_clips / num_clips,
        **{f"R@{k}": _ratio(metrics.recall[k], bootstrap) for k in CUTOFFS},
        **{f"reference_R@{k}": _ratio(metrics.reference_recall[k], bootstrap) for k in CUTOFFS},
        **{f"change_R@{k}": _ratio(metrics.change[k], bootstrap) for k in CUTOFFS},
        "relative_robustness": _ratio(metrics.relative, bootstrap),
        "MRR": _ratio(metrics.mrr, bootstrap),
        "MdR": metrics.median_rank,
        "AO@10": _ratio(metrics.overlap, bootstrap),
        "first_answer_kept": _ratio(metrics.first_kept, bootstrap),
        "hubness": _finite_or_none(metrics.hubness),
    }


def _ratio(ratio: Ratio, bootstrap: np.ndarray) -> dict[str, Any]:
    return {"value": _finite_or_none(ratio.value), "interval": _finite_values(interval(ratio, bootstrap))}


def _finite_values(values: tuple[float, ...]) -> list[float | None]:
    return [_finite_or_none(value) for value in values]


def _finite_or_none(value: float) -> float | None:
    """Returns None for NaN and infinity, which JSON lacks."""
    return value if math.isfinite(value) else None
