import pytest

from waver.search.serving.ranges import UnsatisfiableRangeError, parse_range


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-0", range(0, 1)),
        ("bytes=10-19", range(10, 20)),
        ("BYTES = 90 - ", range(90, 100)),
        ("bytes=90-1000", range(90, 100)),
        ("bytes=-10", range(90, 100)),
        ("bytes=-1000", range(100)),
        (f"bytes=-{'9' * 5000}", range(100)),
        (f"bytes={'0' * 5000}5-5", range(5, 6)),
        # of another form, or of several parts: the whole file
        ("bytes=", None),
        ("bytes=-", None),
        ("bytes=20-10", None),
        ("bytes=0-1,5-6", None),
        ("bytes=a-b", None),
        ("bytes=1e3-", None),
        ("bytes=--5", None),
        ("bytes=٣-٤", None),
        ("frames=0-1", None),
    ],
)
def test_a_range_is_what_the_standard_says(header, expected):
    assert parse_range(header, 100) == expected


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0", f"bytes={'9' * 5000}-"])
def test_a_range_after_the_end_cannot_be_satisfied(header):
    with pytest.raises(UnsatisfiableRangeError):
        parse_range(header, 100)


def test_an_empty_file_has_no_ranges():
    assert parse_range(None, 0) is None
    for header in ("bytes=0-", "bytes=-5"):
        with pytest.raises(UnsatisfiableRangeError):
            parse_range(header, 0)
