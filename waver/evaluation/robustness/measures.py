"""What the answers to many versions of a query say: figures of each style, of each clip's versions together, and of hubs.

Every figure with an interval is a mean (or a quotient of two means) over units that belong to videos, and is kept as the
sums of each video: whoever draws videos again, as a bootstrap does, has the figure of the draw from them.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

CUTOFFS = (1, 5, 10)
ANSWER_DEPTH = 10
"""Answers of a query that are compared with those of another."""


@dataclass(frozen=True)
class Answers:
    """What one model answered to Q queries."""

    ranks: Float[np.ndarray, " Q"]
    """Of each query's clip, from 1; inf where the clip has no embedding."""
    top: Int[np.ndarray, "Q depth"]
    """Numbers of the best clips of the gallery, best first; -1 where the gallery has no more."""
    available: Bool[np.ndarray, " clips"]
    """Which clips of the gallery have an embedding: nobody can be answered with the others."""


@dataclass(frozen=True)
class Ratio:
    """A mean over units, or a quotient of sums, by video: value = numerator.sum() / denominator.sum()."""

    numerator: Float[np.ndarray, " videos"]
    denominator: Float[np.ndarray, " videos"]

    @property
    def value(self) -> float:
        """Of all videos; NaN where there is nothing to divide by."""
        below = self.denominator.sum()
        return float(self.numerator.sum() / below) if below else float("nan")


def mean_ratio(
    values: Float[np.ndarray, " units"] | Bool[np.ndarray, " units"], video: Int[np.ndarray, " units"], num_videos: int
) -> Ratio:
    """The mean of values over units, each of which belongs to a video."""
    sums = np.bincount(video, weights=values, minlength=num_videos)
    return Ratio(sums.astype(float), np.bincount(video, minlength=num_videos).astype(float))  # of nothing: not float


def quotient_ratio(above: Ratio, below: Ratio) -> Ratio:
    """The quotient of two means over the same units."""
    return Ratio(above.numerator, below.numerator)


def is_hit(ranks: Float[np.ndarray, " units"], k: int) -> Bool[np.ndarray, " units"]:
    """Whether a rank is among the first k, as R@k counts it: a tie for the last place is outside."""
    return ranks <= k


def log_rank(ranks: Float[np.ndarray, " units"], gallery_size: int) -> Float[np.ndarray, " units"]:
    """log2(1 + rank), a miss in the last place."""
    return np.log2(1 + np.minimum(ranks, gallery_size))


def average_overlap(
    first: Int[np.ndarray, "N depth"], second: Int[np.ndarray, "N depth"], depth: int = ANSWER_DEPTH
) -> Float[np.ndarray, " N"]:
    """AO@depth of two lists: the mean over d = 1 ... depth of the share of their first d answers that both have.

    Where the gallery has fewer answers, `depth` is their number. 1 for the same list, 0 for disjoint ones; agreement at the
    top counts more than further down. Source: Webber, Moffat and Zobel, "A similarity measure for indefinite rankings",
    ACM TOIS 28(4), 2010.
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
    """Jaccard@depth: answers that both lists have among those that at least one has."""
    shared = _both(first, second, depth).sum((1, 2))
    return shared / np.maximum((first[:, :depth] >= 0).sum(1) + (second[:, :depth] >= 0).sum(1) - shared, 1)


def _both(first: np.ndarray, second: np.ndarray, depth: int) -> np.ndarray:
    """[n, i, j]: whether the i-th answer of one list is the j-th of the other."""
    first, second = first[:, :depth], second[:, :depth]
    return (first[:, :, None] == second[:, None, :]) & (first >= 0)[:, :, None]


@dataclass(frozen=True)
class VersionMetrics:
    """Figures of sets of queries that mean the same, a set a clip: the reference captions and their versions."""

    num_clips: int
    num_versions: int
    """Without the references."""
    clean: dict[int, Ratio]
    """k -> share of the reference captions that find their clip in the first k."""
    worst_case: dict[int, Ratio]
    """k -> share of clips found by EVERY query of their set."""
    best_case: dict[int, Ratio]
    """k -> share of clips found by at least one query of their set."""
    flip_rate: Ratio
    """Share of versions of which R@1 is another than their reference's, in either direction; clips count alike."""
    dispersion: Ratio
    """Standard deviation of log2(1 + rank) over the queries of a clip's set, mean over clips."""
    spread: Float[np.ndarray, " clips"]
    """That standard deviation of each clip."""
    overlap: Ratio
    """AO@10 of a version with its reference; clips count alike."""
    jaccard: Ratio
    consistent: dict[int, Ratio]
    """k -> correct-and-consistent@k: share of versions for which both they and their reference find the clip in the first k.

    A collapsed model, which answers everything alike, has an AO of 1 and next to nothing of this."""


