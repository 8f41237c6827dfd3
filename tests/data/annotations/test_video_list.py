import json

import pytest

from waver.data.annotations.reading import AnnotationError
from waver.data.annotations.video_list import load_video_list


def write(folder, rows):
    table = folder / "list.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


def test_a_list_has_videos_and_segments_and_needs_no_captions(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    rows = [
        {"video": "b.mp4", "start_s": 7},
        {"video": "b.mp4", "start_s": 2, "end_s": 4.5},
        {"video": "b.mp4", "start_s": 2, "end_s": 4.5},
        {"video": "a.mp4"},
    ]
    b, a = load_video_list(write(tmp_path, rows))
    assert (a.video, a.path, a.segments) == ("a.mp4", tmp_path / "a.mp4", ())
    assert (b.video, b.segments) == ("b.mp4", ((2.0, 4.5), (7.0, None)))


def test_a_caption_table_serves_as_a_list(tmp_path):
    (tmp_path / "a.mp4").touch()
    rows = [{"video": "a.mp4", "caption": caption, "split": "test", "style": "terse"} for caption in ("a dog", "a cat")]
    assert [listed.video for listed in load_video_list(write(tmp_path, rows))] == ["a.mp4"]


def test_every_mistake_is_told_at_once(tmp_path):
    (tmp_path / "a.mp4").touch()
    rows = [
        {"video": "a.mp4"},
        {"video": "a.mp4", "start_s": 1, "end_s": 2},
        {"video": "gone.mp4"},
        {"video": ""},
        {"video": "a.mp4", "start_s": "1:30"},
    ]
    with pytest.raises(AnnotationError) as told:
        load_video_list(write(tmp_path, rows))
    message = str(told.value)
    assert "video listed whole and in segments: a.mp4" in message
    assert "video without a file: gone.mp4" in message
    assert "video that is not a file path: line 4" in message
    assert "start_s that is not in seconds: line 5" in message
    with pytest.raises(AnnotationError, match="missing column: video"):
        load_video_list(write(tmp_path, [{"name_of_it": "x", "b": 3}]))
