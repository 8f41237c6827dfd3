import itertools
import os
from pathlib import Path

import pytest

from waver.search.windows import VideosError, Windows, find_videos


@pytest.mark.parametrize(
    ("windows", "video_s", "expected"),
    [
        (Windows(10.0, 5.0), 7.0, [(0.0, 10)]),
        (Windows(10.0, 5.0), 10.0, [(0.0, 10)]),
        (Windows(10.0, 5.0), 10.5, [(0.0, 10), (5.0, 15.0)]),
        (Windows(10.0, 5.0), 21.0, [(0.0, 10), (5.0, 15.0), (10.0, 20.0), (15.0, 25.0)]),
        (Windows(4.0, 4.0), 8.0, [(0.0, 4), (4.0, 8.0)]),
        (Windows(10.0, 5.0), None, [(0.0, 10)]),
        (Windows(None, 5.0), 100.0, [(None, None)]),
    ],
)
def test_windows_cover_a_film_to_its_end(windows, video_s, expected):
    found = [windows.first(), *windows.later(video_s)]
    assert found == expected
    if video_s and windows.window_s:
        assert found[-1][1] >= video_s
        assert all(later[0] <= earlier[1] for earlier, later in itertools.pairwise(found)), "no gap"


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_videos_of_folders_and_files_are_listed_by_name(tmp_path):
    touch(tmp_path / "a" / "x.mp4", tmp_path / "a" / "deep" / "y.MKV", tmp_path / "a" / "notes.txt", tmp_path / "z.bin")
    found = find_videos([tmp_path / "a", tmp_path / "z.bin"])
    assert [(video.video_id, video.path) for video in found] == [
        ("deep/y.MKV", tmp_path / "a" / "deep" / "y.MKV"),
        ("x.mp4", tmp_path / "a" / "x.mp4"),
        ("z.bin", tmp_path / "z.bin"),
    ]


def test_a_video_that_is_named_twice_counts_once(tmp_path):
    touch(tmp_path / "x.mp4")
    assert len(find_videos([tmp_path, tmp_path / "x.mp4"])) == 1


def test_everything_that_cannot_be_listed_is_told_at_once(tmp_path):
    touch(tmp_path / "a" / "x.mp4", tmp_path / "b" / "x.mp4", tmp_path / "c" / "notes.txt")
    with pytest.raises(VideosError) as told:
        find_videos([tmp_path / "a", tmp_path / "b", tmp_path / "c", tmp_path / "d"])
    message = str(told.value)
    assert "c has no videos" in message
    assert "d does not exist" in message
    assert "1 videos have names that occur in several of these places (x.mp4)" in message


def test_links_that_lead_back_are_followed_once(tmp_path):
    films, other = tmp_path / "films", tmp_path / "other"
    touch(films / "a.mp4", films / "deep" / "b.mp4", other / "c.mp4")
    (films / "deep" / "self").symlink_to(films / "deep")
    (films / "deep" / "above").symlink_to(tmp_path)
    (films / "beside").symlink_to(other)
    (other / "back").symlink_to(films)
    assert [video.video_id for video in find_videos([films])] == ["a.mp4", "beside/c.mp4", "deep/b.mp4"]


def test_names_that_are_not_unicode_are_reported(tmp_path):
    touch(tmp_path / "a.mp4", Path(os.fsdecode(bytes(tmp_path) + b"/bad\xff.mp4")))
    with pytest.raises(VideosError, match=r"1 videos of .* not UTF-8 \('bad\\udcff.mp4'\): rename them"):
        find_videos([tmp_path])
