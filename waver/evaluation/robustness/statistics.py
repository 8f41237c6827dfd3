"""Intervals and tests over videos: queries of one video stand or fall together, so whole videos are drawn."""

import numpy as np
from jaxtyping import Float, Int

from waver.evaluation.robustness.measures import Ratio

LEVEL = 0.95


def draw_bootstrap(num_videos: int, *, resamples: int, seed: int) -> Int[np.ndarray, "resamples videos"]:
    """How often each video is in each resample of the bootstrap. Figures from the same draws are paired."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(num_videos, np.full(num_videos, 1 / num_videos), size=resamples)


def interval(ratio: Ratio, bootstrap: Int[np.ndarray, "resamples videos"]) -> tuple[float, float]:
    """Percentile interval of a figure, 95 %; NaN where nothing is left of it in some resample."""
    return _percentiles(_resampled(ratio, bootstrap))


def difference_interval(
    first: Ratio, second: Ratio, bootstrap: Int[np.ndarray, "resamples videos"]
) -> tuple[float, float]:
    """The same of `second - first`, two figures of the same videos."""
    return _percentiles(_resampled(second, bootstrap) - _resampled(first, bootstrap))


def permutation_p(first: Ratio, second: Ratio, *, resamples: int, seed: int) -> float:
    """Two-sided p of "the two models are exchangeable for every video", by a paired permutation test.

    The statistic is the difference of the two figures, which must be means over the same units of the same videos; each
    resample exchanges the models on a random half of the videos.
    """
    from scipy.stats import permutation_test

    assert np.array_equal(first.denominator, second.denominator), "not the same units"
    # Videos on which both agree change nothing, whatever is drawn; one alone is as far from 0 exchanged as not.
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
    """p-values corrected for the number of tests: the chance of even one false finding among them stays below the level.

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
