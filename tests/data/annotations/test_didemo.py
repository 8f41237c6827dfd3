import csv
import gzip
import json
from pathlib import Path

import pytest

from waver.data.annotations import CAPTIONS_SCHEMA, AnnotationError, didemo
from waver.data.annotations.didemo import load_didemo

# The endings that names have in the lists; one of them is but a dot.
ENDINGS = [".mov", ".avi", ".", ".mp4", ".3g2", ".m2ts", ".mts", ".qt", ".null", ".divx"]
NAMES = [f"{100 + n}@N0{n}_{n}_{n}abc{ending}" for n, ending in enumerate(ENDINGS)]
PARTS = {"train": NAMES[:5], "validation": NAMES[5:7], "test": NAMES[7:]}
ORIGINAL = {"train": "train", "validation": "val", "test": "test"}
PARAGRAPH = {name: " ".join(f"{name} part {k}." for k in range(1 + n % 3)) for n, name in enumerate(NAMES)}
HEADER = "success,video_path,starts,ends,text,formatted_data"


def stem(name):
    return name.rpartition(".")[0]


def entries(names):
    """Records as in the original, in which those of a video do not stand together."""
    described = [
        {
            "num_segments": 6,
            "description": f"{name} part {k}.",
            "times": [[1, 1]] * 4,
            "video": name,
            "annotation_id": k,
        }
        for k in range(3)
        for name in names
        if k <= NAMES.index(name) % 3
    ]
    other = {
        "num_segments": 5,
        "description": "of no list",
        "times": [[0, 0]],
        "video": "1@N00_1_1.mov",
        "annotation_id": 0,
    }
    return [other, *described]


def write_json(folder, part):
    path = folder / f"{ORIGINAL[part]}_data.json"
    path.write_text(json.dumps(entries(PARTS[part])))
    return path


def write_labels(folder, part, names=None):
    path = folder / f"didemo_{ORIGINAL[part]}_label.csv"
    rows = [
        f'True,/home/somebody/didemo/{name},tensor([[0]]),tensor([[31]]),"{PARAGRAPH[name]}",/home/x.pth\r\n'
        for name in (PARTS[part] if names is None else names)
    ]
    path.write_text(f"{HEADER}\r\n" + "".join(rows), newline="")
    return path


@pytest.fixture
def folder(tmp_path, publish):
    folder = tmp_path / "didemo"
    folder.mkdir()
    for part, names in PARTS.items():
        (folder / f"{ORIGINAL[part]}_list.txt").write_text("".join(f"{name}\n" for name in names))
        write_json(folder, part)
    publish("didemo", "official", {part: {stem(name): [""] for name in names} for part, names in PARTS.items()})
    return folder


@pytest.fixture
def videos(tmp_path, touch):
    return touch(tmp_path / "videos", *NAMES)


def load(folder, videos, allow_missing_captions=False, allow_missing_videos=False):
    return load_didemo(
        folder, videos, allow_missing_captions=allow_missing_captions, allow_missing_videos=allow_missing_videos
    )


def fail(folder, videos, **arguments):
    with pytest.raises(AnnotationError) as caught:
        load(folder, videos, **arguments)
    return str(caught.value)


def test_all_descriptions_of_a_video_are_one_query(folder, videos):
    table = load(folder, videos)
    assert table.schema == CAPTIONS_SCHEMA
    assert table.schema.metadata == {b"validation": b"own"}
    assert table.to_pylist() == [
        {
            "video_id": stem(name),
            "clip_id": stem(name),
            "path": str(videos / name),
            "start_s": 0.0,
            "end_s": 31.0,
            "caption": PARAGRAPH[name],
            "caption_index": 0,
            "split": part,
            "style": None,
        }
        for part, names in PARTS.items()
        for name in names
    ]


def test_descriptions_are_joined_unchanged_by_one_space(folder, videos):
    content = entries(PARTS["test"])
    content[1]["description"] += " "
    (folder / "test_data.json").write_text(json.dumps(content))
    rows = {row["clip_id"]: row["caption"] for row in load(folder, videos).to_pylist()}
    name = content[1]["video"]
    parts = PARAGRAPH[name].split(" " + name)
    assert rows[stem(name)] == parts[0] + " " + "".join(f" {name}{part}" for part in parts[1:])


def test_labels_of_t_mass_give_the_same_table(folder, videos):
    table = load(folder, videos)
    for part in PARTS:
        (folder / f"{ORIGINAL[part]}_data.json").unlink()
        write_labels(folder, part)
    assert load(folder, videos) == table


