import csv
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from waver.data.annotations import CAPTIONS_SCHEMA, AnnotationError
from waver.data.annotations.captions import choose_validation_videos
from waver.data.annotations.table import is_caption, load_table

HELD_OUT = {"validation_fraction": 0.05, "validation_seed": 0}


@pytest.fixture
def videos(tmp_path, touch):
    return touch(tmp_path / "videos", "a/1.mp4", "b/1.mp4", "c.webm", "d.MKV")


ROWS = [
    {"video": "a/1.mp4", "caption": "a dog runs", "start_s": 1.0, "end_s": 2.5, "split": "train", "style": "short"},
    {"video": "b/1.mp4", "caption": "a cat sleeps", "split": "train"},
    {"video": "c.webm", "caption": "наводнение, в городе", "split": "val", "video_id": "flood"},
    {"video": "a/1.mp4", "caption": "the dog runs fast", "start_s": 1.0, "end_s": 2.5, "split": "train"},
    {"video": "d.MKV", "caption": 'he says "hi"', "split": "test", "start_s": 3.0},
    {"video": "a/1.mp4", "caption": "a dog", "end_s": 4.0, "split": "train"},
]


def write(path, rows, encoding="utf-8", newline="\n"):
    if path.suffix == ".csv":
        columns = list(dict.fromkeys(column for row in rows for column in row))
        with path.open("w", encoding=encoding, newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator=newline)
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        columns = dict.fromkeys(column for row in rows for column in row)
        pq.write_table(pa.table({column: [row.get(column) for row in rows] for column in columns}), path)
    else:
        text = "".join(json.dumps(row, ensure_ascii=False) + newline for row in rows)
        path.write_bytes(text.encode(encoding))
    return path


def load(path, videos, allow_missing_videos=False, **held_out):
    return load_table(path, videos, allow_missing_videos=allow_missing_videos, **{**HELD_OUT, **held_out})


def fail(path, videos, **arguments):
    with pytest.raises(AnnotationError) as caught:
        load(path, videos, **arguments)
    return str(caught.value)


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.json", "captions.csv", "captions.parquet"])
def test_formats_give_the_same_table(tmp_path, videos, name):
    table = load(write(tmp_path / name, ROWS), videos)
    assert table.schema == CAPTIONS_SCHEMA
    expected = [
        ("a/1", "a/1@1-2.5", "a/1.mp4", 1, 2.5, "a dog runs", 0, "train", "short"),
        ("a/1", "a/1@1-2.5", "a/1.mp4", 1, 2.5, "the dog runs fast", 1, "train", None),
        ("b/1", "b/1", "b/1.mp4", None, None, "a cat sleeps", 0, "train", None),
        ("a/1", "a/1@0-4", "a/1.mp4", 0, 4, "a dog", 0, "train", None),
        ("flood", "flood", "c.webm", None, None, "наводнение, в городе", 0, "validation", None),
        ("d", "d@3-", "d.MKV", 3, None, 'he says "hi"', 0, "test", None),
    ]
    assert [tuple(row.values()) for row in table.to_pylist()] == [
        (*row[:2], str(videos / row[2]), *row[3:]) for row in expected
    ]


@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_byte_order_mark_and_line_ends_do_not_matter(tmp_path, videos, name, encoding, newline):
    table = load(write(tmp_path / name, ROWS, encoding, newline), videos)
    assert table == load(write(tmp_path / "plain.jsonl", ROWS), videos)


def test_unusual_line_separators_in_captions_are_kept(tmp_path, videos):
    rows = [dict(row, caption=row["caption"] + "\u2028\x85next\nline") for row in ROWS]
    table = load(write(tmp_path / "captions.jsonl", rows), videos)
    assert table == load(write(tmp_path / "captions.csv", rows), videos)
    assert table["caption"][0].as_py() == "a dog runs\u2028\x85next\nline"


def test_paths_are_absolute_and_spellings_of_one_file_are_one_video(tmp_path, videos, monkeypatch):
    rows = [{"video": "./c.webm", "caption": "1"}, {"video": str(videos / "c.webm"), "caption": "2"}]
    rows += [{"video": "d.MKV", "caption": "3"}]
    write(tmp_path / "captions.csv", rows)
    monkeypatch.chdir(tmp_path)
    table = load(Path("captions.csv"), Path("videos"))
    assert {row["video_id"]: row["path"] for row in table.to_pylist()} == {
        "c": str(videos / "c.webm"),
        "d": str(videos / "d.MKV"),
    }


