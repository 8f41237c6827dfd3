import numpy as np
import pytest
from scipy.stats import binomtest, sem, t

from waver.evaluation.robustness.measures import Ratio, mean_ratio
from waver.evaluation.robustness.statistics import difference_interval, draw_bootstrap, interval, permutation_p


def of(values):
    """A figure with one unit a video."""
    values = np.asarray(values, dtype=float)
    return mean_ratio(values, np.arange(len(values)), len(values))


def test_draws_are_videos_with_replacement_and_the_same_for_a_seed():
    bootstrap = draw_bootstrap(30, resamples=200, seed=1)
    assert bootstrap.shape == (200, 30)
    assert (bootstrap.sum(1) == 30).all()
    assert np.array_equal(bootstrap, draw_bootstrap(30, resamples=200, seed=1))
    assert not np.array_equal(bootstrap, draw_bootstrap(30, resamples=200, seed=2))


def test_interval_of_a_mean_is_about_that_of_the_normal_distribution():
    values = np.random.default_rng(0).random(400) < 0.3
    low, high = interval(of(values), draw_bootstrap(400, resamples=4000, seed=0))
    error = np.sqrt(values.mean() * (1 - values.mean()) / 400)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.006)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.006)


def test_whole_videos_are_drawn():
    """Ten equal queries of a video are worth one."""
    rng = np.random.default_rng(0)
    found = rng.random(100) < 0.5
    once = interval(of(found), draw_bootstrap(100, resamples=2000, seed=0))
    ten_times = mean_ratio(np.repeat(found, 10), np.repeat(np.arange(100), 10), 100)
    assert interval(ten_times, draw_bootstrap(100, resamples=2000, seed=0)) == pytest.approx(once)


def test_difference_is_paired():
    """Two models that differ by a constant differ by it in every draw, however much videos vary."""
    hard = np.random.default_rng(0).random(50)
    bootstrap = draw_bootstrap(50, resamples=500, seed=0)
    assert difference_interval(of(hard), of(hard + 0.1), bootstrap) == pytest.approx((0.1, 0.1))


def test_a_metric_of_one_video_or_of_few_equal_ones_has_no_interval():
    bootstrap = draw_bootstrap(120, resamples=200, seed=0)
    for numerator, videos in ((1.0, 1), (0.0, 5), (1.0, 5)):
        inside = np.arange(120) < videos
        rare = Ratio(numerator * inside, inside.astype(float))
        assert all(np.isnan(end) for end in interval(rare, bootstrap))
    nothing = Ratio(np.zeros(120), np.zeros(120))
    assert all(np.isnan(end) for end in interval(nothing, bootstrap))


def test_a_style_of_few_videos_has_the_interval_of_their_mean():
    """5 videos of 120: a bootstrap would draw none of them in some resample."""
    found, inside = np.array([1.0, 0, 1, 1, 0]), np.arange(120) < 5
    rare = Ratio(np.pad(found, (0, 115)), inside.astype(float))
    expected = t.interval(0.95, 4, loc=found.mean(), scale=sem(found))
    assert interval(rare, draw_bootstrap(120, resamples=200, seed=0)) == pytest.approx(expected)


def test_difference_of_few_videos_is_paired():
    first, change, inside = np.array([0.2, 0.9, 0.4, 0.7]), np.array([0.1, 0.0, 0.2, 0.1]), np.arange(60) < 4
    one, other = (Ratio(np.pad(v, (0, 56)), inside.astype(float)) for v in (first, first + change))
    expected = t.interval(0.95, 3, loc=change.mean(), scale=sem(change))
    assert difference_interval(one, other, draw_bootstrap(60, resamples=200, seed=0)) == pytest.approx(expected)


def test_interval_of_few_videos_covers_as_often_as_it_says():
    """Videos with one to three queries each; the metric is the mean over queries."""
    rng, covered, bootstrap = np.random.default_rng(0), 0, draw_bootstrap(8, resamples=100, seed=0)
    for _ in range(600):
        sizes = rng.integers(1, 4, 8).astype(float)
        low, high = interval(Ratio(sizes * (0.5 + 0.1 * rng.standard_normal(8)), sizes), bootstrap)
        covered += low <= 0.5 <= high
    assert 0.91 < covered / 600 < 0.98


def test_permutation_test_is_the_sign_test_where_differences_are_alike():
    first = np.zeros(12)
    second = np.array([1] * 9 + [-1] * 1 + [0, 0], dtype=float)
    p = permutation_p(of(first), of(second), resamples=9999, seed=0)
    # With 2^10 sign patterns scipy counts all of them: it is exact.
    assert p == pytest.approx(binomtest(9, 10).pvalue)


def test_permutation_test_of_equal_models_says_one():
    values = np.array([1.0, 0, 1, 1])
    assert permutation_p(of(values), of(values), resamples=999, seed=0) == 1
    assert permutation_p(of(values), of([1.0, 1, 1, 1]), resamples=999, seed=0) == 1, "one video says nothing"


def test_permutation_test_finds_a_clear_difference_and_does_not_find_noise():
    rng = np.random.default_rng(0)
    one = (rng.random(300) < 0.5).astype(float)
    other = (rng.random(300) < 0.5).astype(float)
    better = np.maximum(one, rng.random(300) < 0.3)
    assert permutation_p(of(one), of(better), resamples=999, seed=0) <= 0.002
    assert permutation_p(of(one), of(other), resamples=999, seed=0) > 0.05


def test_different_units_are_not_compared():
    with pytest.raises(AssertionError, match="units"):
        permutation_p(Ratio(np.ones(2), np.ones(2)), Ratio(np.ones(2), np.array([1.0, 2.0])), resamples=99, seed=0)
