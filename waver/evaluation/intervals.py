"""Confidence intervals of means over few seeds, and over crossed seeds, rotations and clips; correction of p-values.

Of few values, a percentile bootstrap is too narrow: with 5 seeds, its nominal 95 % cover about 84 %. Student's t is exact
for normal values. Where a mean has several sources of chance at once, such as seeds and clips, each of them is a crossed
random effect: all seeds are tested on the same clips. The variance of the mean is then a sum of mean squares.

Sources: Satterthwaite, "An approximate distribution of estimates of variance components", Biometrics Bulletin 2(6), 1946;
Cornfield and Tukey, "Average values of mean squares in factorials", Annals of Mathematical Statistics 27(4), 1956.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations

import numpy as np
from jaxtyping import Float

LEVEL = 0.95


@dataclass(frozen=True)
class MeanInterval:
    """A mean with its 95 % confidence interval, in the unit of the values."""

    mean: float
    standard_error: float
    """Standard error of the mean; NaN for a single value."""
    degrees_of_freedom: float
    """Degrees of freedom of Student's t; 0 for a single value."""

    @property
    def low(self) -> float:
        """Lower end of the interval; NaN for a single value."""
        return self.mean - self._half_width

    @property
    def high(self) -> float:
        """Upper end of the interval; NaN for a single value."""
        return self.mean + self._half_width

    @property
    def p_value(self) -> float:
        """Two-sided p-value of the hypothesis that the true mean is 0; NaN for a single value."""
        from scipy.stats import t

        if not self.standard_error:
            return 0.0 if self.mean else 1.0
        return float(2 * t.sf(abs(self.mean) / self.standard_error, self.degrees_of_freedom))

    @property
    def _half_width(self) -> float:
        from scipy.stats import t

        return float(t.ppf((1 + LEVEL) / 2, self.degrees_of_freedom)) * self.standard_error


def t_interval(values: Float[np.ndarray, " seeds"] | Sequence[float]) -> MeanInterval:
    """Returns the mean of independent values with Student's t interval.

    Args:
        values: one value for each seed, at least one. Of paired runs, the differences.
    """
    return crossed_interval(np.asarray(values, dtype=float))


def crossed_interval(values: Float[np.ndarray, "..."]) -> MeanInterval:
    """Returns the mean over all axes with an interval for new levels of every axis at once.

    Each axis is a source of chance, and every level of an axis meets every level of the others: rotations of the styles,
    seeds and clips. Its variance is the sum over sets of axes, of mean square / number of values, with a plus for sets of
    one or three axes and a minus for sets of two. (With seeds and clips: seeds plus clips less residual.) This estimate has
    no bias but can be too small by chance, even negative. It is therefore at least the variance by the largest single axis,
    which never exceeds the true one in expectation. The degrees of freedom are Satterthwaite's.

    Args:
        values: (seeds,), (seeds, clips) or (rotations, seeds, clips), without gaps. Of two ways of training that share
            them, the differences. An axis of one level counts as fixed: the interval then holds for this level alone.
    """
    values = np.asarray(values, dtype=float)
    assert np.isfinite(values).all(), "crossed intervals need a value in every cell"
    values, mean = np.squeeze(values), float(values.mean())
    if values.ndim == 0:
        return MeanInterval(mean, float("nan"), 0.0)
    terms = list(_variance_terms(values))
    variance = sum(term for _, term, _ in terms)
    largest, degrees = max((term, degrees) for axes, term, degrees in terms if len(axes) == 1)
    if variance > largest:
        degrees = variance**2 / sum(term**2 / degrees for _, term, degrees in terms)
    return MeanInterval(mean, float(np.sqrt(max(variance, largest))), float(degrees))


def _variance_terms(values: np.ndarray) -> Iterator[tuple[tuple[int, ...], float, int]]:
    """Yields, for each set of axes, the axes, their signed part of the variance of the mean, and its degrees of freedom."""
    every = range(values.ndim)
    for axes in chain.from_iterable(combinations(every, size) for size in range(1, values.ndim + 1)):
        others = tuple(axis for axis in every if axis not in axes)
        effect = values.mean(axis=others, keepdims=True)
        for axis in axes:  # removes the means over each of the axes, so that their interaction is left
            effect = effect - effect.mean(axis=axis, keepdims=True)
        degrees = int(np.prod([values.shape[axis] - 1 for axis in axes]))
        # The mean square is the sum of squares over all values, each effect repeated over the other axes, / degrees.
        mean_square_of_mean = float((effect**2).sum()) / effect.size / degrees
        yield axes, (-1) ** (len(axes) + 1) * mean_square_of_mean, degrees


def holm(p_values: Float[np.ndarray, " tests"]) -> Float[np.ndarray, " tests"]:
    """Returns p-values corrected for multiple tests, which control the family-wise error rate.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6(2), 1979.
    """
    order = np.argsort(p_values, kind="stable")
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return adjusted
