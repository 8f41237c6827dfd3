import csv
import gzip
import json
import os
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from waver.annotations import CAPTIONS_SCHEMA, AnnotationError, load_msrvtt, load_table

MSRVTT = Path(
    os.environ.get("WAVER_MSRVTT_ANNOTATIONS", Path(__file__).parents[1].parent / "shared/data/annotations/msrvtt")
)
ITALIAN = "videodatainfoITALIANO_2017_6513_497_100_TestValidati.json.gz"
HELD_OUT = {"validation_fraction": 0.05, "validation_seed": 0}


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def splits_of(table):
    videos = {}
    for row in table.to_pylist():
        videos.setdefault(row["split"], {})[row["video_id"]] = None
    return {split: list(ids) for split, ids in videos.items()}


# ---- the user's own table


@pytest.fixture
def videos(tmp_path):
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


def many_videos(tmp_path, count):
    rows = [
        {"video": f"{number}.mp4", "caption": f"caption {part}", "start_s": part, "end_s": part + 1}
        for number in range(count)
        for part in range(3)
    ]
    return rows, touch(tmp_path / "many", *(f"{number}.mp4" for number in range(count)))


def test_validation_is_held_out_by_video_whatever_the_order_of_the_rows(tmp_path):
    rows, videos = many_videos(tmp_path, 100)
    splits = splits_of(load(write(tmp_path / "sorted.jsonl", rows), videos))
    assert (len(splits["train"]), len(splits["validation"])) == (95, 5)
    assert not set(splits["train"]) & set(splits["validation"])
    assert "test" not in splits

    shuffled = write(tmp_path / "shuffled.jsonl", random.Random(0).sample(rows, len(rows)))
    assert set(splits_of(load(shuffled, videos))["validation"]) == set(splits["validation"])
    assert set(splits_of(load(shuffled, videos, validation_seed=1))["validation"]) != set(splits["validation"])
    # A video more or less moves few others: its place depends on itself alone.
    fewer = write(tmp_path / "fewer.jsonl", [row for row in rows if row["video"] != "7.mp4"])
    assert len(set(splits_of(load(fewer, videos))["validation"]) & set(splits["validation"])) >= 4


def test_held_out_validation_leaves_test_alone_and_has_at_least_one_video(tmp_path):
    rows, videos = many_videos(tmp_path, 6)
    for row in rows:
        row["split"] = "test" if int(row["video"][0]) > 1 else "train"
    splits = splits_of(load(write(tmp_path / "captions.csv", rows), videos, validation_fraction=0.01))
    assert {split: len(ids) for split, ids in splits.items()} == {"train": 1, "validation": 1, "test": 4}


def test_validation_of_the_user_is_kept(tmp_path):
    rows, videos = many_videos(tmp_path, 6)
    for row in rows:
        row["split"] = "validation" if row["video"] == "3.mp4" else "train"
    splits = splits_of(load(write(tmp_path / "captions.csv", rows), videos, validation_fraction=0.4))
    assert splits == {"train": ["0", "1", "2", "4", "5"], "validation": ["3"]}


def test_one_error_has_every_kind_of_problem(tmp_path, videos):
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
        "2 x caption that is not text: line 4: ['a', 'list'], line 5: 'half a character \\ud83d'",
        "1 x line that is not JSON: line 6 (Expecting value)\n",
        "1 x line that is not a JSON object: line 7\n",
        "1 x segment that ends before it starts: line 8: 3 to 3\n",
        "1 x negative start_s: line 9: -1\n",
        "1 x start_s that is not a number: line 10: 'soon'\n",
        "2 x end_s that is not a number: line 11: True, line 12: inf\n",
        "1 x clip in two splits: a/1: train (line 1), test (line 13)\n",
        "2 x video without a file: line 15: 'gone.mp4', line 17: 'no/xxx",
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
        "2 x file with two video_ids: c.webm: c (line 24), another (line 28), b/1.mp4: d@1-2 (line 30), ",
        "1 x clip_id of two clips: d@1-2: ",
        "1 x line that is not UTF-8: captions.jsonl line 31 (byte 0xe9)\n",
    ):
        assert expected in message, (expected, message)


def test_at_most_five_examples_of_a_kind(tmp_path, videos):
    rows = [{"video": "c.webm", "caption": ""}] * 20 + [{"video": "d.MKV", "caption": "x"}]
    message = fail(write(tmp_path / "captions.csv", rows), videos)
    assert "20 x empty caption: line 2, line 3, line 4, line 5, line 6, ...\n" in message


