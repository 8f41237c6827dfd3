import gzip
import json
from collections import Counter
from dataclasses import replace

import pytest

from waver.data.annotations import CAPTIONS_SCHEMA, AnnotationError
from waver.data.annotations.published import PublishedSplit
from waver.data.annotations.vatex import VatexData, load_vatex


def clip(number):
    return f"{'-_'[number % 2]}{number:03}_-xyzab_{number:06}_{number + 10:06}"


# HGR's lists, and another test list that takes some clips from each half.
TRAIN, VAL, TEST = [clip(n) for n in range(6)], [clip(n) for n in range(10, 14)], [clip(n) for n in range(20, 24)]
TEST_1K5 = [TEST[3], VAL[1], VAL[0], TEST[2]]
REST = [VAL[2], VAL[3], TEST[0], TEST[1]]
CAPTIONS = {clip_id: [f"English {k} of {clip_id}." for k in range(10)] for clip_id in TRAIN + VAL + TEST}
CHINESE = ["一个男人"] * 10


def records(clips):
    return [{"videoID": clip_id, "enCap": CAPTIONS[clip_id], "chCap": CHINESE} for clip_id in clips]


def write_json(path, content):
    data = json.dumps(content).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def write_original(folder, ending=""):
    write_json(folder / f"vatex_training_v1.0.json{ending}", records(TRAIN))
    # In an order of its own, and HGR's two halves in one file.
    write_json(folder / f"vatex_validation_v1.0.json{ending}", records(reversed(TEST + VAL)))


@pytest.fixture
def lists(tmp_path, publish):
    """The folder without captions."""
    folder = tmp_path / "vatex"
    folder.mkdir()
    files = {"train_list": TRAIN, "val_list": VAL, "test_list": TEST, "test1k5_sec_list": TEST_1K5}
    for name, clips in files.items():
        (folder / f"{name}.txt").write_text("".join(f"{clip_id}\n" for clip_id in clips))
    for split, validation, test in (("hgr", VAL, TEST), ("1k5", REST, TEST_1K5)):
        parts = {"train": TRAIN, "validation": validation, "test": test}
        publish("vatex", split, {part: {clip_id: CAPTIONS[clip_id] for clip_id in parts[part]} for part in parts})
    return folder


@pytest.fixture
def folder(lists):
    write_original(lists)
    return lists


@pytest.fixture
def videos(tmp_path, touch):
    return touch(tmp_path / "videos", *(f"{clip_id[0]}/{clip_id}.mp4" for clip_id in CAPTIONS))


def load(folder, videos, split="hgr", allow_missing_videos=False):
    return load_vatex(folder, videos, split=split, allow_missing_videos=allow_missing_videos)


def fail(folder, videos, split="hgr", **arguments):
    with pytest.raises(AnnotationError) as caught:
        load(folder, videos, split, **arguments)
    return str(caught.value)


def test_all_english_captions_in_the_order_of_the_lists(folder, videos):
    table = load(folder, videos)
    assert table.schema == CAPTIONS_SCHEMA
    assert table.schema.metadata == {b"validation": b"own"}
    assert table.to_pylist() == [
        {
            "video_id": clip_id[:11],
            "clip_id": clip_id,
            "path": str(videos / clip_id[0] / f"{clip_id}.mp4"),
            "start_s": None,
            "end_s": None,
            "caption": caption,
            "caption_index": index,
            "split": part,
            "style": None,
        }
        for part, clips in (("train", TRAIN), ("validation", VAL), ("test", TEST))
        for clip_id in clips
        for index, caption in enumerate(CAPTIONS[clip_id])
    ]


def test_1k5_validates_on_the_rest_of_the_two_halves(folder, videos, splits_of):
    assert splits_of(load(folder, videos, "1k5")) == {"train": TRAIN, "validation": REST, "test": TEST_1K5}


SCHEMAS = {
    "list of videoID and enCap": [{"videoID": clip_id, "enCap": captions} for clip_id, captions in CAPTIONS.items()],
    "object with enCap": {clip_id: {"enCap": captions, "chCap": CHINESE} for clip_id, captions in CAPTIONS.items()},
    "object of lists": CAPTIONS,
}