def test_original_files_are_preferred_and_may_be_compressed(folder, videos):
    table = load(folder, videos)
    path = folder / "test_data.json"
    (folder / "test_data.json.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    (folder / "didemo_test_label.csv").write_text("nothing of use")
    assert load(folder, videos) == table


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name,
        lambda name: f"{stem(name)}.mp4",
        lambda name: f"{stem(name)}.MP4",
        lambda name: f"{name}.mp4",
        lambda name: stem(name),
        lambda name: f"sub/folder/{name}",
    ],
    ids=["as listed", "all .mp4", "all .MP4", "one more .mp4", "no ending", "deeper"],
)
def test_files_are_found_whatever_their_extension(folder, tmp_path, touch, rename):
    videos = touch(tmp_path / "renamed", *map(rename, NAMES), "unrelated.mp4", "list.txt")
    path_of = {row["clip_id"]: row["path"] for row in load(folder, videos).to_pylist()}
    assert path_of == {stem(name): str(videos / rename(name)) for name in NAMES}


def test_two_files_of_one_video_are_an_error(folder, videos, touch):
    touch(videos, f"small/{stem(NAMES[0])}.mp4", f"{NAMES[2]}.mp4")
    # A link is no second file.
    (videos / f"{stem(NAMES[1])}.mkv").symlink_to(videos / NAMES[1])
    message = fail(folder, videos)
    assert f"2 x video with several files: {stem(NAMES[0])}: {NAMES[0]} and small/{stem(NAMES[0])}.mp4, " in message
    assert f"{stem(NAMES[2])}: {NAMES[2]} and {NAMES[2]}.mp4\n" in message


def test_missing_videos_can_be_allowed(folder, videos):
    (videos / NAMES[2]).unlink()
    assert f"1 x video without a file: {stem(NAMES[2])}\n" in fail(folder, videos)
    path_of = {row["clip_id"]: row["path"] for row in load(folder, videos, allow_missing_videos=True).to_pylist()}
    assert path_of[stem(NAMES[2])] == str(videos / NAMES[2])


@pytest.fixture
def lacking(folder, monkeypatch):
    """Labels that lack one video of train, which is known, and none of the others."""
    monkeypatch.setattr(didemo, "NUM_LEFT_OUT", {"train": 1, "validation": 1, "test": 0})
    (folder / "train_data.json").unlink()
    write_labels(folder, "train", PARTS["train"][:-1])
    return folder


def test_videos_without_captions_are_left_out_only_if_allowed(lacking, videos, splits_of):
    message = fail(lacking, videos)
    assert f"1 x video of train without captions: {stem(PARTS['train'][-1])}\n" in message
    assert "take the original train_data.json, or set data.allow_missing_captions to leave them out" in message
    assert splits_of(load(lacking, videos, allow_missing_captions=True)) == {
        part: [stem(name) for name in (names[:-1] if part == "train" else names)] for part, names in PARTS.items()
    }


def test_more_videos_than_t_mass_lacks_are_an_error(lacking, videos):
    write_labels(lacking, "train", PARTS["train"][:-2])
    message = fail(lacking, videos, allow_missing_captions=True)
    assert f"2 x video of train without captions: {', '.join(map(stem, PARTS['train'][-2:]))}\n" in message
    assert "original train_data.json, which has all of them, or didemo_train_label.csv, which lacks 1" in message


def test_test_videos_without_captions_are_an_error(lacking, videos):
    (lacking / "test_data.json").write_text(json.dumps(entries(PARTS["test"][1:])))
    message = fail(lacking, videos, allow_missing_captions=True)
    assert f"1 x video of test without captions: {stem(PARTS['test'][0])}\n" in message
    assert "the gallery must be complete: take the original test_data.json or didemo_test_label.csv" in message


def test_every_missing_file_is_named(tmp_path):
    message = fail(tmp_path / "nothing", tmp_path / "no videos")
    assert "3 x missing file: train_list.txt, val_list.txt, test_list.txt\n" in message
    assert "1 x missing folder of videos: " in message


def test_missing_caption_file_names_the_alternatives(folder, videos):
    (folder / "val_data.json").unlink()
    message = fail(folder, videos)
    assert "1 x missing file: val_data.json (or val_data.json.gz, didemo_val_label.csv)\n" in message
    assert "1 problem\n" in message


def test_differences_from_the_published_split_are_listed(folder, videos):
    other = "1@N00_1_1.mov"
    (folder / "train_list.txt").write_text("\n".join([*PARTS["train"][1:], other, other]))
    message = fail(folder, videos)
    assert f"1 x video listed twice: line 6 of train_list.txt: {other}\n" in message
    assert (
        "1 x list that differs from the published one of DiDeMo paragraph-to-video: train_list.txt has 5 videos, but"
        in message
    )