def test_columns(tmp_path, videos):
    path = tmp_path / "captions.csv"
    path.write_text("video,captoin,start,style,style\nc.webm,x,1,a,b\n")
    message = fail(path, videos)
    assert "2 x unknown column: 'captoin' (did you mean caption?), 'start' (did you mean start_s?)" in message
    assert "1 x missing column: caption\n" in message
    assert "1 x column that stands twice: style\n" in message


def test_csv_that_is_not_csv(tmp_path, videos):
    path = tmp_path / "captions.csv"
    path.write_text('video,caption\nc.webm,two, fields\n\nd.MKV,"over\ntwo lines"\nd.MKV\na/1.mp4,"never closed\nx,y\n')
    message = fail(path, videos)
    assert "2 x row with a wrong number of fields: line 2 (3), line 6 (1)\n" in message
    assert "1 x record that is not CSV: line 7 (" in message


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("captions.txt", b"", "unknown kind of file: captions.txt"),
        ("captions.jsonl", b"", "table without rows"),
        ("captions.jsonl", b"\xef\xbb\xbf\n \n", "table without rows"),
        ("captions.csv", b"video,caption\n", "table without rows"),
        ("captions.jsonl", b"{}\n", "missing column: video, caption\n"),
        ("captions.json", b'[\n{"video": "c.webm", "caption": "x"}\n]', "JSON array"),
        ("captions.csv", "video,caption\nc.webm,x\n".encode("utf-16"), "line that is not UTF-8"),
        ("captions.parquet", b"PAR1 not", "unreadable file"),
        ("captions.parquet", None, "unreadable file"),
        ("captions.csv", None, "unreadable file"),
        ("captions.csv", b"video,caption\nc.webm,x\nc.webm,y\n", "train split that is too small: 1 video\n"),
        ("captions.csv", b"video,caption,split\nc.webm,x,test\n", "train split that is too small: no video\n"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, videos, name, content, expected):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert f" x {expected}" in fail(path, videos)


def test_folder_of_videos_is_missing_or_empty(tmp_path):
    path = write(tmp_path / "captions.csv", ROWS[:2])
    videos = tmp_path / "videos"
    for allow_missing_videos in (False, True):
        message = fail(path, videos, allow_missing_videos=allow_missing_videos)
        assert f"1 x missing folder of videos: {videos}\n" in message
        assert "1 problem\n" in message
    touch(videos, "readme.txt")
    for allow_missing_videos in (False, True):
        assert "1 x folder without video files" in fail(path, videos, allow_missing_videos=allow_missing_videos)


def test_links_that_lead_nowhere_or_in_circles(tmp_path, videos):
    (videos / "circle").symlink_to(videos)
    (videos / "gone.mp4").symlink_to("nowhere.mp4")
    path = write(tmp_path / "captions.jsonl", [*ROWS, {"video": "gone.mp4", "caption": "x", "split": "train"}])
    assert "1 x video without a file: line 7: 'gone.mp4'\n" in fail(path, videos)
    assert load(path, videos, allow_missing_videos=True).num_rows == 7

    (videos / "self").symlink_to("self")
    message = fail(path, videos)
    assert "1 x unreadable folder of videos: " in message
    assert "without video files" not in message


# ---- MSR-VTT, rendered small in captions, whole in videos: the counts of its splits are part of the format

TEST_1K = random.Random(0).sample(range(7010, 10000), 1000)
TRAIN_9K = sorted(set(range(10000)) - set(TEST_1K))


def write_ids(path, numbers):
    path.write_text("video_id\n" + "".join(f"video{number}\n" for number in numbers))


def write_test_1k(path, numbers):
    rows = [f'ret{i},msr{number},video{number},"query {number}, è così"\r\n' for i, number in enumerate(numbers)]
    path.write_text("key,vid_key,video_id,sentence\r\n" + "".join(rows), encoding="utf-8", newline="")


def write_json(path, sentences, coco=False):
    ids = list(dict.fromkeys(video_id for video_id, _ in sentences))
    if coco:
        annotations = [{"image_id": id_, "caption": text, "id": i} for i, (id_, text) in enumerate(sentences)]
        content = {"images": [{"id": id_} for id_ in ids], "annotations": annotations}
    else:
        entries = [{"video_id": id_, "sen_id": i, "caption": text} for i, (id_, text) in enumerate(sentences)]
        content = {"info": {}, "videos": [{"video_id": id_, "split": "train"} for id_ in ids], "sentences": entries}
    data = json.dumps(content).encode()
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)


