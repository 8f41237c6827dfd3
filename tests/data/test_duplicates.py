"""Duplicates, compared with computations over all pairs."""

import csv
import itertools
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waver.data.annotations import CAPTIONS_SCHEMA
from waver.data.clip import Clip, ClipError
from waver.data.clip_store import ClipStore, StoreSettings
from waver.data.clip_store_writer import create_store, write_block, write_manifest
from waver.data.duplicates import (
    content_words,
    equivalent_clips,
    excused_pairs,
    find_duplicates,
    normalise,
    same_files,
    same_frames,
)
from waver.data.ledger import DecodedClip

ANNOTATIONS = Path(os.environ.get("WAVER_ANNOTATIONS", Path(__file__).parents[2].parent / "shared/data/annotations"))


def table(*rows: tuple[str, str, str], **columns: list) -> pa.Table:
    """(clip, caption, split); the clip's letters before @ are its video."""
    return pa.table(
        {
            "video_id": [clip.partition("@")[0] for clip, _, _ in rows],
            "clip_id": [clip for clip, _, _ in rows],
            "path": columns.get("path", [f"/nowhere/{clip.partition('@')[0]}.mp4" for clip, _, _ in rows]),
            "start_s": columns.get("start_s", [None] * len(rows)),
            "end_s": [None] * len(rows),
            "caption": [caption for _, caption, _ in rows],
            "caption_index": range(len(rows)),
            "split": [split for _, _, split in rows],
            "style": [None] * len(rows),
        },
        schema=CAPTIONS_SCHEMA,
    )


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A Dog's ear.", "a dog s ear"),
        ("a dog s  ear\n", "a dog s ear"),
        ("cafe\u0301, STRASSE", "café strasse"),
        ("caf\u00e9; Straße", "café strasse"),
        ("T-shirt №5", "t shirt 5"),
        ("हिन्दी", "हिन्दी"),
        (" ?! ", "?!"),
    ],
)
def test_normalise(caption, expected):
    assert normalise(caption) == expected


def test_content_words_have_no_order_articles_or_forms_of_to_be():
    assert content_words("A man is playing the guitar.") == content_words("guitar: man playing") == {
        "man", "playing", "guitar"
    }  # fmt: skip
    assert content_words("The A!") == {"the", "a"}
    assert content_words("a man plays guitar") != content_words("a man playing guitar")


def test_each_kind_is_found_and_counted():
    captions = table(
        ("t1", "A man sings", "train"),
        ("t2", "a dog runs", "train"),
        ("v1", "a bird", "validation"),
        ("x@0-5", "a man sings.", "test"),
        ("x@0-5", "A MAN sings", "test"),
        ("x@0-5", "singing", "test"),
        ("y", "a man  sings", "test"),
        ("y", "a cat is on the mat", "test"),
        ("z", "on a mat, a cat", "test"),
        ("t1@9-", "something else", "test"),
    )
    found = find_duplicates(captions, "test", [("t2", "y"), ("y", "z"), ("t1", "v1")])
    assert found.counts == {
        "captions": 7,
        "clips": 4,
        "same_captions": 1,
        "queries_with_same_caption": 3,
        "near_captions": 1,
        "queries_with_near_caption": 2,
        "surplus_rows": 1,
        "queries_in_train": 3,
        "same_videos": 1,
        "same_videos_elsewhere": 1,
        "shared_sources": 1,
    }
    assert (found.same_captions[0].caption, found.same_captions[0].clip_ids) == ("a man sings.", ("x@0-5", "y"))
    assert found.near_captions[0].clip_ids == ("y", "z")
    assert found.repeated_rows[0].clip_ids == ("x@0-5",)
    assert (found.same_videos, found.same_videos_elsewhere) == ((("y", "z"),), (("y", "t2"),))
    assert found.shared_sources == ("t1",)
    assert json.loads(json.dumps(found.as_json()))["captions_in_train"] == [
        "a man sings.",
        "A MAN sings",
        "a man  sings",
    ]
    assert find_duplicates(captions, "train").captions_in_train == ()


CAPTION = st.lists(st.sampled_from(["a", "the", "is", "dog", "Dog", "cat", "runs"]), min_size=1, max_size=4).map(
    " ".join
)
ROWS = st.lists(
    st.tuples(st.sampled_from("abcde"), CAPTION, st.just("test")), min_size=1, max_size=14
).map(lambda rows: sorted(rows, key=lambda row: row[0]))  # fmt: skip


@given(ROWS)
@settings(max_examples=100, deadline=None)
def test_counts_equal_those_of_comparing_all_rows(rows):
    found = find_duplicates(table(*rows), "test").counts

    def queries(agree) -> int:
        return sum(any(a[0] != b[0] and agree(a[1], b[1]) for b in rows) for a in rows)

    assert found["queries_with_same_caption"] == queries(lambda a, b: normalise(a) == normalise(b))
    groups = {content_words(a[1]) for a, b in itertools.permutations(rows, 2)
              if a[0] != b[0] and content_words(a[1]) == content_words(b[1])}  # fmt: skip
    differing = {key for key in groups if len({normalise(t) for _, t, _ in rows if content_words(t) == key}) > 1}
    assert found["near_captions"] == len(differing)
    assert found["surplus_rows"] == sum(
        any(a[0] == b[0] and normalise(a[1]) == normalise(b[1]) for b in rows[:i]) for i, a in enumerate(rows)
    )


