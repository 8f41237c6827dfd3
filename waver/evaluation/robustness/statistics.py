"""Bootstrap intervals and permutation tests that resample whole videos, because queries of one video are correlated."""

import numpy as np
from jaxtyping import Float, Int

from waver.evaluation.robustness.measures import Ratio

LEVEL = 0.95


def draw_bootstrap(num_videos: int, *, resamples: int, seed: int) -> Int[np.ndarray, "resamples videos"]:
    """Draws how often each video is in each bootstrap resample. Metrics computed from the same draws are paired."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(num_videos, np.full(num_videos, 1 / num_videos), size=resamples)


def interval(ratio: Ratio, bootstrap: Int[np.ndarray, "resamples videos"]) -> tuple[float, float]:
    """Returns the 95 % percentile interval of a metric; NaN if its denominator is 0 in some resample."""
    return _percentiles(_resampled(ratio, bootstrap))


def difference_interval(
    first: Ratio, second: Ratio, bootstrap: Int[np.ndarray, "resamples videos"]
) -> tuple[float, float]:
    """Returns the 95 % percentile interval of `second - first`, two metrics of the same videos."""
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


def holm(p_values: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """Returns p-values corrected for multiple tests, which control the family-wise error rate.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6(2), 1979.
    """
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted


def _resampled(ratio: Ratio, bootstrap: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return (bootstrap @ ratio.numerator) / (bootstrap @ ratio.denominator)


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    if not np.isfinite(values).all():
        return float("nan"), float("nan")
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)
