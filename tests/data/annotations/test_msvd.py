import gzip
import json
import pickle
import subprocess
import sys

import pytest

from waver.data.annotations import CAPTIONS_SCHEMA, AnnotationError
from waver.data.annotations.msvd import load_msvd

# Ids of YouTube that begin with - or _, and contain both.
PARTS = {
    "train": ["-4wsuPCjDBc_5_15", "_UqnFL-_Q1c_0_8", "a-_-_-_1_9x_10_120"],
    "validation": ["klFyrnrUSck_133_139"],
    "test": ["-4wsuPCjDBc_20_25", "mv89psg6zh4_33_46"],
}
CAPTIONS = {
    clip_id: [f"{clip_id} caption {k}" for k in range(1 + number % 3)]
    for number, clip_id in enumerate(clip_id for clips in PARTS.values() for clip_id in clips)
}
FILES = {"train": "train_list.txt", "validation": "val_list.txt", "test": "test_list.txt"}


@pytest.fixture
def folder(tmp_path, publish):
    folder = tmp_path / "msvd"
    folder.mkdir()
    for part, name in FILES.items():
        # As in the original: train and val have no newline at the end.
        (folder / name).write_text("\n".join(PARTS[part]) + ("\n" if part == "test" else ""))
    (folder / "captions_msvd.json").write_text(json.dumps(CAPTIONS))
    publish("msvd", "official", {part: {clip: CAPTIONS[clip] for clip in clips} for part, clips in PARTS.items()})
    return folder


@pytest.fixture
def videos(tmp_path, touch):
    return touch(tmp_path / "videos", *(f"YouTubeClips/{clip_id}.avi" for clip_id in CAPTIONS))


def load(folder, videos, allow_missing_videos=False):
    return load_msvd(folder, videos, allow_missing_videos=allow_missing_videos)


def fail(folder, videos, **arguments):
    with pytest.raises(AnnotationError) as caught:
        load(folder, videos, **arguments)
    return str(caught.value)


def test_all_captions_in_the_order_of_the_lists(folder, videos):
    table = load(folder, videos)
    assert table.schema == CAPTIONS_SCHEMA
    assert table.schema.metadata == {b"validation": b"own"}
    expected = [
        (clip_id, str(videos / f"YouTubeClips/{clip_id}.avi"), None, None, caption, index, part)
        for part, clips in PARTS.items()
        for clip_id in clips
        for index, caption in enumerate(CAPTIONS[clip_id])
    ]
    columns = ["clip_id", "path", "start_s", "end_s", "caption", "caption_index", "split"]
    assert [tuple(row.values()) for row in table.select(columns).to_pylist()] == expected


def test_ids_are_split_from_the_right(folder, videos):
    video_of = {row["clip_id"]: row["video_id"] for row in load(folder, videos).to_pylist()}
    assert video_of == {
        "-4wsuPCjDBc_5_15": "-4wsuPCjDBc",
        "-4wsuPCjDBc_20_25": "-4wsuPCjDBc",
        "_UqnFL-_Q1c_0_8": "_UqnFL-_Q1c",
        "a-_-_-_1_9x_10_120": "a-_-_-_1_9x",
        "klFyrnrUSck_133_139": "klFyrnrUSck",
        "mv89psg6zh4_33_46": "mv89psg6zh4",
    }


def test_line_ends_byte_order_mark_and_gz_do_not_matter(folder, videos):
    table = load(folder, videos)
    for name in FILES.values():
        (folder / name).write_bytes(
            b"\xef\xbb\xbf" + (folder / name).read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n"
        )
    (folder / "captions_msvd.json").unlink()
    (folder / "captions_msvd.json.gz").write_bytes(gzip.compress(json.dumps(CAPTIONS).encode("utf-8-sig")))
    assert load(folder, videos) == table


def test_captions_of_other_clips_are_ignored(folder, videos):
    table = load(folder, videos)
    others = {"zzzzzzzzzzz_1_2": ["not of the split"], "../../etc": 7, **CAPTIONS}
    (folder / "captions_msvd.json").write_text(json.dumps(others))
    assert load(folder, videos) == table


def test_the_pickle_is_not_read_and_the_error_has_a_command_to_convert_it(folder, videos):
    table = load(folder, videos)
    (folder / "captions_msvd.json").unlink()
    words = {clip_id: [caption.split() for caption in captions] for clip_id, captions in CAPTIONS.items()}
    (folder / "raw-captions.pkl").write_bytes(pickle.dumps(words))
    message = fail(folder, videos)
    assert "1 x missing file: captions_msvd.json (or captions_msvd.json.gz)\n" in message
    assert "raw-captions.pkl is not read, because a pickle can run any program" in message

    program = message.split('python -c "')[1].split('"\n')[0].rstrip('"')
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True)
    assert load(folder, videos) == table


def test_every_missing_file_is_named(tmp_path):
    message = fail(tmp_path / "nothing", tmp_path / "no videos")
    assert "4 x missing file: train_list.txt, val_list.txt, test_list.txt, captions_msvd.json (or " in message
    assert "pickle" not in message
    assert "1 x missing folder of videos: " in message