@pytest.mark.slow
@given(ROWS, st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from("abcdef")), max_size=3))
@settings(max_examples=150, deadline=None)
def test_excused_pairs_equal_those_of_comparing_all_pairs(rows, equivalent):
    clip_ids = sorted({clip for clip, _, _ in rows})
    clip_of_text = np.array([clip_ids.index(clip) for clip, _, _ in rows])
    texts, clips = excused_pairs([caption for _, caption, _ in rows], clip_of_text, clip_ids, equivalent)

    same = {(a, a) for a in clip_ids} | {p for a, b in equivalent if {a, b} <= {*clip_ids} for p in ((a, b), (b, a))}
    for _ in clip_ids:
        same |= {(a, d) for a, b in same for c, d in same if b == c}
    expected = [
        (text, number)
        for text, (own, caption, _) in enumerate(rows)
        for number, clip in enumerate(clip_ids)
        if clip != own
        and any((other, clip) in same and normalise(said) == normalise(caption) for other, said, _ in rows)
    ]
    assert list(zip(texts.tolist(), clips.tolist(), strict=True)) == expected


def test_without_pairs_index_arrays_are_empty():
    texts, clips = excused_pairs(["a"], np.array([0]), ["x"])
    assert (texts.shape, clips.shape, texts.dtype) == ((0,), (0,), np.int64)


def test_byte_identical_files_are_the_same_video(tmp_path):
    contents = {
        "a": b"12345",
        "b": b"12345",
        "c": b"54321",
        "d": b"12345",
        "empty": b"",
        "vacant": b"",
        "long": b"123456",
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    names = [*contents, "gone"]
    captions = table(*((name, "x", "test") for name in names), path=[str(tmp_path / name) for name in names])
    read = []
    assert same_files(captions, progress=lambda done, total: read.append((done, total))) == [("a", "b"), ("a", "d")]
    assert read[-1] == (4, 4), "only files of equal size are read"
    assert equivalent_clips(captions) == [("a", "b"), ("a", "d"), ("b", "d")]


def test_segments_are_the_same_only_with_the_same_times(tmp_path):
    for name in "ab":
        (tmp_path / name).write_bytes(b"12345")
    rows = [("a@0-", "x", "test"), ("a@0-", "y", "test"), ("a@5-", "x", "test"), ("b@5-", "x", "test")]
    paths = [str(tmp_path / clip[0]) for clip, _, _ in rows]
    assert same_files(table(*rows, path=paths, start_s=[0.0, 0.0, 5.0, 5.0])) == [("a@5-", "b@5-")]


@pytest.mark.parametrize("frame_format", ["raw", "jpeg"])
def test_frames_are_the_same_pixel_by_pixel(tmp_path, frame_format):
    settings = StoreSettings(frames_per_second=1.0, max_frames=2, size=4, frame_format=frame_format)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    times, other = (0.0, 1.0), 255 - pixels

    def decoded(clip_id, frames, times=times):
        return DecodedClip(clip_id, f"/nowhere/{clip_id}", 0.0, Clip(frames, times, 25.0, 8, 8, "test"))

    create_store(tmp_path, settings)
    failed = DecodedClip("failed", "/nowhere/failed", 0.0, ClipError("corrupt", "made so"))
    write_block(tmp_path, settings, [decoded("a", pixels), failed, decoded("b", other)])
    write_block(tmp_path, settings, [decoded("c", other), decoded("d", pixels[:1], times[:1]), decoded("e", other)])
    write_manifest(tmp_path, settings, complete=True)
    store = ClipStore(tmp_path)
    assert sorted(map(sorted, same_frames(store, "abcde"))) == [["b", "c"], ["b", "e"]]
    assert same_frames(store, "ab") == []
    captions = table(*((clip, "x", "test") for clip in "abcde"))
    assert equivalent_clips(captions, store) == [("b", "c"), ("b", "e"), ("c", "e")]


def test_unreadable_files_are_no_duplicates(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    assert same_files(table(("a", "x", "test"), ("b", "x", "test"), path=[str(tmp_path / n) for n in "ab"])) == []


@pytest.mark.slow
@pytest.mark.skipif(not ANNOTATIONS.is_dir(), reason=f"no annotation files in {ANNOTATIONS}")
def test_captions_of_the_published_test_sets():
    captions = json.loads((ANNOTATIONS / "msvd/captions_msvd.json").read_text())
    clips = (ANNOTATIONS / "msvd/test_list.txt").read_text().split()
    counts = find_duplicates(table(*((clip, text, "test") for clip in clips for text in captions[clip])), "test").counts
    assert (counts["captions"], counts["clips"]) == (27_763, 670)
    assert (counts["queries_with_same_caption"], counts["surplus_rows"]) == (4372, 3730)
    with (ANNOTATIONS / "msrvtt/MSRVTT_JSFUSION_test.csv").open(newline="") as file:
        rows = [(row["video_id"], row["sentence"], "test") for row in csv.DictReader(file)]
    found = find_duplicates(table(*rows), "test").same_captions
    assert sorted(len(group.clip_ids) for group in found) == [2, 2, 2, 3]