def test_missing_videos_can_be_allowed(tmp_path, videos):
    rows = [{"video": "c.webm", "caption": "x"}, {"video": "e/not there.mp4", "caption": "y"}]
    path = write(tmp_path / "captions.jsonl", rows)
    assert "1 x video without a file: line 2: 'e/not there.mp4'" in fail(path, videos)
    table = load(path, videos, allow_missing_videos=True)
    assert str(videos / "e/not there.mp4") in table["path"].to_pylist()


@pytest.fixture
def many_videos(tmp_path, touch):
    """Makes videos of three segments each, and their rows."""

    def make(count):
        rows = [
            {"video": f"{number}.mp4", "caption": f"caption {part}", "start_s": part, "end_s": part + 1}
            for number in range(count)
            for part in range(3)
        ]
        return rows, touch(tmp_path / "many", *(f"{number}.mp4" for number in range(count)))

    return make


def test_validation_is_held_out_by_video_whatever_the_order_of_the_rows(tmp_path, splits_of, many_videos):
    rows, videos = many_videos(100)
    splits = splits_of(load(write(tmp_path / "sorted.jsonl", rows), videos), "video_id")
    assert (len(splits["train"]), len(splits["validation"])) == (95, 5)
    assert not set(splits["train"]) & set(splits["validation"])
    assert "test" not in splits

    shuffled = write(tmp_path / "shuffled.jsonl", random.Random(0).sample(rows, len(rows)))
    assert set(splits_of(load(shuffled, videos), "video_id")["validation"]) == set(splits["validation"])
    assert set(splits_of(load(shuffled, videos, validation_seed=1), "video_id")["validation"]) != set(
        splits["validation"]
    )
    # A video more or less moves few others: its place depends on itself alone.
    fewer = write(tmp_path / "fewer.jsonl", [row for row in rows if row["video"] != "7.mp4"])
    assert len(set(splits_of(load(fewer, videos), "video_id")["validation"]) & set(splits["validation"])) >= 4


def test_held_out_validation_leaves_test_alone_and_has_at_least_one_video(tmp_path, splits_of, many_videos):
    rows, videos = many_videos(6)
    for row in rows:
        row["split"] = "test" if int(row["video"][0]) > 1 else "train"
    splits = splits_of(load(write(tmp_path / "captions.csv", rows), videos, validation_fraction=0.01), "video_id")
    assert {split: len(ids) for split, ids in splits.items()} == {"train": 1, "validation": 1, "test": 4}


@pytest.mark.parametrize(
    ("num_videos", "expected"), [(2, 1), (6, 1), (23, 5), (100, 20), (250, 50), (900, 50), (1000, 50), (9000, 450)]
)
def test_without_a_fraction_a_small_set_holds_out_more(num_videos, expected):
    ids = [str(number) for number in range(num_videos)]
    assert len(choose_validation_videos(ids, None, 0)) == expected
    if num_videos >= 1000:
        assert choose_validation_videos(ids, None, 0) == choose_validation_videos(ids, 0.05, 0)
    assert len(choose_validation_videos(ids, 0.05, 0)) == max(1, round(num_videos / 20)), "a stored fraction counts"


def test_validation_of_the_user_is_kept(tmp_path, splits_of, many_videos):
    rows, videos = many_videos(6)
    for row in rows:
        row["split"] = "validation" if row["video"] == "3.mp4" else "train"
    splits = splits_of(load(write(tmp_path / "captions.csv", rows), videos, validation_fraction=0.4), "video_id")
    assert splits == {"train": ["0", "1", "2", "4", "5"], "validation": ["3"]}