# Captions of a video are scattered over the file, and one is repeated, as in the real data.
SENTENCES = [(f"video{number}", f"caption {k % 2} of {number}") for k in range(3) for number in reversed(range(10000))]


@pytest.fixture
def msrvtt(tmp_path):
    folder = tmp_path / "msrvtt"
    folder.mkdir()
    write_json(folder / "MSRVTT_data.json", SENTENCES)
    write_ids(folder / "MSRVTT_train.9k.csv", TRAIN_9K)
    write_ids(folder / "MSRVTT_train.7k.csv", range(7010))
    write_ids(folder / "MSRVTT_train.full.csv", range(6513))
    write_ids(folder / "MSRVTT_val.full.csv", range(6513, 7010))
    write_ids(folder / "MSRVTT_test.full.csv", range(7010, 10000))
    write_test_1k(folder / "MSRVTT_JSFUSION_test.csv", TEST_1K)
    return folder


@pytest.fixture
def msrvtt_videos(tmp_path):
    return touch(tmp_path / "msrvtt_videos", "TrainVal/video0.mp4", "TrainVal/video1.AVI", "Test/notes.txt")


def load_split(folder, videos, split, allow_missing_videos=True, **held_out):
    arguments = {**HELD_OUT, **held_out, "allow_missing_videos": allow_missing_videos}
    return load_msrvtt(folder, videos, split=split, **arguments)


def fail_split(folder, videos, split="9k", **arguments):
    with pytest.raises(AnnotationError) as caught:
        load_split(folder, videos, split, **arguments)
    return str(caught.value)


@pytest.mark.parametrize(("split", "train"), [("9k", TRAIN_9K), ("7k", range(7010))])
def test_9k_and_7k_are_tested_on_1k_a(msrvtt, msrvtt_videos, split, train):
    table = load_split(msrvtt, msrvtt_videos, split)
    assert table.schema == CAPTIONS_SCHEMA
    rows = table.to_pylist()
    test = [row for row in rows if row["split"] == "test"]
    assert [(row["video_id"], row["caption"], row["caption_index"]) for row in test] == [
        (f"video{number}", f"query {number}, è così", 0) for number in TEST_1K
    ]
    assert rows[-1000:] == test

    splits = splits_of(table)
    assert list(splits) == ["train", "validation", "test"]
    assert len(splits["validation"]) == round(0.05 * len(train))
    held_out = set(splits["validation"])
    assert splits["train"] == [f"video{number}" for number in train if f"video{number}" not in held_out]
    assert splits["validation"] == [f"video{number}" for number in train if f"video{number}" in held_out]
    naive = {video_id: [text for id_, text in SENTENCES if id_ == video_id] for video_id in ("video0", "video7000")}
    for video_id, captions in naive.items():
        assert [row["caption"] for row in rows if row["clip_id"] == video_id] == captions
        assert [row["caption_index"] for row in rows if row["clip_id"] == video_id] == [0, 1, 2]


def test_full_has_its_own_validation(msrvtt, msrvtt_videos):
    table = load_split(msrvtt, msrvtt_videos, "full")
    assert {split: len(ids) for split, ids in splits_of(table).items()} == {
        "train": 6513,
        "validation": 497,
        "test": 2990,
    }
    assert table.num_rows == 30000
    assert load_split(msrvtt, msrvtt_videos, "full", validation_seed=1) == table


@pytest.mark.parametrize(
    ("name", "coco"), [("MSRVTT_data.json", True), ("MSRVTT_data.json.gz", False), ("MSR_VTT.json", True)]
)
def test_both_schemas_and_all_names_give_the_same_table(msrvtt, msrvtt_videos, name, coco):
    table = load_split(msrvtt, msrvtt_videos, "9k")
    (msrvtt / "MSRVTT_data.json").unlink()
    write_json(msrvtt / name, SENTENCES, coco)
    assert load_split(msrvtt, msrvtt_videos, "9k") == table


