import numpy as np
import pytest
from scipy.stats import sem, t, ttest_1samp

from waver.evaluation.intervals import crossed_interval, holm, t_interval


def test_t_interval_is_that_of_scipy():
    values = [71.2, 70.4, 73.9, 72.2, 71.8]
    found = t_interval(values)
    assert (found.low, found.high) == pytest.approx(t.interval(0.95, 4, loc=np.mean(values), scale=sem(values)))
    assert (found.mean, found.degrees_of_freedom) == pytest.approx((np.mean(values), 4))
    assert t_interval(np.array(values) - 70).p_value == pytest.approx(ttest_1samp(values, 70).pvalue)


def test_a_single_value_has_no_interval():
    found = t_interval([3.0])
    assert found.mean == 3
    assert np.isnan([found.low, found.high, found.p_value]).all()


def test_equal_values_have_no_width():
    found = crossed_interval(np.full((5, 5, 20), 0.25))
    assert (found.low, found.mean, found.high) == (0.25, 0.25, 0.25)
    assert found.p_value == 0
    assert t_interval([0.0, 0.0, 0.0]).p_value == 1


def test_variance_over_seeds_and_clips_by_hand():
    """Seeds plus clips less the residual of a two-way table, all of the mean."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=(4, 1)) + 3 * rng.normal(size=(1, 30)) + rng.normal(size=(4, 30))
    seeds, clips = values.mean(axis=1), values.mean(axis=0)
    residual = values - seeds[:, None] - clips[None] + values.mean()
    parts = np.array([seeds.var(ddof=1) / 4, clips.var(ddof=1) / 30, -(residual**2).sum() / (3 * 29) / (4 * 30)])
    found = crossed_interval(values)
    assert parts.sum() > parts.max(), "the case is not that of the floor"
    assert found.standard_error == pytest.approx(np.sqrt(parts.sum()))
    assert found.degrees_of_freedom == pytest.approx(parts.sum() ** 2 / (parts**2 / [3, 29, 87]).sum())


def test_variance_of_three_axes_by_hand():
    shape = (3, 4, 5)
    rng = np.random.default_rng(0)
    values = rng.normal(size=shape) + sum(
        3 * rng.normal(size=np.where(np.arange(3) == axis, shape, 1)) for axis in range(3)
    )
    r, s, c = (values.mean(axis=axes) for axes in ((1, 2), (0, 2), (0, 1)))
    rs, rc, sc = (values.mean(axis=axis) for axis in (2, 1, 0))
    mean = values.mean()
    squares = {
        "r": 20 * ((r - mean) ** 2).sum() / 2,
        "s": 15 * ((s - mean) ** 2).sum() / 3,
        "c": 12 * ((c - mean) ** 2).sum() / 4,
        "rs": 5 * ((rs - r[:, None] - s[None] + mean) ** 2).sum() / 6,
        "rc": 4 * ((rc - r[:, None] - c[None] + mean) ** 2).sum() / 8,
        "sc": 3 * ((sc - s[:, None] - c[None] + mean) ** 2).sum() / 12,
    }
    cells = rs[:, :, None] + rc[:, None] + sc[None] - r[:, None, None] - s[None, :, None] - c + mean
    squares["rsc"] = ((values - cells) ** 2).sum() / 24
    variance = sum((1, -1)[len(name) == 2] * square for name, square in squares.items()) / 60
    assert crossed_interval(values).standard_error == pytest.approx(np.sqrt(variance))


def test_variance_is_never_below_that_of_an_axis():
    """Cells that cancel out over clips make the estimate without bias negative."""
    checkers = np.indices((4, 4)).sum(axis=0) % 2 + np.array([0.0, 0.02, 0.0, 0.0])[:, None]
    found = crossed_interval(checkers)
    assert found.standard_error == pytest.approx(sem(checkers.mean(axis=1)))
    assert found.degrees_of_freedom == 3


def test_a_gap_is_refused():
    with pytest.raises(AssertionError, match="every cell"):
        crossed_interval(np.array([[1.0, np.nan], [0.0, 1.0]]))


def test_seeds_that_share_their_clips_are_not_taken_as_independent():
    """The error of few clips does not shrink with more seeds."""
    clips = np.random.default_rng(0).normal(size=(1, 40))
    many = crossed_interval(np.repeat(clips, 50, axis=0))
    assert many.standard_error == pytest.approx(sem(clips[0]))


SOURCES = {
    "seeds": ((5, 60), {(0,): 1.0, (0, 1): 1.0}),
    "seeds and clips": ((5, 60), {(0,): 0.3, (1,): 1.0, (0, 1): 1.0}),
    "runs": ((5, 5, 60), {(0, 1): 0.3, (0, 1, 2): 1.0}),
    "rotations, seeds and clips": ((5, 5, 60), {(0,): 0.1, (1,): 0.1, (2,): 0.8, (0, 2): 0.5, (0, 1, 2): 1.0}),
    "residual": ((5, 5, 60), {(0, 1, 2): 1.0}),
}


@pytest.mark.parametrize("name", SOURCES)
def test_intervals_cover_as_often_as_they_say(name):
    """Nominal 95 %; of 400 simulations, the standard error of the coverage is 1.1 points. More is allowed, less is not."""
    shape, sources = SOURCES[name]
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        values = sum(
            deviation * rng.standard_normal([size if axis in axes else 1 for axis, size in enumerate(shape)])
            for axes, deviation in sources.items()
        )
        found = crossed_interval(np.broadcast_to(values, shape))
        covered += found.low <= 0 <= found.high
    assert 0.925 <= covered / 400 <= 0.995


def test_holm_by_hand():
    assert holm(np.array([0.01, 0.04, 0.03])) == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([0.9, 0.8])) == pytest.approx([1, 1])
    assert holm(np.array([0.02])) == pytest.approx([0.02])
