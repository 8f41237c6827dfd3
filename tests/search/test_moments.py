import pytest

from waver.search.moments import Moment, parse_moments


@pytest.mark.parametrize(
    ("text", "time_s"),
    [("a.mp4@12.5", 12.5), ("a.mp4@1:02", 62.0), ("a.mp4@1:02:03.5", 3723.5), ("a@b.mp4@0", 0.0)],
)
def test_a_moment_is_a_video_and_a_time(text, time_s):
    whole, moment = parse_moments(text)
    assert whole == Moment(text, None), "a video may have this name"
    assert moment == Moment(text.rpartition("@")[0], time_s)


@pytest.mark.parametrize("text", ["a.mp4", "me@home.mp4", "a.mp4@", "@12", "a.mp4@1:2:3:4"])
def test_a_name_without_time_is_the_whole_video(text):
    assert parse_moments(text) == [Moment(text, None)]