def test_one_error_has_every_kind_of_problem(folder, videos):
    lines = [
        *PARTS["test"],
        "../../100@N00_1_1.mov",
        "/a/100@N00_1_1.mov",
        "100@N00_1_1.mov/..",
        "100@N00_1_1",
        "a\x00",
    ]
    (folder / "test_list.txt").write_text("\n".join(lines))
    content = entries(PARTS["test"])
    content += [{"video": "../x.mov", "description": "x"}, {"video": 7}, "text"]
    content += [{"video": PARTS["test"][0], "description": " "}, {"video": PARTS["test"][0], "description": ["x"]}]
    (folder / "test_data.json").write_text(json.dumps(content))
    (folder / "val_data.json").write_text("{}")
    (folder / "train_data.json").unlink()
    path = write_labels(folder, "train")
    path.write_text(
        path.read_text()
        + f'True,/x/{NAMES[0]},0,31,other,x\nTrue,/x/..,0,31,y,x\nTrue,/x/{NAMES[1]},0,31," ",x\nTrue,x\n'
    )
    first = len(content) - 5
    message = fail(folder, videos)
    for expected in (
        "9 x id that is not of DiDeMo: line 4 of test_list.txt: '../../100@N00_1_1.mov', line 5 of test_list.txt: '/a/",
        "1 x unknown JSON schema: val_data.json has keys (none)\n",
        f"2 x empty caption: line 9 of didemo_train_label.csv: {stem(NAMES[1])}, entry {first + 3} of test_data.json: ",
        f"1 x caption that is not text: entry {first + 4} of test_data.json: {stem(PARTS['test'][0])} ['x']",
        f"1 x video with two paragraphs: line 7 of didemo_train_label.csv: {stem(NAMES[0])}\n",
        "1 x row with a wrong number of fields: line 10 of didemo_train_label.csv (2)\n",
    ):
        assert expected in message, (expected, message)


def test_labels_without_their_columns(folder, videos):
    (folder / "val_data.json").unlink()
    (folder / "didemo_val_label.csv").write_text("video,text\na,b\n")
    message = fail(folder, videos)
    assert "1 x missing column: video_path in didemo_val_label.csv (found: video, text)\n" in message


# ---- the real files


@pytest.mark.slow
def test_real_files(shared_annotations, tmp_path, touch, splits_of):
    folder = shared_annotations("didemo")
    names = {part: (folder / f"{ORIGINAL[part]}_list.txt").read_text().split() for part in PARTS}
    videos = touch(tmp_path / "videos", *(f"{name.rpartition('.')[0]}.mp4" for name in names["test"]))
    message = fail(folder, videos, allow_missing_videos=True)
    assert "30 x video of train without captions: " in message
    assert "30 problems\n" in message

    table = load(folder, videos, allow_missing_captions=True, allow_missing_videos=True)
    splits = splits_of(table)
    assert {part: len(clips) for part, clips in splits.items()} == {"train": 8362, "validation": 1065, "test": 1004}
    assert splits["test"] == [stem(name) for name in names["test"]]
    rows = table.to_pylist()
    assert all(row["path"] == str(videos / f"{row['clip_id']}.mp4") for row in rows if row["split"] == "test")

    described = {}
    for name in ("val_data.json", "test_data.json"):
        for entry in json.loads((folder / name).read_text()):
            described.setdefault(stem(entry["video"]), []).append(entry["description"])
    for row in rows:
        if row["split"] != "train":
            assert row["caption"] == " ".join(described[row["clip_id"]])


@pytest.mark.slow
def test_real_labels(shared_annotations, tmp_path, touch):
    source, folder = shared_annotations("didemo"), tmp_path / "labels"
    folder.mkdir()
    for path in source.iterdir():
        if path.suffix != ".json":
            (folder / path.name).symlink_to(path)
    videos = touch(tmp_path / "videos", "any.mp4")
    message = fail(folder, videos, allow_missing_videos=True)
    assert "30 x video of train without captions: " in message
    assert "3 x video of validation without captions: " in message
    table = load(folder, videos, allow_missing_captions=True, allow_missing_videos=True)
    captions = {row["clip_id"]: row["caption"] for row in table.to_pylist()}
    assert table.num_rows == len(captions) == 8362 + 1062 + 1004
    for part in ORIGINAL.values():
        with (source / f"didemo_{part}_label.csv").open(newline="") as file:
            assert all(captions[stem(Path(row["video_path"]).name)] == row["text"] for row in csv.DictReader(file))
