import pyarrow as pa
import pytest

from waver.data.segments import describe_segments


def describe(*segments):
    """Sentences on segments (start_s, end_s, length of the video), named c0, c1, ..."""
    starts, ends, lengths = zip(*segments, strict=True)
    names = [f"c{number}" for number in range(len(segments))]
    columns = {"start_s": pa.array(starts, pa.float64()), "end_s": pa.array(ends, pa.float64())}
    clips = pa.table({"clip_id": names, **columns})
    return describe_segments(clips, pa.table({"clip_id": names, "video_s": pa.array(lengths, pa.float64())}))


def test_segments_in_milliseconds_are_counted_together():
    """T12 of the list of cases that once were wrong: four different reasons for one mistake."""
    lengths = (3.0, 5.0, 7.0, 9.0)
    segments = [(0, 2500, length) for length in lengths] + [(1000, 2500 + length, length) for length in lengths]
    past, far = describe(*segments)
    assert past == (
        "4 of 8 segments lie past the end: milliseconds? Their videos are 3.0 to 9.0 s long, and c4 is 1000 to 2503. "
        "start_s and end_s are seconds."
    )
    assert far.startswith(
        "4 of 8 segments end far past the end: milliseconds? Their videos are 3.0 to 9.0 s long, and c0 "
    )


@pytest.mark.parametrize(
    ("segment", "expected"),
    [
        ((50, 200, 10.0), "lie past the end: frame numbers? "),
        ((9000, None, 10.0), "lie past the end: milliseconds? "),
        ((12, 15, 10.0), "lie past the end. "),
        ((1e6, 2e6, 10.0), "lie past the end. "),
        ((0, 21, 10.0), "end far past the end. "),
        ((None, 85, 3.0), "end far past the end: frame numbers? "),
    ],
)
def test_one_segment_outside_its_video(segment, expected):
    (sentence,) = describe(segment)
    assert sentence.startswith(f"1 of 1 segments {expected}")


def test_segments_that_end_a_little_later_and_videos_of_unknown_length_are_fine():
    assert describe((0, 14.5, 10.0), (0, 20, 10.0), (9.9, None, 10.0), (None, None, 1.0), (500, 600, None)) == []