def test_one_error_has_every_kind_of_problem(tmp_path, videos, touch):
    touch(videos, "same.mp4", "same.avi")
    lines = [
        {"video": "a/1.mp4", "caption": "fine", "split": "train"},
        {"video": "a/1.mp4", "caption": " ", "split": "train"},
        {"video": "a/1.mp4", "caption": None, "split": "train"},
        {"video": "a/1.mp4", "caption": ["a", "list"], "split": "train"},
        '{"video": "a/1.mp4", "caption": "half a character \\ud83d", "split": "train"}',
        '{"video": "a/1.mp4", "caption": ',
        '"just text"',
        {"video": "a/1.mp4", "caption": "x", "start_s": 3, "end_s": 3, "split": "train"},
        {"video": "a/1.mp4", "caption": "x", "start_s": -1, "end_s": 3, "split": "train"},
        {"video": "a/1.mp4", "caption": "x", "start_s": "soon", "split": "train"},
        {"video": "a/1.mp4", "caption": "x", "end_s": True, "split": "train"},
        '{"video": "a/1.mp4", "caption": "x", "end_s": Infinity, "split": "train"}',
        {"video": "a/1.mp4", "caption": "other", "split": "test"},
        {"video": "a/1.mp4", "caption": "fine", "split": "train"},
        {"video": "gone.mp4", "caption": "1", "split": "train"},
        {"video": "gone.mp4", "caption": "2", "split": "train"},
        {"video": "no/" + 300 * "x", "caption": "3", "split": "train"},
        {"video": "../secret.mp4", "caption": "x", "split": "train"},
        {"video": "/no/such.mp4", "caption": "x", "split": "train"},
        {"video": "b/1.mp4", "caption": "x", "split": "dev"},
        {"video": "b/1.mp4", "caption": "x"},
        {"video": "", "caption": "x", "split": "train"},
        {"video": 7, "caption": "x", "split": "train"},
        {"video": "c.webm", "captoin": "x", "caption": "y", "split": "train"},
        {"video": "c.webm", "caption": "x", "split": "train", "style": 3},
        {"video": "same.mp4", "caption": "x", "split": "train"},
        {"video": "same.avi", "caption": "x", "split": "train"},
        {"video": "c.webm", "caption": "x", "split": "train", "video_id": "another"},
        {"video": "d.MKV", "caption": "x", "split": "train", "start_s": 1, "end_s": 2},
        {"video": "b/1.mp4", "caption": "x", "split": "train", "video_id": "d@1-2"},
    ]
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    path = tmp_path / "captions.jsonl"
    path.write_bytes(text.encode() + b'\n{"video": "b/1.mp4", "caption": "caf\xe9", "split": "train"}\n')
    message = fail(path, videos)
    for expected in (
        f"{path}: 27 problems",
        "2 x empty caption: line 2, line 3\n",
        "1 x caption that holds a list: line 4: ['a', 'list']\n",
        "1 x caption that is not text: line 5: 'half a character \\ud83d'",
        "1 x line that is not JSON: line 6 (Expecting value)\n",
        "1 x line that is not a JSON object: line 7\n",
        "1 x segment that ends before it starts: line 8: 3 to 3\n",
        "1 x negative start_s: line 9: -1\n",
        "1 x start_s that is not a number: line 10: 'soon'\n",
        "2 x end_s that is not a number: line 11: True, line 12: inf\n",
        "1 x clip in two splits: a/1: train (line 1), test (line 13)\n",
        "1 x video without a file: line 15: 'gone.mp4'\n",
        "1 x video that is not a file path: line 17: 'no/xxx",
        f"put them into {videos} under this path",
        "1 x path that leaves the folder of videos: line 18: '../secret.mp4'\n",
        "1 x absolute path without a file: line 19: '/no/such.mp4'\n",
        "1 x unknown split: line 20: 'dev'\n",
        "train, validation, val, test\n",
        "1 x row without split: line 21\n",
        "1 x empty video: line 22\n",
        "1 x video that is not text: line 23: 7\n",
        "1 x unknown column: 'captoin' (did you mean caption?)\n",
        "1 x style that is not text: line 25: 3\n",
        "1 x video_id of two files: same: same.mp4 (line 26), same.avi (line 27)\n",
        "2 x file with two video_ids: b/1.mp4: b/1 (line 20), d@1-2 (line 30), c.webm: c (line 24), another (line 28)\n",
        "1 x clip_id of two clips: d@1-2: ",
        "1 x line that is not UTF-8: captions.jsonl line 31 (byte 0xe9)\n",
    ):
        assert expected in message, (expected, message)


@pytest.mark.parametrize("video", [".", "./", "a\x00.mp4", "é" * 130, "b/" + "x" * 256 + "/c.mp4"])
@pytest.mark.parametrize("name", ["captions.jsonl", "captions.csv"])
def test_invalid_paths_of_videos_are_rejected(tmp_path, videos, name, video):
    rows = [{"video": video, "caption": "x"}, {"video": "c.webm", "caption": "x"}, {"video": "d.MKV", "caption": "x"}]
    message = fail(write(tmp_path / name, rows), videos, allow_missing_videos=True)
    assert "1 problem\n" in message
    if not (name == "captions.csv" and "\x00" in video):  # the csv of Python 3.10 refuses it by itself
        assert "1 x video that is not a file path: line " in message


def test_at_most_five_examples_of_a_kind(tmp_path, videos):
    rows = [{"video": "c.webm", "caption": ""}] * 20 + [{"video": "d.MKV", "caption": "x"}]
    message = fail(write(tmp_path / "captions.csv", rows), videos)
    assert "20 x empty caption: line 2, line 3, line 4, line 5, line 6, ...\n" in message


