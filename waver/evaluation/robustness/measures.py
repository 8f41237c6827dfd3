"""Computes metrics of the clips retrieved for many versions of a query: per style, per clip over its versions, hubness.

Every metric with an interval is a mean over units, or a quotient of two means, and each unit belongs to a video. It is
stored as sums per video (`Ratio`), from which a bootstrap over videos computes the metric of each resample.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from waver.evaluation.metrics import expected_hits

CUTOFFS = (1, 5, 10)
ANSWER_DEPTH = 10
"""Number of top-ranked clips that are compared between two queries (the K of AO@K, Jaccard@K and hubness)."""


@dataclass(frozen=True)
class Answers:
    """Ranks and top clips of one model for Q queries."""

    ranks: Float[np.ndarray, " Q"]
    """Rank of each query's clip, from 1; inf if the clip has no embedding."""
    top: Int[np.ndarray, "Q depth"]
    """Gallery indices of the top clips, best first; -1 if the gallery has fewer clips."""
    available: Bool[np.ndarray, " clips"]
    """Whether each clip of the gallery has an embedding; a clip without one is never retrieved."""
    ties: Int[np.ndarray, " Q"]
    """Number of wrong clips with the score of each query's clip."""
    cut: Bool[np.ndarray, " Q"]
    """Whether each query is longer than the model reads."""

    def hits(self, queries: Int[np.ndarray, " N"], k: int) -> Float[np.ndarray, " N"]:
        """Returns the probability that the clip of each query is among the first k if ties are broken at random."""
        return expected_hits(self.ranks[queries], self.ties[queries], k)


@dataclass(frozen=True)
class Ratio:
    """A mean over units or quotient of sums, stored per video: value = numerator.sum() / denominator.sum()."""

    numerator: Float[np.ndarray, " videos"]
    denominator: Float[np.ndarray, " videos"]

    @property
    def value(self) -> float:
        """Value over all videos; NaN if the denominator is 0."""
        denominator = self.denominator.sum()
        return float(self.numerator.sum() / denominator) if denominator else float("nan")


def mean_ratio(
    values: Float[np.ndarray, " units"] | Bool[np.ndarray, " units"], video: Int[np.ndarray, " units"], num_videos: int
) -> Ratio:
    """Returns the mean of values over units; `video` is the index of the video that each unit belongs to."""
    # `astype`, because bincount of an empty array is not float.
    sums = np.bincount(video, weights=values, minlength=num_videos)
    return Ratio(sums.astype(float), np.bincount(video, minlength=num_videos).astype(float))


def quotient_ratio(dividend: Ratio, divisor: Ratio) -> Ratio:
    """Returns the quotient of two means over the same units."""
    return Ratio(dividend.numerator, divisor.numerator)


def log_rank(ranks: Float[np.ndarray, " units"], gallery_size: int) -> Float[np.ndarray, " units"]:
    """Returns log2(1 + rank); a clip without embedding gets the last rank."""
    return np.log2(1 + np.minimum(ranks, gallery_size))


def average_overlap(
    first: Int[np.ndarray, "N depth"], second: Int[np.ndarray, "N depth"], depth: int = ANSWER_DEPTH
) -> Float[np.ndarray, " N"]:
    """Returns AO@depth of two ranked lists: the mean over d = 1 ... depth of the overlap of their first d items.

    If the gallery has fewer clips, `depth` is their number. Equal lists give 1, disjoint lists 0; agreement at the top
    counts more than agreement further down.

    Source: Webber, Moffat and Zobel, "A similarity measure for indefinite rankings", ACM TOIS 28(4), 2010.
    """
    both = _both(first, second, depth)
    length = np.minimum((first[:, :depth] >= 0).sum(1), (second[:, :depth] >= 0).sum(1))
    overlap = both.cumsum(1).cumsum(2)
    depths = np.arange(1, both.shape[1] + 1)
    shares = overlap[:, depths - 1, depths - 1] / depths
    counted = depths <= length[:, None]
    return (shares * counted).sum(1) / np.maximum(length, 1)