def test_video_files_are_found_by_name_at_any_depth(msrvtt, msrvtt_videos):
    (msrvtt_videos / "link").symlink_to(msrvtt_videos)
    (msrvtt_videos / "video0.mp4").symlink_to(msrvtt_videos / "TrainVal/video0.mp4")
    rows = load_split(msrvtt, msrvtt_videos, "9k").to_pylist()
    path_of = {row["video_id"]: Path(row["path"]) for row in rows}
    assert path_of["video0"].resolve() == msrvtt_videos / "TrainVal/video0.mp4"
    assert path_of["video1"] == msrvtt_videos / "TrainVal/video1.AVI"
    assert path_of["video2"] == msrvtt_videos / "video2.mp4"
    message = fail_split(msrvtt, msrvtt_videos, allow_missing_videos=False)
    assert "9998 x video without a file: video2, video3, video4, video5, video6, ...\n" in message

    touch(msrvtt_videos, "Test/video1.mp4")
    message = fail_split(msrvtt, msrvtt_videos)
    assert "1 x video with several files: video1: Test/video1.mp4 and TrainVal/video1.AVI\n" in message


def test_every_missing_file_is_named(tmp_path):
    message = fail_split(tmp_path / "nothing", tmp_path / "no videos", "full")
    assert "4 x missing file: MSRVTT_data.json (or MSRVTT_data.json.gz, " in message
    assert ", MSRVTT_train.full.csv, MSRVTT_val.full.csv, MSRVTT_test.full.csv\n" in message
    assert f"put it into {tmp_path / 'nothing'}\n" in message
    assert f"1 x missing folder of videos: {tmp_path / 'no videos'}\n" in message


def test_what_differs_from_the_official_split_is_said(msrvtt, msrvtt_videos):
    leaked = TEST_1K[0]
    write_ids(msrvtt / "MSRVTT_train.9k.csv", [*TRAIN_9K[:5], *TRAIN_9K[6:-1], leaked, leaked])
    write_test_1k(msrvtt / "MSRVTT_JSFUSION_test.csv", TEST_1K[:-1])
    message = fail_split(msrvtt, msrvtt_videos)
    assert f"1 x video in two splits: video{leaked} (train, test)\n" in message
    assert f"1 x video listed twice: line 9001 of MSRVTT_train.9k.csv: video{leaked}\n" in message
    assert "MSRVTT_train.9k.csv has 8999 videos instead of 9000" in message
    assert "MSRVTT_JSFUSION_test.csv has 999 videos instead of 1000" in message

    write_ids(msrvtt / "MSRVTT_train.7k.csv", range(7, 7010))
    write_test_1k(msrvtt / "MSRVTT_JSFUSION_test.csv", [3, *TEST_1K[1:]])
    message = fail_split(msrvtt, msrvtt_videos, "7k")
    assert "MSRVTT_train.7k.csv has 7003 videos instead of 7010\n" in message
    assert "1 x video that is not in the official test split: video3 in MSRVTT_JSFUSION_test.csv\n" in message

    write_ids(msrvtt / "MSRVTT_val.full.csv", [])
    write_ids(msrvtt / "MSRVTT_train.full.csv", range(6512))
    message = fail_split(msrvtt, msrvtt_videos, "full")
    assert "MSRVTT_val.full.csv has 0 videos instead of 497, without video6513, " in message
    assert "2 x list that differs from the official full split: MSRVTT_train.full.csv has 6512 videos " in message
    assert "instead of 6513, without video6512, MSRVTT_val" in message


