import pytest

from waver.benchmarks.scaling import fit_line


@pytest.mark.parametrize(("fixed", "slope"), [(2.0, 1e-3), (0.0, 5e-6), (3.0, 0.0)])
def test_a_line_is_found(fixed, slope):
    counts = [1_000, 10_000, 100_000]
    found = fit_line(counts, [fixed + slope * count for count in counts])
    assert found == pytest.approx((fixed, slope), rel=1e-6, abs=1e-9)


def test_neither_part_is_negative():
    fixed, slope = fit_line([1, 2, 4], [1.0, 3.0, 9.0])
    assert fixed == 0
    assert slope > 0
    fixed, slope = fit_line([1, 2, 4], [3.0, 2.0, 1.0])
    assert (fixed, slope) == (2.0, 0.0)