def jaccard(
    first: Int[np.ndarray, "N depth"], second: Int[np.ndarray, "N depth"], depth: int = ANSWER_DEPTH
) -> Float[np.ndarray, " N"]:
    """Returns Jaccard@depth of two lists: the size of the intersection of their items over the size of the union."""
    shared = _both(first, second, depth).sum((1, 2))
    return shared / np.maximum((first[:, :depth] >= 0).sum(1) + (second[:, :depth] >= 0).sum(1) - shared, 1)


def _both(first: np.ndarray, second: np.ndarray, depth: int) -> np.ndarray:
    """Returns (N, depth, depth): whether the i-th item of the first list is the j-th item of the second."""
    first, second = first[:, :depth], second[:, :depth]
    return (first[:, :, None] == second[:, None, :]) & (first >= 0)[:, :, None]


@dataclass(frozen=True)
class VersionMetrics:
    """Metrics of sets of queries with one meaning: per clip the reference caption and its versions."""

    num_clips: int
    num_versions: int
    """Number of versions, not counting the references."""
    clean: dict[int, Ratio]
    """k -> share of reference captions whose clip is among the first k."""
    worst_case: dict[int, Ratio]
    """k -> share of clips that are among the first k for EVERY query of their set."""
    best_case: dict[int, Ratio]
    """k -> share of clips that are among the first k for at least one query of their set."""
    flip_rate: Ratio
    """Share of versions of which R@1 is another than their reference's, in either direction; clips count alike."""
    dispersion: Ratio
    """Standard deviation of log2(1 + rank) over the queries of a set, mean over clips."""
    spread: Float[np.ndarray, " clips"]
    """Standard deviation of log2(1 + rank) for each clip."""
    overlap: Ratio
    """AO@10 of a version with its reference, mean over clips."""
    jaccard: Ratio
    consistent: dict[int, Ratio]
    """k -> correct-and-consistent@k: share of versions for which they and their reference both have the clip in the first k.

    A collapsed model, which retrieves the same clips for every query, has an AO of 1, but is hardly ever correct."""


def compute_version_metrics(
    answers: Answers,
    versions: Int[np.ndarray, " N"],
    reference: Int[np.ndarray, " N"],
    clip: Int[np.ndarray, " Q"],
    video: Int[np.ndarray, " Q"],
) -> VersionMetrics:
    """Computes the metrics of versions and their references.

    Args:
        answers: ranks and top clips of all Q queries.
        versions: indices of the N queries that are versions; N > 0.
        reference: for each version, the index of its reference query.
        clip: gallery index of the clip of every query.
        video: index of the video of every query, from 0.
    """
    num_videos, gallery_size = int(video.max()) + 1, len(answers.available)
    originals = np.unique(reference)
    members = np.concatenate([originals, versions])
    clips, of_version = np.unique(clip[versions], return_inverse=True)
    of_member = np.searchsorted(clips, clip[members])
    video_of_clip = np.zeros(len(clips), dtype=np.int64)
    video_of_clip[of_version] = video[versions]

    def over_clips(values: np.ndarray) -> Ratio:
        return mean_ratio(values, video_of_clip, num_videos)

    def mean_of_clip(values: np.ndarray) -> np.ndarray:
        return np.bincount(of_version, weights=values) / np.bincount(of_version)

    logs = log_rank(answers.ranks[members], gallery_size)
    size = np.bincount(of_member)
    mean = np.bincount(of_member, weights=logs) / size
    spread = np.sqrt(np.bincount(of_member, weights=(logs - mean[of_member]) ** 2) / size)
    hit = {k: (answers.hits(versions, k), answers.hits(reference, k)) for k in CUTOFFS}
    # If one order breaks the ties of all versions, all are found with the smallest of their probabilities, any with the
    # largest.
    extremes = {k: _extremes_of(answers.hits(members, k), of_member) for k in CUTOFFS}
    lists = answers.top[versions], answers.top[reference]
    return VersionMetrics(
        num_clips=len(clips),
        num_versions=len(versions),
        clean={k: mean_ratio(answers.hits(originals, k), video[originals], num_videos) for k in CUTOFFS},
        worst_case={k: over_clips(extremes[k][0]) for k in CUTOFFS},
        best_case={k: over_clips(extremes[k][1]) for k in CUTOFFS},
        flip_rate=over_clips(mean_of_clip(np.abs(hit[1][0] - hit[1][1]))),
        dispersion=over_clips(spread),
        spread=spread,
        overlap=over_clips(mean_of_clip(average_overlap(*lists))),
        jaccard=over_clips(mean_of_clip(jaccard(*lists))),
        consistent={k: over_clips(mean_of_clip(np.minimum(*hit[k]))) for k in CUTOFFS},
    )


