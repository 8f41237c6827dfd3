"""A whole report: figures of every run, tests between runs, and what is written of them as JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from waver.evaluation.robustness.measures import (
    CUTOFFS,
    Answers,
    Figure,
    StyleFigures,
    VersionFigures,
    found,
    hubness,
    mean_figure,
    style_figures,
    version_figures,
)
from waver.evaluation.robustness.queries import TRACKS, Queries
from waver.evaluation.robustness.statistics import difference_interval, draws, holm, interval, permutation_p

ALL = "all"
"""Name of all tracks together."""
_EXAMPLES = 2
"""Of each style."""


@dataclass(frozen=True)
class RunFigures:
    """Everything that is known of one run."""

    name: str
    answers: Answers
    clean: dict[int, Figure]
    """k -> R@k of the reference captions, over all clips."""
    tracks: dict[str, VersionFigures]
    """Track, or `all` -> figures of its versions; only tracks that have any."""
    overall: dict[str, StyleFigures]
    """`reference`, track, or `all` -> figures of all its queries, whatever their style."""
    styles: dict[tuple[str, str], StyleFigures]
    """(track, style) -> its figures."""
    controls: dict[str, StyleFigures]
    """Name -> figures; what is found of them is found for the wrong reason."""


def run_figures(name: str, answers: Answers, queries: Queries) -> RunFigures:
    """Computes the figures of a run from its answers to all queries."""
    place = queries.reference, queries.clip, queries.video

    def of(rows: np.ndarray, compute: Any) -> Any:
        return compute(answers, rows, place[0][rows], place[1], place[2])

    first = first_references(queries)
    rows_of = {track: queries.of_track(track) for track in TRACKS}
    rows_of = {track: rows for track, rows in rows_of.items() if len(rows)}
    if len(rows_of) > 1:
        rows_of[ALL] = queries.of_track(*TRACKS)
    return RunFigures(
        name=name,
        answers=answers,
        clean={
            k: mean_figure(found(answers.ranks[first], k), queries.video[first], int(queries.video.max()) + 1)
            for k in CUTOFFS
        },
        tracks={track: of(rows, version_figures) for track, rows in rows_of.items()},
        overall={track: of(rows, style_figures) for track, rows in {"reference": first, **rows_of}.items()},
        styles={
            (track, style): of(queries.of_style(track, style), style_figures)
            for track, style in queries.styles(*TRACKS)
        },
        controls={
            style: of(queries.of_style("control", style), style_figures) for _, style in queries.styles("control")
        },
    )


def first_references(queries: Queries) -> np.ndarray:
    """The one reference caption of each clip; imports can bring the originals of others."""
    return np.unique(queries.clip, return_index=True)[1]


def headline(run: RunFigures) -> dict[str, Figure]:
    """Clean R@1, worst-case R@1 and AO@10 over all versions of all tracks."""
    versions = run.tracks[ALL] if ALL in run.tracks else next(iter(run.tracks.values()))
    return {"clean R@1": run.clean[1], "worst-case R@1": versions.worst_case[1], "AO@10": versions.overlap}


def compare_runs(first: RunFigures, second: RunFigures, drawn: np.ndarray, *, permutations: int, seed: int) -> dict:
    """Tests whether two runs differ: the headline, and R@1 of each style; Holm's correction over all of them."""
    pairs = {name: (figure, headline(second)[name]) for name, figure in headline(first).items()}
    pairs |= {
        f"R@1 {track}/{style}": (figures.recall[1], second.styles[track, style].recall[1])
        for (track, style), figures in first.styles.items()
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
                "interval": _finite(difference_interval(one, other, drawn)),
                "p": float(p),
                "p_holm": float(corrected),
            }
            for (name, (one, other)), p, corrected in zip(pairs.items(), p_values, holm(p_values), strict=True)
        ],
    }