def test_differences_from_the_published_split_are_listed(folder, videos):
    (folder / "train_list.txt").write_text("\n".join([*PARTS["train"][1:], PARTS["test"][0], PARTS["test"][0]]))
    (folder / "val_list.txt").write_text("")
    message = fail(folder, videos)
    assert "1 x video listed twice: line 4 of train_list.txt: -4wsuPCjDBc_20_25\n" in message
    assert "1 x video in two splits: -4wsuPCjDBc_20_25 (train, test)\n" in message
    assert "2 x list that differs from the published one of MSVD official, all captions: " in message
    assert (
        "train_list.txt has 3 videos, but not the published ones, val_list.txt has 0 videos instead of 1\n" in message
    )


def test_another_number_of_captions_is_an_error(folder, videos):
    captions = {
        **CAPTIONS,
        "klFyrnrUSck_133_139": ["only one"],
        "mv89psg6zh4_33_46": [*CAPTIONS["mv89psg6zh4_33_46"], "more"],
    }
    (folder / "captions_msvd.json").write_text(json.dumps(captions))
    message = fail(folder, videos)
    num_test = sum(len(CAPTIONS[clip_id]) for clip_id in PARTS["test"])
    assert f"test has {num_test + 1} captions instead of {num_test}" in message


def test_one_error_has_every_kind_of_problem(folder, videos):
    captions = {**CAPTIONS, "_UqnFL-_Q1c_0_8": "a string", "klFyrnrUSck_133_139": []}
    captions["-4wsuPCjDBc_5_15"] = ["fine", " ", None, ["a", "list"], "half a character \ud83d"]
    del captions["mv89psg6zh4_33_46"]
    (folder / "captions_msvd.json").write_text(json.dumps(captions))
    lines = ["../../../etc/passwd", "/etc/passwd", "a\x00b", "..", "mv89psg6zh4_33", "x" * 5000, "mv89psg6zh4_33_46"]
    (folder / "test_list.txt").write_text("\n".join(lines))
    (videos / "YouTubeClips/klFyrnrUSck_133_139.avi").unlink()
    message = fail(folder, videos)
    for expected in (
        "6 x id that is not of MSVD: line 1 of test_list.txt: '../../../etc/passwd', ",
        "line 2 of test_list.txt: '/etc/passwd', ",
        "line 3 of test_list.txt: 'a\\x00b', ",
        "ids are <YouTube id>_<start>_<end>, such as -4wsuPCjDBc_5_15\n",
        "1 x captions that are not a list: _UqnFL-_Q1c_0_8 in captions_msvd.json: 'a string'\n",
        "1 x empty caption: number 1 of -4wsuPCjDBc_5_15 in captions_msvd.json: ' '\n",
        "3 x caption that is not text: number 2 of -4wsuPCjDBc_5_15 in captions_msvd.json: None, ",
        "'half a character \\ud83d'\n",
        "3 x video without captions: _UqnFL-_Q1c_0_8, klFyrnrUSck_133_139, mv89psg6zh4_33_46\n",
        "1 x video without a file: klFyrnrUSck_133_139\n",
    ):
        assert expected in message, (expected, message)
    assert len(message) < 5000


@pytest.mark.parametrize("content", ["[]", '{"a": ["b"]}', "null", "{}"])
def test_unknown_json_schema_is_an_error(folder, videos, content):
    (folder / "captions_msvd.json").write_text(content)
    message = fail(folder, videos)
    assert "1 x unknown JSON schema: captions_msvd.json has " in message
    assert "1 problem\n" in message


def test_missing_videos_can_be_allowed(folder, videos):
    (videos / "YouTubeClips/mv89psg6zh4_33_46.avi").unlink()
    path_of = {row["clip_id"]: row["path"] for row in load(folder, videos, allow_missing_videos=True).to_pylist()}
    assert path_of["mv89psg6zh4_33_46"] == str(videos / "mv89psg6zh4_33_46.avi")


@pytest.mark.slow
def test_real_files(shared_annotations, videos, splits_of):
    folder = shared_annotations("msvd")
    table = load(folder, videos, allow_missing_videos=True)
    splits = splits_of(table)
    assert {part: len(clips) for part, clips in splits.items()} == {"train": 1200, "validation": 100, "test": 670}
    rows = table.to_pylist()
    counts = {part: sum(row["split"] == part for row in rows) for part in FILES}
    assert counts == {"train": 48_774, "validation": 4_290, "test": 27_763}

    naive = json.loads((folder / "captions_msvd.json").read_text())
    listed = {part: (folder / name).read_text().split("\n") for part, name in FILES.items()}
    assert splits == {part: [line for line in lines if line] for part, lines in listed.items()}
    assert [row["caption"] for row in rows] == [
        caption for clips in splits.values() for clip_id in clips for caption in naive[clip_id]
    ]