def test_unknown_repeated_and_missing_columns_are_errors(tmp_path, videos):
    path = tmp_path / "captions.csv"
    path.write_text("video,title,start,style,style,id\nc.webm,x,1,a,b,c\n")
    message = fail(path, videos)
    assert "2 x column with another name: 'title' (caption), 'start' (start_s)\n" in message
    assert "1 x unknown column: 'id'\n" in message
    assert "1 x repeated column: style\n" in message
    path.write_text("video,split\nc.webm,train\nd.MKV,dev\n")
    message = fail(path, videos)
    assert "1 x missing column: caption\n" in message
    assert "1 x unknown split: line 3: 'dev'\n" in message, "the other columns are checked too"


def test_csv_with_syntax_errors(tmp_path, videos):
    path = tmp_path / "captions.csv"
    path.write_text('video,caption\nc.webm,two, fields\n\nd.MKV,"over\ntwo lines"\nd.MKV\na/1.mp4,"never closed\nx,y\n')
    message = fail(path, videos)
    assert "2 x row with a wrong number of fields: line 2 (3), line 6 (1)\n" in message
    assert "1 x quote that is never closed: line 7: 'a/1.mp4,\"never closed'\n" in message
    assert "1 x video without a file: line 8: 'x'\n" in message, "reading goes on after the quote"


def test_a_table_of_test_rows_alone_is_a_test_set(tmp_path, videos):
    path = tmp_path / "captions.csv"
    path.write_bytes(b"video,caption,split\nc.webm,x,test\n")
    table = load_table(path, videos, validation_fraction=None, validation_seed=0, allow_missing_videos=False)
    assert table["split"].to_pylist() == ["test"]


@pytest.mark.parametrize(("text", "expected"), [("a dog", True), ("null", False), ("['a', 'b']", False), (" ", False)])
def test_what_can_be_a_caption(text, expected):
    assert is_caption(text) is expected


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("captions.txt", b"a caption", "unknown kind of file: captions.txt"),
        ("captions.jsonl", b"", "empty file: captions.jsonl"),
        ("captions.jsonl", b"\xef\xbb\xbf\n \n", "file of blanks only"),
        ("captions.csv", b"video,caption\n", "table without rows"),
        ("captions.jsonl", b"{}\n", "missing column: video, caption\n"),
        ("captions.json", b'[\n{"video": "c.webm", "caption": "x"}\n]', "JSON array"),
        ("captions.csv", "video,caption\nc.webm,x\n".encode("utf-16"), "file in UTF-16 instead of UTF-8"),
        ("captions.parquet", b"PAR1 not", "unreadable file"),
        ("captions.parquet", None, "unreadable file"),
        ("captions.csv", None, "unreadable file"),
        ("captions.csv", b"video,caption\nc.webm,x\nc.webm,y\n", "train split that is too small: 1 video\n"),
        ("captions.csv", b"video,caption,split\nc.webm,x,val\n", "train split that is too small: no video\n"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, videos, name, content, expected):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert f" x {expected}" in fail(path, videos)


def test_parquet_values_that_python_cannot_represent_are_an_error(tmp_path, videos):
    path = tmp_path / "captions.parquet"
    pq.write_table(pa.table({"video": ["c.webm"], "caption": pa.array([2**62], pa.timestamp("us"))}), path)
    assert "1 x unreadable file: " in fail(path, videos)


def test_folder_of_videos_is_missing_or_empty(tmp_path, touch):
    path = write(tmp_path / "captions.csv", ROWS[:2])
    videos = tmp_path / "videos"
    for allow_missing_videos in (False, True):
        message = fail(path, videos, allow_missing_videos=allow_missing_videos)
        assert f"1 x missing folder of videos: {videos}\n" in message
        assert "1 problem\n" in message
    touch(videos, "readme.txt")
    for allow_missing_videos in (False, True):
        assert "1 x folder without video files" in fail(path, videos, allow_missing_videos=allow_missing_videos)


def test_broken_links_are_missing_videos_and_circular_links_end(tmp_path, videos):
    (videos / "circle").symlink_to(videos)
    (videos / "gone.mp4").symlink_to("nowhere.mp4")
    path = write(tmp_path / "captions.jsonl", [*ROWS, {"video": "gone.mp4", "caption": "x", "split": "train"}])
    assert "1 x video without a file: line 7: 'gone.mp4'\n" in fail(path, videos)
    assert load(path, videos, allow_missing_videos=True).num_rows == 7

    (videos / "self").symlink_to("self")
    message = fail(path, videos)
    assert "1 x unreadable folder of videos: " in message
    assert "without video files" not in message