def make_report(
    runs: Sequence[RunFigures],
    queries: Queries,
    *,
    about: Mapping[str, Any],
    resamples: int,
    permutations: int,
    seed: int,
) -> dict[str, Any]:
    """The report as JSON holds it. Shares are between 0 and 1; an interval is (low, high), 95 %, over videos.

    Args:
        runs: their figures; all but the first are compared with the first.
        queries: what was asked.
        about: what else a reader must know; stands in the report as it is.
        resamples: of the bootstrap.
        permutations: of each test.
        seed: of both.
    """
    drawn = draws(int(queries.video.max()) + 1, resamples=resamples, seed=seed)
    return {
        **about,
        "num_clips": len(queries.clip_ids),
        "num_videos": int(queries.video.max()) + 1,
        "num_queries": {track: len(queries.of_track(track)) for track in ("reference", *TRACKS, "control")},
        "resamples": resamples,
        "permutations": permutations,
        "seed": seed,
        "runs": [_run(run, queries, drawn) for run in runs],
        "comparisons": [compare_runs(runs[0], run, drawn, permutations=permutations, seed=seed) for run in runs[1:]],
    }


def _run(run: RunFigures, queries: Queries, drawn: np.ndarray) -> dict[str, Any]:
    num_clips = len(queries.clip_ids)
    return {
        "name": run.name,
        "headline": {name: _figure(figure, drawn) for name, figure in headline(run).items()},
        "num_missing_clips": int((~run.answers.available).sum()),
        "tracks": {name: _versions(figures, drawn) for name, figures in run.tracks.items()},
        "overall": {name: _style(figures, num_clips, drawn) for name, figures in run.overall.items()},
        "styles": [
            {"track": track, "style": style, **_style(figures, num_clips, drawn)}
            for (track, style), figures in run.styles.items()
        ],
        "controls": [{"control": name, **_style(figures, num_clips, drawn)} for name, figures in run.controls.items()],
        "hubness_of_references": _finite_one(
            hubness(run.answers.top[first_references(queries)], run.answers.available)
        ),
        "lost": lost(run, queries),
    }


def lost(run: RunFigures, queries: Queries) -> list[dict[str, Any]]:
    """Of each style the versions that fell deepest, of those whose reference found the clip at once."""
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


def _versions(figures: VersionFigures, drawn: np.ndarray) -> dict[str, Any]:
    by_cutoff = {"clean": figures.clean, "worst_case": figures.worst_case, "best_case": figures.best_case}
    return {
        "num_clips": figures.num_clips,
        "num_versions": figures.num_versions,
        **{f"{name}_R@{k}": _figure(of_k[k], drawn) for name, of_k in by_cutoff.items() for k in CUTOFFS},
        "flip_rate": _figure(figures.flip_rate, drawn),
        "dispersion": _figure(figures.dispersion, drawn),
        "AO@10": _figure(figures.overlap, drawn),
        "Jaccard@10": _figure(figures.jaccard, drawn),
        **{f"correct_and_consistent@{k}": _figure(figures.consistent[k], drawn) for k in CUTOFFS},
        "spread_of_clips": [round(float(value), 4) for value in figures.spread],
    }


def _style(figures: StyleFigures, num_clips: int, drawn: np.ndarray) -> dict[str, Any]:
    return {
        "num_queries": figures.num_queries,
        "num_clips": figures.num_clips,
        "coverage": figures.num_clips / num_clips,
        **{f"R@{k}": _figure(figures.recall[k], drawn) for k in CUTOFFS},
        **{f"reference_R@{k}": _figure(figures.reference_recall[k], drawn) for k in CUTOFFS},
        **{f"change_R@{k}": _figure(figures.change[k], drawn) for k in CUTOFFS},
        "relative_robustness": _figure(figures.relative, drawn),
        "MRR": _figure(figures.mrr, drawn),
        "MdR": figures.median_rank,
        "AO@10": _figure(figures.overlap, drawn),
        "first_answer_kept": _figure(figures.first_kept, drawn),
        "hubness": _finite_one(figures.hubness),
    }


def _figure(figure: Figure, drawn: np.ndarray) -> dict[str, Any]:
    return {"value": _finite_one(figure.value), "interval": _finite(interval(figure, drawn))}


def _finite(values: tuple[float, ...]) -> list[float | None]:
    return [_finite_one(value) for value in values]


def _finite_one(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