@pytest.mark.parametrize("schema", SCHEMAS)
@pytest.mark.parametrize("name", ["vatex_data.json", "ref_captions.json", "vatex_data.json.gz"])
def test_schema_is_recognised_by_content_not_by_name(folder, videos, name, schema):
    table = load(folder, videos)
    for path in folder.glob("*.json"):
        path.unlink()
    write_json(folder / name, SCHEMAS[schema])
    assert load(folder, videos) == table


def test_captions_come_from_one_source(folder, videos):
    table = load(folder, videos)
    tokenised = {clip_id: [caption.lower() for caption in captions] for clip_id, captions in CAPTIONS.items()}
    write_json(folder / "ref_captions.json", tokenised)
    assert load(folder, videos) == table
    # The original files are not whole, so none of them is read.
    (folder / "vatex_training_v1.0.json").unlink()
    assert set(load(folder, videos)["caption"].to_pylist()) == {text for texts in tokenised.values() for text in texts}


def test_compressed_originals(lists, videos):
    write_original(lists, ".gz")
    assert load(lists, videos).num_rows == 140


def test_missing_caption_file_names_the_alternatives(lists, videos):
    write_json(lists / "vatex_validation_v1.0.json", records(TEST + VAL))
    message = fail(lists, videos)
    assert (
        "1 x missing file: vatex_training_v1.0.json and vatex_validation_v1.0.json, or vatex_data.json, or " in message
    )
    assert "or ref_captions.json (each also as .gz)\n" in message
    assert "public" not in message
    write_json(lists / "vatex_public_test_english_v1.1.json", records(TEST))
    assert "vatex_public_test_english_v1.1.json does not help, its 6,000 clips are in none" in fail(lists, videos)


def test_every_missing_file_is_named(tmp_path):
    message = fail(tmp_path / "nothing", tmp_path / "no videos", "1k5")
    assert (
        "5 x missing file: train_list.txt, val_list.txt, test_list.txt, test1k5_sec_list.txt, vatex_training" in message
    )
    assert "test1k5" not in fail(tmp_path / "nothing", tmp_path / "no videos", "hgr")


def test_hgr_and_1k5_test_lists_are_told_apart(folder, videos):
    (folder / "test_list.txt").write_text("\n".join(TEST_1K5))
    message = fail(folder, videos)
    assert f"2 x video in two splits: {VAL[0]} (validation, test), {VAL[1]} (validation, test)\n" in message
    differs = "1 x list that differs from the published one of VATEX"
    assert f"{differs} HGR: test_list.txt has 4 videos, but not the published ones" in message
    message = fail(folder, videos, "1k5")
    rest = "the rest of val_list.txt and test_list.txt has 2 videos instead of 4\n"
    assert f"{differs} 1k5 (CLIP2Video): {rest}" in message

    (folder / "test_list.txt").write_text("\n".join(TEST))
    (folder / "test1k5_sec_list.txt").write_text("\n".join(TEST))
    message = fail(folder, videos, "1k5")
    assert (
        "the rest of val_list.txt and test_list.txt has 4 videos, but not the published ones, test1k5_sec_list.txt has 4"
        in message
    )


def test_missing_list_is_not_reported_as_a_different_list(folder, videos):
    (folder / "val_list.txt").unlink()
    for split in ("hgr", "1k5"):
        message = fail(folder, videos, split)
        assert "1 x missing file: val_list.txt\n" in message
        assert "1 problem\n" in message


def test_another_number_of_captions_is_an_error(folder, videos):
    write_json(folder / "vatex_training_v1.0.json", [{"videoID": TRAIN[0], "enCap": ["one"]}, *records(TRAIN[1:])])
    assert "train has 51 captions instead of 60" in fail(folder, videos)


