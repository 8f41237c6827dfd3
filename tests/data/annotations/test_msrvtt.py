import csv
import gzip
import json
import random
from pathlib import Path

import pytest

from waver.data.annotations import CAPTIONS_SCHEMA, AnnotationError
from waver.data.annotations.msrvtt import load_msrvtt

HELD_OUT = {"validation_fraction": 0.05, "validation_seed": 0}
ITALIAN = "videodatainfoITALIANO_2017_6513_497_100_TestValidati.json.gz"

# A hundredth of MSR-VTT, whose splits are published for the test.
TEST_1K = random.Random(0).sample(range(70, 100), 10)
TRAIN_9K = sorted(set(range(100)) - set(TEST_1K))
# Captions of a video are scattered over the file, and one is repeated, as in the real data.
SENTENCES = [(f"video{number}", f"caption {k % 2} of {number}") for k in range(3) for number in reversed(range(100))]


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


def three_each(numbers):
    return {f"video{number}": ["", "", ""] for number in numbers}


@pytest.fixture
def folder(tmp_path, publish):
    folder = tmp_path / "msrvtt"
    folder.mkdir()
    write_json(folder / "MSRVTT_data.json", SENTENCES)
    write_ids(folder / "MSRVTT_train.9k.csv", TRAIN_9K)
    write_ids(folder / "MSRVTT_train.7k.csv", range(70))
    write_ids(folder / "MSRVTT_train.full.csv", range(65))
    write_ids(folder / "MSRVTT_val.full.csv", range(65, 70))
    write_ids(folder / "MSRVTT_test.full.csv", range(70, 100))
    write_test_1k(folder / "MSRVTT_JSFUSION_test.csv", TEST_1K)
    test_1k_a = {f"video{number}": [""] for number in TEST_1K}
    publish("msrvtt", "9k", {"train": three_each(TRAIN_9K), "test": test_1k_a})
    publish("msrvtt", "7k", {"train": three_each(range(70)), "test": test_1k_a})
    full = {"train": range(65), "validation": range(65, 70), "test": range(70, 100)}
    publish("msrvtt", "full", {part: three_each(numbers) for part, numbers in full.items()})
    return folder


@pytest.fixture
def videos(tmp_path, touch):
    return touch(tmp_path / "videos", "TrainVal/video0.mp4", "TrainVal/video1.AVI", "Test/notes.txt")


def load(folder, videos, split="9k", allow_missing_videos=True, **held_out):
    arguments = {**HELD_OUT, **held_out, "allow_missing_videos": allow_missing_videos}
    return load_msrvtt(folder, videos, split=split, **arguments)


def fail(folder, videos, split="9k", **arguments):
    with pytest.raises(AnnotationError) as caught:
        load(folder, videos, split, **arguments)
    return str(caught.value)


@pytest.mark.parametrize(("split", "train"), [("9k", TRAIN_9K), ("7k", range(70))])
def test_9k_and_7k_are_tested_on_1k_a(folder, videos, splits_of, split, train):
    table = load(folder, videos, split)
    assert table.schema == CAPTIONS_SCHEMA
    rows = table.to_pylist()
    test = [row for row in rows if row["split"] == "test"]
    assert [(row["video_id"], row["caption"], row["caption_index"]) for row in test] == [
        (f"video{number}", f"query {number}, è così", 0) for number in TEST_1K
    ]
    assert rows[-10:] == test

    splits = splits_of(table)
    assert list(splits) == ["train", "validation", "test"]
    assert len(splits["validation"]) == round(0.05 * len(train))
    held_out = set(splits["validation"])
    assert splits["train"] == [f"video{number}" for number in train if f"video{number}" not in held_out]
    assert splits["validation"] == [f"video{number}" for number in train if f"video{number}" in held_out]
    naive = {video_id: [text for id_, text in SENTENCES if id_ == video_id] for video_id in ("video0", "video69")}
    for video_id, captions in naive.items():
        assert [row["caption"] for row in rows if row["clip_id"] == video_id] == captions
        assert [row["caption_index"] for row in rows if row["clip_id"] == video_id] == [0, 1, 2]