def test_one_msrvtt_error_has_every_kind_of_problem(msrvtt, msrvtt_videos):
    sentences = [sentence for sentence in SENTENCES if sentence[0] != "video5"]
    sentences[3] = ("../../video7", "a path")
    sentences[4] = (12, "a number")
    sentences[5] = ("video8", "  ")
    sentences[6] = ("video9", None)
    write_json(msrvtt / "MSRVTT_data.json", sentences)
    write_ids(msrvtt / "MSRVTT_train.9k.csv", [*TRAIN_9K, "7/../../video"])
    (msrvtt / "MSRVTT_JSFUSION_test.csv").write_text("video0,some sentence\n")
    message = fail_split(msrvtt, msrvtt_videos)
    for expected in (
        "3 x id that is not an MSR-VTT one: entry 3 of MSRVTT_data.json: video_id '../../video7', ",
        "line 9002 of MSRVTT_train.9k.csv: 'video7/../../video'\n",
        "1 x empty caption: entry 5 of MSRVTT_data.json: video8 '  '\n",
        "1 x caption that is not text: entry 6 of MSRVTT_data.json: video9 None\n",
        "1 x video without captions: video5\n",
        "missing column: video_id, sentence in MSRVTT_JSFUSION_test.csv (found: video0, some sentence)\n",
    ):
        assert expected in message, (expected, message)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            b'{"database": [], "taxonomy": {}}',
            "1 x unknown JSON schema: MSRVTT_data.json has keys database, taxonomy\n",
        ),
        (b"[]", "1 x unknown JSON schema: MSRVTT_data.json has list\n"),
        (b'{"sentences": [', "1 x unreadable JSON file: MSRVTT_data.json ("),
        (b'{"sentences": ["\xff"]}', "1 x unreadable JSON file: MSRVTT_data.json ("),
    ],
)
def test_json_that_is_not_understood(msrvtt, msrvtt_videos, content, expected):
    (msrvtt / "MSRVTT_data.json").write_bytes(content)
    message = fail_split(msrvtt, msrvtt_videos)
    assert expected in message
    assert "1 problem\n" in message
    if "schema" in expected:
        assert "`sentences` of {video_id, caption}" in message
        assert "`annotations` of {image_id, caption}" in message


def test_truncated_gz(msrvtt, msrvtt_videos):
    (msrvtt / "MSRVTT_data.json").unlink()
    write_json(msrvtt / "MSRVTT_data.json.gz", SENTENCES[:100])
    whole = (msrvtt / "MSRVTT_data.json.gz").read_bytes()
    for broken in (whole[:200], b"not gz", whole[:100] + b"xxxxxxxx" + whole[108:]):
        (msrvtt / "MSRVTT_data.json.gz").write_bytes(broken)
        assert "1 x unreadable JSON file: MSRVTT_data.json.gz (" in fail_split(msrvtt, msrvtt_videos)


# ---- MSR-VTT, the real files (captions machine-translated to Italian: 7,110 of the 10,000 videos)


@pytest.fixture
def real(tmp_path):
    if not (MSRVTT / ITALIAN).is_file():
        pytest.skip(f"no MSR-VTT annotations in {MSRVTT}")
    folder = tmp_path / "real"
    folder.mkdir()
    for path in MSRVTT.glob("*.csv"):
        (folder / path.name).symlink_to(path)
    (folder / "MSRVTT_data.json.gz").symlink_to(MSRVTT / ITALIAN)
    return folder


def test_real_7k(real, msrvtt_videos):
    table = load_split(real, msrvtt_videos, "7k")
    rows = table.to_pylist()
    assert table.num_rows == 7010 * 20 + 1000

    content = json.loads(gzip.decompress((MSRVTT / ITALIAN).read_bytes()))
    naive = {}
    for sentence in content["sentences"]:
        naive.setdefault(sentence["video_id"], []).append(sentence["caption"])
    with (MSRVTT / "MSRVTT_train.7k.csv").open(newline="") as file:
        train = [row["video_id"] for row in csv.DictReader(file)]
    with (MSRVTT / "MSRVTT_JSFUSION_test.csv").open(newline="") as file:
        test = [(row["video_id"], row["sentence"]) for row in csv.DictReader(file)]
    held_out = {row["video_id"] for row in rows if row["split"] == "validation"}
    assert len(held_out) == 350
    expected = [
        (video_id, index, caption)
        for part in ([v for v in train if v not in held_out], [v for v in train if v in held_out])
        for video_id in part
        for index, caption in enumerate(naive[video_id])
    ]
    expected += [(video_id, 0, caption) for video_id, caption in test]
    assert [(row["clip_id"], row["caption_index"], row["caption"]) for row in rows] == expected

    (real / "MSRVTT_data.json.gz").unlink()
    sentences = [(sentence["video_id"], sentence["caption"]) for sentence in content["sentences"]]
    write_json(real / "MSRVTT_data.json", sentences, coco=True)
    assert load_split(real, msrvtt_videos, "7k") == table


@pytest.mark.parametrize(("split", "without_captions"), [("9k", 1903), ("full", 2890)])
def test_real_lists_are_the_official_ones_and_missing_captions_are_counted(
    real, msrvtt_videos, split, without_captions
):
    message = fail_split(real, msrvtt_videos, split)
    assert f"{without_captions} x video without captions: " in message
    assert f"{without_captions} problems\n" in message
