"""Intervals and permutation tests over whole videos, because queries of one video are correlated.

Intervals are percentiles of a bootstrap. Metrics of few videos, such as those of a rare style, have Student's t interval of
the linearised metric instead: the bootstrap would be too narrow, and some of its resamples would have none of the videos.
"""

import numpy as np
from jaxtyping import Int

from waver.evaluation.intervals import LEVEL, t_interval
from waver.evaluation.robustness.measures import Ratio

FEW_VIDEOS = 30
"""Number of videos below which the interval of a metric is not a bootstrap's."""


def draw_bootstrap(num_videos: int, *, resamples: int, seed: int) -> Int[np.ndarray, "resamples videos"]:
    """Draws how often each video is in each bootstrap resample. Metrics computed from the same draws are paired."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(num_videos, np.full(num_videos, 1 / num_videos), size=resamples)


def interval(ratio: Ratio, bootstrap: Int[np.ndarray, "resamples videos"]) -> tuple[float, float]:
    """Returns the 95 % interval of a metric; NaN if it has one video, or few videos that all have the same value."""
    if _num_videos(ratio) < FEW_VIDEOS:
        return _t_interval(ratio.value, _influences(ratio)[ratio.denominator > 0])
    return _percentiles(_resampled(ratio, bootstrap))


def difference_interval(
    first: Ratio, second: Ratio, bootstrap: Int[np.ndarray, "resamples videos"]
) -> tuple[float, float]:
    """Returns the 95 % interval of `second - first`, two metrics of the same videos; NaN as in `interval`."""
    if _num_videos(first) < FEW_VIDEOS:
        influences = _influences(second) - _influences(first)
        return _t_interval(second.value - first.value, influences[first.denominator > 0])
    return _percentiles(_resampled(second, bootstrap) - _resampled(first, bootstrap))


def permutation_p(first: Ratio, second: Ratio, *, resamples: int, seed: int) -> float:
    """Returns the two-sided p-value of a paired permutation test; null hypothesis: the models are exchangeable per video.

    The statistic is the difference of the two metrics, which must be means over the same units of the same videos. Each
    resample exchanges the models for every video with probability 1/2.
    """
    from scipy.stats import permutation_test

    assert np.array_equal(first.denominator, second.denominator), "not the same units"
    # Videos with equal metrics never change the statistic; with a single other one, both permutations are equally extreme.
    different = first.numerator != second.numerator
    if different.sum() < 2:
        return 1.0

    result = permutation_test(
        (first.numerator[different], second.numerator[different]),
        lambda one, other, axis: (other - one).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=256,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def _num_videos(ratio: Ratio) -> int:
    """Returns the number of videos that a metric depends on."""
    return int(np.count_nonzero(ratio.denominator))


def _influences(ratio: Ratio) -> np.ndarray:
    """Returns each video's share in the error of a metric: the first-order term of its Taylor series, which sums to 0."""
    total = ratio.denominator.sum()
    return (ratio.numerator - ratio.value * ratio.denominator) / total if total else np.zeros_like(ratio.denominator)


def _t_interval(value: float, influences: np.ndarray) -> tuple[float, float]:
    """Returns the t interval of a metric from the influences of its videos.

    Few equal videos do not tell how much others vary, so they have no interval. An interval can reach beyond 0 and 100 %.

    Source: Cochran, "Sampling Techniques", 3rd edition, 1977, section 6.3.
    """
    if len(influences) < 2 or np.allclose(influences, 0, atol=1e-12):
        return float("nan"), float("nan")
    found = t_interval(value + len(influences) * influences)
    return found.low, found.high


def _resampled(ratio: Ratio, bootstrap: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return (bootstrap @ ratio.numerator) / (bootstrap @ ratio.denominator)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    if not np.isfinite(values).all():
        return float("nan"), float("nan")
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
