import os
import sys

import pytest

from waver.data.annotations import AnnotationError
from waver.data.annotations.reading import Problems
from waver.data.annotations.suffixes import VIDEO_SUFFIXES, strip_video_suffix
from waver.data.annotations.videos import find_videos, index_videos


def test_every_container_of_didemo_is_known(shared_annotations):
    folder = shared_annotations("didemo")
    names = [name for part in ("train", "val", "test") for name in (folder / f"{part}_list.txt").read_text().split()]
    endings = {f".{name.rpartition('.')[2]}" for name in names}
    # A dot alone and .null say nothing of the container: such files are found by their whole names.
    assert endings - VIDEO_SUFFIXES == {".", ".null"}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.mp4", "a"),
        ("a.MOV", "a"),
        ("a.m2ts", "a"),
        ("a.", "a."),
        ("a..mp4", "a."),
        ("a.mov.mp4", "a.mov"),
        ("a.null", "a.null"),
        ("a", "a"),
        (".mp4", ".mp4"),
        ("-_a_1_2.avi", "-_a_1_2"),
    ],
)
def test_video_suffix_is_removed(name, expected):
    assert strip_video_suffix(name) == expected


def test_each_file_belongs_to_one_clip(tmp_path, touch):
    videos = touch(tmp_path, "x/a.mov.mp4", "b.mp4.avi", "b.txt", "a.txt", "c.d.mp4", "c", "ab.mp4")
    problems = Problems()
    found = find_videos({"a": "a.mov", "b": "b.mp4", "c": "c."}, videos, allow_missing=False, problems=problems)
    assert not problems
    assert found == {"a": f"{videos}/x/a.mov.mp4", "b": f"{videos}/b.mp4.avi", "c": f"{videos}/c"}


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are UTF-8 there")
def test_folders_whose_names_are_not_utf8(tmp_path):
    folder = os.fsencode(tmp_path) + b"/videos/caf\xe9"
    os.makedirs(folder)  # noqa: PTH103 - bytes
    for name in (b"a.mp4", b"\xe9.mp4"):
        with open(folder + b"/" + name, "w"):  # noqa: PTH123 - bytes
            pass
    problems = Problems()
    find_videos({"a": "a.mp4"}, tmp_path / "videos", allow_missing=False, problems=problems)
    with pytest.raises(AnnotationError) as caught:
        problems.raise_if_any(tmp_path)
    assert "1 x video in a folder whose name is not UTF-8: " in str(caught.value)
    assert "caf\\udce9/a.mp4" in str(caught.value)
    assert str(caught.value).encode()

    problems = Problems()
    assert index_videos(tmp_path / "videos" / os.fsdecode(b"caf\xe9"), problems).videos == []
    assert len(problems) == 1


def report(path):
    problems = Problems()
    index_videos(path, problems)
    with pytest.raises(AnnotationError) as caught:
        problems.raise_if_any(path)
    return str(caught.value)


def test_a_folder_without_videos_says_what_it_holds(tmp_path, touch):
    frames = touch(tmp_path / "frames", *(f"video{video}/{number:03}.jpg" for video in range(3) for number in range(4)))
    message = report(frames)
    assert f"1 x folder without video files: {frames} (it holds 12 .jpg)\n" in message
    assert "the pictures in 3 folders seem to be frames: make a video of each folder, such as `ffmpeg " in message
    message = report(touch(tmp_path / "packed", "a.tar", "b.tar", "readme"))
    assert "(it holds 2 .tar, 1 without ending)\n      unpack the .tar files" in message
    (tmp_path / "empty").mkdir()
    assert "(it holds no files)\n      put the video files there (" in report(tmp_path / "empty")


def test_clips_without_files_are_compared_with_what_is_there(tmp_path, touch, caplog):
    videos = touch(tmp_path, "A.mp4", "B.mp4", "sub/c_1.mp4")
    names = {"a": "a.mp4", "b": "b.mp4", "c_1": "c_1.mp4", "d": "d.mp4"}
    problems = Problems()
    find_videos(names, videos, allow_missing=False, problems=problems)
    with pytest.raises(AnnotationError) as caught:
        problems.raise_if_any(tmp_path)
    message = str(caught.value)
    assert "2 x video without a file: a ('A.mp4' is there), b ('B.mp4' is there)\n" in message
    assert "2 of 3 are there in other case (capital and small letters): rename the files, or link to them\n" in message
    assert f"1 x video without a file: d\n      put them into {videos} as <id>.mp4" in message
    assert "(the folder holds 3 .mp4)" in message

    problems = Problems()
    find_videos(names, videos, allow_missing=True, problems=problems)
    assert not len(problems)
    expected = "2 of 3 are there in other case (capital and small letters) ('A.mp4' for 'a.mp4')"
    assert expected in caplog.text, "allowed, but not in silence"
