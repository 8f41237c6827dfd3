import dataclasses
import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clip_blocks import JPEG, RAW, clip, done, make

from waver.data.clip import AFTER_DAMAGE, Clip, ClipError, describe_part
from waver.data.clip_store import ClipStore, StoreSettings
from waver.data.clip_store_writer import create_store, write_block, write_manifest
from waver.data.ledger import (
    LEDGER_SCHEMA,
    DecodedClip,
    FileStamp,
    StoreError,
    describe_parts,
    read_ledger,
    replaced_videos,
)
from waver.tools.object_store import ObjectStoreError, local_copy, remove


@pytest.mark.parametrize(("settings", "tolerance"), [(RAW, 0), (JPEG, 4)])
def test_reads_what_was_written(tmp_path, settings, tolerance):
    clips = {"a": clip(1), "b": clip(2, 5), "c": clip(3, 1)}
    make(
        tmp_path,
        [done("a", clips["a"]), done("x", ClipError("corrupt", "torn")), done("b", clips["b"])],
        [done("c", clips["c"])],
        settings=settings,
    )
    store = ClipStore(tmp_path)
    assert store.settings.key == settings.key
    assert store.ok_clip_ids() == ["a", "b", "c"]
    frames, num_frames = store.read(["c", "a", "b", "a"])
    assert (frames.shape, frames.dtype) == ((4, 5, 16, 16, 3), np.uint8)
    assert (num_frames.tolist(), num_frames.dtype) == ([1, 3, 5, 3], np.int32)
    for row, clip_id in zip(frames, ["c", "a", "b", "a"], strict=True):
        expected = clips[clip_id].frames
        assert np.abs(row[: len(expected)].astype(int) - expected).max() <= tolerance
        assert not row[len(expected) :].any()


def test_ledger_has_a_row_for_every_clip(tmp_path):
    make(tmp_path, [done("b", ClipError("missing", "no such file")), done("a", clip(1))])
    ledger = ClipStore(tmp_path).ledger
    assert set(LEDGER_SCHEMA.names) <= set(ledger.column_names)
    assert ledger.select(LEDGER_SCHEMA.names[:6]).to_pylist() == [
        {"clip_id": "a", "path": "/videos/a.mp4", "status": "ok", "error": None, "decoder": "decord", "seconds": 0.5},
        {
            "clip_id": "b",
            "path": "/videos/b.mp4",
            "status": "missing",
            "error": "no such file",
            "decoder": None,
            "seconds": 0.5,
        },
    ]


def test_ok_takes_precedence_then_the_newest_block(tmp_path):
    failed, missing = ClipError("corrupt", "torn"), ClipError("missing", "no such file")
    make(
        tmp_path,
        [done("a", clip(1)), done("b", missing), done("c", clip(3))],
        [done("a", failed), done("b", failed), done("c", clip(4))],
    )
    store = ClipStore(tmp_path)
    assert store.ledger["status"].to_pylist() == ["ok", "corrupt", "ok"]
    frames, _ = store.read(["a", "c"])
    assert frames[:, 0, 0, 0, 0].tolist() == [1, 4]


def test_frames_are_those_of_the_file_requested_last(tmp_path):
    """Another file under the same id replaces the first one, also where it cannot be decoded."""
    other = dataclasses.replace(done("a", ClipError("corrupt", "torn")), path="/videos/other.mp4")
    make(tmp_path, [done("a", clip(1)), done("b", clip(2))], [other])
    store = ClipStore(tmp_path)
    assert store.ledger["status"].to_pylist() == ["corrupt", "ok"]
    assert store.ok_clip_ids() == ["b"]


def test_pickled_reader_reads(tmp_path):
    make(tmp_path, [done("a", clip(1))])
    store = ClipStore(tmp_path)
    expected, _ = store.read(["a"])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).read(["a"])[0], expected)


def test_more_blocks_than_open_files(tmp_path):
    make(tmp_path, *[[done(f"{i:03}", clip(i % 40))] for i in range(70)])
    store = ClipStore(tmp_path)
    for _ in range(2):
        frames, _ = store.read(store.ok_clip_ids())
        assert frames[:, 0, 0, 0, 0].tolist() == [i % 40 for i in range(70)]


def test_missing_store_is_an_error(tmp_path):
    with pytest.raises(StoreError, match="run `waver ingest CONFIG` first"):
        ClipStore(tmp_path / "nowhere")


def test_error_counts_and_names_clips_without_frames(tmp_path):
    make(tmp_path, [done("a", clip(1)), done("b", ClipError("empty", "the file has 0 bytes"))])
    with pytest.raises(StoreError, match=r"5 of 6 clips have no frames in .* \(b, u0, u1, \.\.\.\)"):
        ClipStore(tmp_path).read(["a", "b", "u0", "u1", "u2", "u3"])


def test_block_without_its_clips_file_is_ignored(tmp_path):
    make(tmp_path, [done("a", clip(1))], [done("b", clip(2))])
    first, second = sorted(tmp_path.glob("clips/*.parquet"))
    first.unlink()
    assert ClipStore(tmp_path).ok_clip_ids() == ["b"]
    second.write_bytes(second.read_bytes()[:1000])
    assert len(read_ledger(tmp_path)) == 0