def test_full_has_its_own_validation(folder, videos, splits_of):
    table = load(folder, videos, "full")
    counts = {split: len(ids) for split, ids in splits_of(table).items()}
    assert counts == {"train": 65, "validation": 5, "test": 30}
    assert table.num_rows == 300
    assert load(folder, videos, "full", validation_seed=1) == table


@pytest.mark.parametrize(
    ("name", "coco"), [("MSRVTT_data.json", True), ("MSRVTT_data.json.gz", False), ("MSR_VTT.json", True)]
)
def test_both_schemas_and_all_names_give_the_same_table(folder, videos, name, coco):
    table = load(folder, videos)
    (folder / "MSRVTT_data.json").unlink()
    write_json(folder / name, SENTENCES, coco)
    assert load(folder, videos) == table


def test_video_files_are_found_by_name_at_any_depth(folder, videos, touch):
    (videos / "link").symlink_to(videos)
    (videos / "video0.mp4").symlink_to(videos / "TrainVal/video0.mp4")
    rows = load(folder, videos).to_pylist()
    path_of = {row["video_id"]: Path(row["path"]) for row in rows}
    assert path_of["video0"].resolve() == videos / "TrainVal/video0.mp4"
    assert path_of["video1"] == videos / "TrainVal/video1.AVI"
    assert path_of["video2"] == videos / "video2.mp4"
    message = fail(folder, videos, allow_missing_videos=False)
    assert "98 x video without a file: video2, video3, video4, video5, video6, ...\n" in message

    touch(videos, "Test/video1.mp4")
    message = fail(folder, videos)
    assert "1 x video with several files: video1: Test/video1.mp4 and TrainVal/video1.AVI\n" in message


def test_every_missing_file_is_named(tmp_path):
    message = fail(tmp_path / "nothing", tmp_path / "no videos", "full")
    assert "4 x missing file: MSRVTT_data.json or MSR_VTT.json (each also as .gz), " in message
    assert ", MSRVTT_train.full.csv, MSRVTT_val.full.csv, MSRVTT_test.full.csv\n" in message
    assert f"put it into {tmp_path / 'nothing'}\n" in message
    assert f"1 x missing folder of videos: {tmp_path / 'no videos'}\n" in message


def test_differences_from_the_published_split_are_listed(folder, videos):
    leaked = TEST_1K[0]
    write_ids(folder / "MSRVTT_train.9k.csv", [*TRAIN_9K[:5], *TRAIN_9K[6:-1], leaked, leaked])
    write_test_1k(folder / "MSRVTT_JSFUSION_test.csv", TEST_1K[:-1])
    message = fail(folder, videos)
    assert f"1 x video in two splits: video{leaked} (train, test)\n" in message
    assert f"1 x video listed twice: line 91 of MSRVTT_train.9k.csv: video{leaked}\n" in message
    assert "2 x list that differs from the published one of MSR-VTT 1k-A, 9k train: " in message
    assert "MSRVTT_train.9k.csv has 89 videos instead of 90, " in message
    assert "MSRVTT_JSFUSION_test.csv has 9 videos instead of 10\n" in message

    # As many videos as there should be, but one of them another.
    write_test_1k(folder / "MSRVTT_JSFUSION_test.csv", [3, *TEST_1K[1:]])
    message = fail(folder, videos, "7k")
    assert "1 x video in two splits: video3 (train, test)\n" in message
    assert "MSRVTT_JSFUSION_test.csv has 10 videos, but not the published ones\n" in message

    write_ids(folder / "MSRVTT_val.full.csv", [])
    message = fail(folder, videos, "full")
    assert "MSRVTT_val.full.csv has 0 videos instead of 5\n" in message


def test_another_number_of_captions_is_an_error(folder, videos):
    write_json(folder / "MSRVTT_data.json", SENTENCES[:-1])
    message = fail(folder, videos)
    assert (
        "1 x number of captions that differs from the published one: train has 269 captions instead of 270\n" in message
    )