def test_one_error_has_every_kind_of_problem(folder, videos):
    entries = [
        {"videoID": TRAIN[0], "chCap": CHINESE},
        {"videoID": "/etc/passwd", "enCap": []},
        {"videoID": ["../.."], "enCap": []},
        {"videoID": TRAIN[1], "enCap": "a string"},
        {"videoID": TRAIN[2], "enCap": ["fine", "", 7, "half a character \ud83d"]},
        *records([TRAIN[3], TRAIN[4], TRAIN[4]]),
        "not an object",
    ]
    write_json(folder / "vatex_training_v1.0.json", entries)
    (folder / "test_list.txt").write_text(
        "\n".join([*TEST, "../..", "Ptf_2VRj-V0_122_132", "\ud83d"]), errors="surrogatepass"
    )
    message = fail(folder, videos)
    source = "vatex_training_v1.0.json and vatex_validation_v1.0.json"
    for expected in (
        "2 x entry without videoID and enCap: entry 0 of vatex_training_v1.0.json, entry 8 of vatex_training_v1.0.json\n",
        "entry 1 of vatex_training_v1.0.json: '/etc/passwd', entry 2 of vatex_training_v1.0.json: ['../..']\n",
        "line 5 of test_list.txt: '../..', line 6 of test_list.txt: 'Ptf_2VRj-V0_122_132', ",
        "1 x line that is not UTF-8: test_list.txt line 7 (byte 0xed)\n",
        f"1 x captions that are not a list: {TRAIN[1]} in {source}: 'a string'\n",
        f"1 x empty caption: number 1 of {TRAIN[2]} in {source}: ''\n",
        f"2 x caption that is not text: number 2 of {TRAIN[2]} in {source}: 7, ",
        f"1 x video with two lists of captions: entry 7 of vatex_training_v1.0.json: {TRAIN[4]}\n",
        f"3 x video without captions: {TRAIN[0]}, {TRAIN[1]}, {TRAIN[5]}\n",
    ):
        assert expected in message, (expected, message)


@pytest.mark.parametrize("content", [{}, {"annotations": []}, 7, None])
def test_unknown_json_schema_is_an_error(folder, videos, content):
    write_json(folder / "vatex_validation_v1.0.json", content)
    message = fail(folder, videos)
    assert "1 x unknown JSON schema: vatex_validation_v1.0.json has " in message
    assert "three schemas are understood: a list of {videoID, enCap}, " in message
    assert "1 problem\n" in message


@pytest.mark.slow
def test_real_lists(shared_annotations, tmp_path, touch, splits_of, monkeypatch):
    """The files of captions were not to be had: they are made here for the real lists, with one caption in place of ten."""
    source = shared_annotations("vatex")
    folder = tmp_path / "real"
    folder.mkdir()
    for path in source.glob("*.txt"):
        (folder / path.name).symlink_to(path)
    listed = {
        name: (source / f"{name}_list.txt").read_text().split() for name in ("train", "val", "test", "test1k5_sec")
    }
    videos = touch(tmp_path / "videos", f"{listed['train'][0]}.mp4")
    captions = {clip_id: ["a man"] for name in ("train", "val", "test") for clip_id in listed[name]}
    for name, split in list(VatexData.published_splits.items()):
        assert all(part.num_captions == 10 * part.num_clips for part in split.parts.values())
        ones = {key: replace(part, num_captions=part.num_clips) for key, part in split.parts.items()}
        monkeypatch.setitem(VatexData.published_splits, name, PublishedSplit(split.protocol, ones))

    write_json(folder / "ref_captions.json", captions)
    table = load(folder, videos, "hgr", allow_missing_videos=True)
    assert splits_of(table) == {"train": listed["train"], "validation": listed["val"], "test": listed["test"]}
    assert Counter(table["split"].to_pylist()) == {"train": 25_991, "validation": 1500, "test": 1500}

    write_json(folder / "vatex_data.json", {clip_id: {"enCap": texts} for clip_id, texts in captions.items()})
    splits = splits_of(load(folder, videos, "1k5", allow_missing_videos=True))
    assert (splits["train"], splits["test"]) == (listed["train"], listed["test1k5_sec"])
    assert set(splits["validation"]) == {*listed["val"], *listed["test"]} - {*listed["test1k5_sec"]}
    assert len(splits["validation"]) == 1500

    # Real records, in the schema of the public test, which none of the lists has a clip of.
    real = json.loads((source / "videocap5data.json").read_text())
    assert not {record["videoID"] for record in real} & captions.keys()
    made = [{"videoID": clip_id, "enCap": texts} for clip_id, texts in captions.items()]
    write_json(folder / "vatex_training_v1.0.json", made + real)
    write_json(folder / "vatex_validation_v1.0.json", [])
    assert load(folder, videos, "hgr", allow_missing_videos=True) == table
