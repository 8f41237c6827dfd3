import os
import sys

import pytest

from waver.data.annotations import AnnotationError
from waver.data.annotations.reading import Problems
from waver.data.annotations.videos import VIDEO_SUFFIXES, find_videos, index_videos, strip_video_suffix


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
    assert index_videos(tmp_path / "videos" / os.fsdecode(b"caf\xe9"), problems) == []
    assert len(problems) == 1