def test_one_error_has_every_kind_of_problem(folder, videos):
    sentences = [sentence for sentence in SENTENCES if sentence[0] != "video5"]
    sentences[3] = ("../../video7", "a path")
    sentences[4] = (12, "a number")
    sentences[5] = ("video8", "  ")
    sentences[6] = ("video9", None)
    sentences[7] = ("video9", "half a character \ud83d")
    write_json(folder / "MSRVTT_data.json", sentences)
    write_ids(folder / "MSRVTT_train.9k.csv", [*TRAIN_9K, "7/../../video"])
    (folder / "MSRVTT_JSFUSION_test.csv").write_text("video0,some sentence\n")
    message = fail(folder, videos)
    for expected in (
        "3 x id that is not of MSR-VTT: entry 3 of MSRVTT_data.json, video_id: '../../video7', ",
        "line 92 of MSRVTT_train.9k.csv: 'video7/../../video'\n",
        "1 x empty caption: entry 5 of MSRVTT_data.json: video8 '  '\n",
        "2 x caption that is not text: entry 6 of MSRVTT_data.json: video9 None, ",
        "entry 7 of MSRVTT_data.json: video9 'half a character \\ud83d'\n",
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
def test_unknown_json_schema_is_an_error(folder, videos, content, expected):
    (folder / "MSRVTT_data.json").write_bytes(content)
    message = fail(folder, videos)
    assert expected in message
    assert "1 problem\n" in message
    if "schema" in expected:
        assert "`sentences` of {video_id, caption}" in message
        assert "`annotations` of {image_id, caption}" in message


def test_truncated_gz_is_an_error(folder, videos):
    (folder / "MSRVTT_data.json").unlink()
    write_json(folder / "MSRVTT_data.json.gz", SENTENCES)
    whole = (folder / "MSRVTT_data.json.gz").read_bytes()
    for broken in (whole[:200], b"not gz", whole[:100] + b"xxxxxxxx" + whole[108:]):
        (folder / "MSRVTT_data.json.gz").write_bytes(broken)
        assert "1 x unreadable JSON file: MSRVTT_data.json.gz (" in fail(folder, videos)


def test_file_instead_of_the_folder_of_annotations_is_an_error(folder, videos):
    message = fail(folder / "MSRVTT_data.json", videos)
    assert "1 x file instead of a folder of annotations" in message
    assert "name the folder with MSRVTT_data.json and the csv files of the split" in message


# ---- the real files (captions machine-translated to Italian: 7,110 of the 10,000 videos)


@pytest.fixture
def real(tmp_path, shared_annotations):
    folder = tmp_path / "real"
    folder.mkdir()
    for path in shared_annotations("msrvtt").iterdir():
        (folder / ("MSRVTT_data.json.gz" if path.name == ITALIAN else path.name)).symlink_to(path)
    return folder


@pytest.mark.slow
def test_real_7k(real, videos):
    table = load(real, videos, "7k")
    rows = table.to_pylist()
    assert table.num_rows == 7010 * 20 + 1000

    content = json.loads(gzip.decompress((real / "MSRVTT_data.json.gz").read_bytes()))
    naive = {}
    for sentence in content["sentences"]:
        naive.setdefault(sentence["video_id"], []).append(sentence["caption"])
    with (real / "MSRVTT_train.7k.csv").open(newline="") as file:
        train = [row["video_id"] for row in csv.DictReader(file)]
    with (real / "MSRVTT_JSFUSION_test.csv").open(newline="") as file:
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


@pytest.mark.slow
@pytest.mark.parametrize(("split", "without_captions"), [("9k", 1903), ("full", 2890)])
def test_real_lists_are_the_published_ones_and_missing_captions_are_counted(real, videos, split, without_captions):
    message = fail(real, videos, split)
    assert f"{without_captions} x video without captions: " in message
    assert f"{without_captions} problems\n" in message
