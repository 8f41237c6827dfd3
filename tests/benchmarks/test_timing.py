import time

import pytest

from waver.benchmarks.timing import Timing, format_number, format_spread, ratios, take_turns


def test_ways_take_turns_after_a_turn_that_is_not_measured():
    order = []
    found = take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert order == ["a", "b"] * 4
    assert [len(timing.wall_s) for timing in found.values()] == [3, 3]
    take_turns({"a": lambda: order.append("c")}, 2, warm_up=False)
    assert order[8:] == ["c", "c"]


def test_sleep_takes_wall_time_and_no_processor_time():
    found = take_turns({"sleep": lambda: time.sleep(0.05), "work": lambda: sum(range(10**6))}, 5)
    assert found["sleep"].wall_s[0] >= 0.05 > 10 * found["sleep"].cpu_s[0]
    # In some turns others may use the cores, and the work waits.
    shares = [cpu / wall for cpu, wall in zip(found["work"].cpu_s, found["work"].wall_s, strict=True)]
    assert max(shares) > 0.5 or min(found["work"].wall_s) > 0.05


def test_ratios_are_within_turns():
    assert ratios(Timing([4.0, 9.0]), Timing([2.0, 3.0])) == (2.0, 3.0)


@pytest.mark.parametrize(
    ("values", "expected"),
    [((1.2345,), "1.23"), ((3.0, 1.0, 2.5), "2.5 (1 to 3)"), ((2300.4, 999.6), "1,650 (1,000 to 2,300)")],
)
def test_a_spread_is_the_median_and_the_range(values, expected):
    assert format_spread(values) == expected


def test_numbers_have_three_digits():
    assert [format_number(value) for value in (0.012345, 12.345, 123.45, 0.0)] == ["0.0123", "12.3", "123", "0"]