def compute_version_metrics(
    answers: Answers,
    versions: Int[np.ndarray, " N"],
    reference: Int[np.ndarray, " N"],
    clip: Int[np.ndarray, " Q"],
    video: Int[np.ndarray, " Q"],
) -> VersionMetrics:
    """Figures of versions and their references.

    Args:
        answers: to all queries.
        versions: queries; at least one.
        reference: for each of them the query that it is a version of.
        clip, video: of all queries; both are numbered from 0, and the gallery holds all clips.
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
    share_found = {k: np.bincount(of_member, weights=is_hit(answers.ranks[members], k)) / size for k in CUTOFFS}
    hit = {k: (is_hit(answers.ranks[versions], k), is_hit(answers.ranks[reference], k)) for k in CUTOFFS}
    lists = answers.top[versions], answers.top[reference]
    return VersionMetrics(
        num_clips=len(clips),
        num_versions=len(versions),
        clean={k: mean_ratio(is_hit(answers.ranks[originals], k), video[originals], num_videos) for k in CUTOFFS},
        worst_case={k: over_clips(share_found[k] == 1) for k in CUTOFFS},
        best_case={k: over_clips(share_found[k] > 0) for k in CUTOFFS},
        flip_rate=over_clips(mean_of_clip(hit[1][0] != hit[1][1])),
        dispersion=over_clips(spread),
        spread=spread,
        overlap=over_clips(mean_of_clip(average_overlap(*lists))),
        jaccard=over_clips(mean_of_clip(jaccard(*lists))),
        consistent={k: over_clips(mean_of_clip(hit[k][0] & hit[k][1])) for k in CUTOFFS},
    )


@dataclass(frozen=True)
class StyleMetrics:
    """Figures of the queries in one style, and of their references; a query is a unit."""

    num_queries: int
    num_clips: int
    recall: dict[int, Ratio]
    reference_recall: dict[int, Ratio]
    change: dict[int, Ratio]
    """k -> R@k of the style minus that of the same clips' reference captions; as a share."""
    relative: Ratio
    """Relative robustness: R@1 of the style / R@1 of the references, that is 1 - (R_reference - R_style) / R_reference."""
    mrr: Ratio
    """Mean reciprocal rank; a miss counts 0."""
    median_rank: float
    hubness: float
    """See `hubness`."""
    overlap: Ratio
    """AO@10 with the references."""
    first_kept: Ratio
    """Share of queries whose first answer is the first answer of their reference, right or wrong."""


def compute_style_metrics(
    answers: Answers,
    queries: Int[np.ndarray, " N"],
    reference: Int[np.ndarray, " N"],
    clip: Int[np.ndarray, " Q"],
    video: Int[np.ndarray, " Q"],
) -> StyleMetrics:
    """Figures of queries in one style; see `version_figures` for the arguments."""
    num_videos, gallery_size = int(video.max()) + 1, len(answers.available)

    def over_queries(values: np.ndarray) -> Ratio:
        return mean_ratio(values, video[queries], num_videos)

    ranks, originals = answers.ranks[queries], answers.ranks[reference]
    recall = {k: over_queries(is_hit(ranks, k)) for k in CUTOFFS}
    reference_recall = {k: over_queries(is_hit(originals, k)) for k in CUTOFFS}
    return StyleMetrics(
        num_queries=len(queries),
        num_clips=len(np.unique(clip[queries])),
        recall=recall,
        reference_recall=reference_recall,
        change={k: over_queries(is_hit(ranks, k).astype(float) - is_hit(originals, k)) for k in CUTOFFS},
        relative=quotient_ratio(recall[1], reference_recall[1]),
        mrr=over_queries(1 / ranks),
        median_rank=float(np.median(np.minimum(ranks, gallery_size))),
        hubness=hubness(answers.top[queries], answers.available),
        overlap=over_queries(average_overlap(answers.top[queries], answers.top[reference])),
        first_kept=over_queries(answers.top[queries, 0] == answers.top[reference, 0]),
    )


def hubness(top: Int[np.ndarray, "N depth"], available: Bool[np.ndarray, " clips"]) -> float:
    """Skewness of N_10, the number of queries in whose first 10 answers a clip stands, over the clips that can be answered.

    High where a few clips, the hubs, are answered to everything; NaN where all are answered equally often.
    Source: Radovanović, Nanopoulos and Ivanović, "Hubs in space", JMLR 11, 2010.
    """
    from scipy.stats import skew

    counts = np.bincount(top[:, :ANSWER_DEPTH][top[:, :ANSWER_DEPTH] >= 0], minlength=len(available))[available]
    return float("nan") if counts.min() == counts.max() else float(skew(counts))