def test_error_names_the_damaged_block(tmp_path):
    make(tmp_path, [done("a", clip(1))])
    store = ClipStore(tmp_path)
    (file,) = tmp_path.glob("clips/*.parquet")
    file.write_bytes(b"\0" * 99)
    with pytest.raises(StoreError, match=rf"{file.name} is damaged or gone .* delete it and run"):
        store.read(["a"])


def test_import_is_light():
    heavy = "{'torch', 'ray', 'decord', 'av'}"
    code = f"import sys, waver.data.clip_store_writer; print({heavy} & sys.modules.keys() or 'nothing')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "nothing"


# ---- in an object store


@pytest.fixture
def far(s3, tmp_path):
    """The copies of one store on two machines."""
    return tuple(local_copy(f"{s3}/clips", tmp_path / machine) for machine in ("here", "there"))


@pytest.mark.slow
def test_a_store_in_an_object_store_is_read_from_another_machine(far):
    here, there = far
    make(here, [done("a", clip(1)), done("b", ClipError("corrupt", "x"))], [done("c", clip(2))])
    write_manifest(here, RAW, complete=True)
    store = pickle.loads(pickle.dumps(ClipStore(there)))
    assert store.ok_clip_ids() == ["a", "c"]
    assert store.ledger.drop_columns("seconds").equals(read_ledger(here).drop_columns("seconds"))
    np.testing.assert_array_equal(store.read(["c"])[0][0, :3], clip(2).frames)
    assert len(list((there / "clips").iterdir())) == 1  # a block is brought when it is read
    np.testing.assert_array_equal(store.read(["a", "c"])[0], ClipStore(here).read(["a", "c"])[0])


def test_block_without_its_clips_object_is_ignored(far):
    here, there = far
    make(here, [done("a", clip(1))], [done("b", clip(2))])
    read_ledger(there)
    remove(here / "clips" / read_ledger(here)["block"][0].as_py())
    assert read_ledger(there)["clip_id"].to_pylist() == read_ledger(here)["clip_id"].to_pylist() == ["b"]


def test_settings_are_those_in_the_object_store(far):
    here, there = far
    make(here)
    with pytest.raises(StoreError, match=r"s3://waver/.*/clips was made with other settings"):
        create_store(there, JPEG)


def test_missing_store_in_an_object_store_is_an_error(far):
    with pytest.raises(StoreError, match=r"there is no clip store in s3://waver/.*/clips: run `waver ingest CONFIG`"):
        ClipStore(far[0])


@pytest.mark.slow
def test_unreachable_object_store_is_not_reported_as_damage(far, monkeypatch):
    here, there = far
    make(here, [done("a", clip(1))])
    store = ClipStore(there)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ObjectStoreError, match="the store does not answer"):
        store.read(["a"])
    with pytest.raises(ObjectStoreError, match="the store does not answer"):
        ClipStore(there)


def test_a_ledger_of_an_older_version_is_read(tmp_path):
    make(tmp_path, [done("a", clip(1))])
    (ledger,) = (tmp_path / "ledger").glob("*.parquet")
    pq.write_table(pq.read_table(ledger).select(LEDGER_SCHEMA.names[:6]), ledger)
    store = ClipStore(tmp_path)
    assert store.ok_clip_ids() == ["a"]
    assert store.ledger["file_digest"].to_pylist() == [None]
    assert replaced_videos(store.ledger, store.ledger["path"]) == set()


def test_only_the_videos_asked_for_are_looked_at(tmp_path):
    paths = [tmp_path / name for name in ("a.mp4", "b.mp4")]
    for path in paths:
        path.write_text("old")
    results = [dataclasses.replace(done(path.stem, clip(1)), path=str(path), file=FileStamp.of(path)) for path in paths]
    make(tmp_path / "store", results)
    for path in paths:
        path.write_text("another")
    ledger = ClipStore(tmp_path / "store").ledger
    assert replaced_videos(ledger, ledger["path"]) == set(map(str, paths))
    assert replaced_videos(ledger, pa.chunked_array([[str(paths[1]), "/elsewhere.mp4"]])) == {str(paths[1])}


def test_videos_that_can_be_read_in_part_are_counted(tmp_path):
    settings = StoreSettings(frames_per_second=1.0, max_frames=3, size=16)
    create_store(tmp_path, settings)
    notes = {"a": None, "b": f"not read by decord: why; {describe_part(5.0, 10.0)}", "c": describe_part(2.0, 9.0)}
    notes["d"] = f"1 of 9 frames cannot be decoded; 4 of 8 frames {AFTER_DAMAGE}"
    frames = np.zeros((1, 16, 16, 3), np.uint8)
    clips = [Clip(frames, (0.0,), 25.0, 16, 16, "pyav", note=note) for note in notes.values()]
    write_block(
        tmp_path,
        settings,
        [DecodedClip(name, f"{name}.mp4", 0.0, clip) for name, clip in zip(notes, clips, strict=True)],
    )
    ledger = read_ledger(tmp_path)
    assert describe_parts(ledger, ["a"]) == []
    (sentence,) = describe_parts(ledger, ["a", "b", "c"])
    assert sentence.startswith("2 clips have a video that is cut off or damaged")
    assert "(b: only the first 5.0 of 10.0 s of the video can be read)" in sentence
    assert describe_parts(ledger, ["d"]) == [
        "1 clip has a damaged video, and frames that the decoder had to guess "
        "(d: 4 of 8 frames follow damaged data and may show other pictures)"
    ]