@dataclass(frozen=True)
class StyleMetrics:
    """Metrics of the queries in one style and of their references; means are over queries."""

    num_queries: int
    num_cut: int
    """Queries that are longer than the model reads."""
    num_clips: int
    recall: dict[int, Ratio]
    reference_recall: dict[int, Ratio]
    change: dict[int, Ratio]
    """k -> R@k of the style minus R@k of the reference captions of the same clips, between -1 and 1."""
    relative: Ratio
    """Relative robustness: R@1 of the style / R@1 of the references = 1 - (R_reference - R_style) / R_reference."""
    mrr: Ratio
    """Mean reciprocal rank; a clip without embedding counts 0."""
    median_rank: float
    hubness: float
    """Skewness of the retrieval counts, see `hubness`."""
    overlap: Ratio
    """AO@10 of a query with its reference."""
    first_kept: Ratio
    """Share of queries whose first answer is the first answer of their reference, right or wrong."""


def compute_style_metrics(
    answers: Answers,
    queries: Int[np.ndarray, " N"],
    reference: Int[np.ndarray, " N"],
    clip: Int[np.ndarray, " Q"],
    video: Int[np.ndarray, " Q"],
) -> StyleMetrics:
    """Computes the metrics of queries in one style; the arguments are those of `compute_version_metrics`."""
    num_videos, gallery_size = int(video.max()) + 1, len(answers.available)

    def over_queries(values: np.ndarray) -> Ratio:
        return mean_ratio(values, video[queries], num_videos)

    ranks = answers.ranks[queries]
    recall = {k: over_queries(answers.hits(queries, k)) for k in CUTOFFS}
    reference_recall = {k: over_queries(answers.hits(reference, k)) for k in CUTOFFS}
    return StyleMetrics(
        num_queries=len(queries),
        num_cut=int(answers.cut[queries].sum()),
        num_clips=len(np.unique(clip[queries])),
        recall=recall,
        reference_recall=reference_recall,
        change={k: over_queries(answers.hits(queries, k) - answers.hits(reference, k)) for k in CUTOFFS},
        relative=quotient_ratio(recall[1], reference_recall[1]),
        mrr=over_queries(1 / ranks),
        median_rank=float(np.median(np.minimum(ranks, gallery_size))),
        hubness=hubness(answers.top[queries], answers.available),
        overlap=over_queries(average_overlap(answers.top[queries], answers.top[reference])),
        first_kept=over_queries(answers.top[queries, 0] == answers.top[reference, 0]),
    )


def _extremes_of(
    values: Float[np.ndarray, " units"], group: Int[np.ndarray, " units"]
) -> tuple[Float[np.ndarray, " groups"], Float[np.ndarray, " groups"]]:
    """Returns the smallest and the largest value of each group; groups are numbered from 0 and not empty."""
    number = int(group.max()) + 1
    smallest, largest = np.full(number, np.inf), np.full(number, -np.inf)
    np.minimum.at(smallest, group, values)
    np.maximum.at(largest, group, values)
    return smallest, largest


def hubness(top: Int[np.ndarray, "N depth"], available: Bool[np.ndarray, " clips"]) -> float:
    """Returns the skewness of N_10, the number of queries that have a clip in their top 10, over the available clips.

    It is high if a few clips, the hubs, are retrieved for most queries. It is NaN if all clips are retrieved equally often.
    Source: Radovanović, Nanopoulos and Ivanović, "Hubs in space", JMLR 11, 2010.
    """
    from scipy.stats import skew

    counts = np.bincount(top[:, :ANSWER_DEPTH][top[:, :ANSWER_DEPTH] >= 0], minlength=len(available))[available]
    return float("nan") if counts.min() == counts.max() else float(skew(counts))
