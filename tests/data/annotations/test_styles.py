import json
import re

import pytest

from waver.data.annotations import AnnotationError
from waver.data.annotations.captions import count_left_out, describe_left_out, styles_of
from waver.data.annotations.table import TableData

CLIPS = {"a": "train", "b": "train", "c": "train", "d": "validation", "e": "validation", "f": "test"}
WRITERS = {
    "a": ("plain", "terse"),
    "b": ("terse",),
    "c": ("wordy", "plain"),
    "d": ("plain", "terse"),
    "e": ("terse",),
    "f": ("plain", "terse", "poetic"),
}


@pytest.fixture
def load(tmp_path, touch):
    """Loads the table with one more row if `row` is given."""
    videos = touch(tmp_path / "videos", *(f"{clip}.mp4" for clip in CLIPS))

    def load(row: dict[str, str] | None = None, **settings):
        rows = [
            {"video": f"{clip}.mp4", "caption": f"{clip} by {writer}", "split": CLIPS[clip], "style": writer}
            for clip, writers in WRITERS.items()
            for writer in writers
        ]
        path = tmp_path / "captions.jsonl"
        path.write_text("".join(json.dumps(entry) + "\n" for entry in [*rows, *([row] if row else [])]))
        return TableData(format="table", annotations=path, videos=videos, **settings).load()

    return load


def texts(table, split):
    return [row["caption"] for row in table.to_pylist() if row["split"] == split]


def test_train_and_validation_keep_the_captions_of_these_styles_and_test_keeps_all(load):
    table = load(train_styles=["plain", "wordy"])
    assert texts(table, "train") == ["a by plain", "c by wordy", "c by plain"]
    assert texts(table, "validation") == ["d by plain"]
    assert texts(table, "test") == ["f by plain", "f by terse", "f by poetic"]
    assert (styles_of(table, "train"), styles_of(table, "test")) == (("plain", "wordy"), ("plain", "poetic", "terse"))


def test_clips_that_lose_all_captions_are_said(load):
    table = load(train_styles=["plain", "wordy"])
    assert count_left_out(table) == 2
    assert describe_left_out(table) == (
        "2 clips of train and validation are left out: none of their captions is in a style of data.train_styles "
        "(plain, wordy)"
    )
    assert describe_left_out(load(train_styles=["terse", "plain"])) == ""


def test_by_default_all_styles_are_kept(load):
    assert load().equals(load(train_styles=["plain", "terse", "wordy"]), check_metadata=True)
    assert len(load()) == sum(map(len, WRITERS.values()))


def test_an_unknown_style_names_those_there_are(load):
    with pytest.raises(AnnotationError, match=re.escape("1 x style that no caption of train has: poetic")) as caught:
        load(train_styles=["plain", "poetic"])
    assert "train has plain (2), terse (2), wordy (1)" in str(caught.value)


def test_captions_of_unknown_style_are_refused(load):
    row = {"video": "a.mp4", "caption": "a by nobody", "split": "train"}
    assert "a by nobody" in texts(load(row), "train")
    with pytest.raises(
        AnnotationError, match=r"1 x caption without style: a: 'a by nobody'\n.*fill in the column style"
    ):
        load(row, train_styles=["plain"])
    in_test = {"video": "f.mp4", "caption": "f by nobody", "split": "test"}
    assert "f by nobody" in texts(load(in_test, train_styles=["plain"]), "test"), "test may have any caption"


def test_a_style_whose_clips_are_all_held_out_is_no_style_of_train(load):
    with pytest.raises(AnnotationError, match="style that no caption of train has: rare"):
        load({"video": "d.mp4", "caption": "d", "split": "validation", "style": "rare"}, train_styles=["rare", "plain"])


def test_videos_held_out_for_validation_do_not_depend_on_the_styles(tmp_path, touch):
    videos = touch(tmp_path / "videos", *(f"{number}.mp4" for number in range(40)))
    path = tmp_path / "captions.jsonl"
    rows = [{"video": f"{n}.mp4", "caption": f"{n} {style}", "style": style} for n in range(40) for style in ("x", "y")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = [
        TableData(format="table", annotations=path, videos=videos, train_styles=styles).load()
        for styles in (None, ["x"], ["y"])
    ]
    chosen = [{row["clip_id"] for row in table.to_pylist() if row["split"] == "validation"} for table in tables]
    assert chosen[0] == chosen[1] == chosen[2]
    assert [len(table) for table in tables] == [80, 40, 40]


def test_the_order_of_styles_is_no_difference():
    data = {"format": "table", "annotations": "a.jsonl", "videos": "v"}
    assert TableData(**data, train_styles=["b", "a", "b"]) == TableData(**data, train_styles=["a", "b"])
