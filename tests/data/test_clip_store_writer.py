import os
import resource
import subprocess
import sys
import threading

import pyarrow.parquet as pq
import pytest
from clip_blocks import RAW, clip, done, make

from waver.data.clip import ClipError
from waver.data.clip_store import ClipStore, StoreSettings
from waver.data.clip_store_writer import CLIPS_SCHEMA, create_store, write_block, write_manifest
from waver.data.ledger import DecodedClip, StoreError, read_ledger


def test_layout_of_the_files(tmp_path):
    make(tmp_path, [done("a", clip(1)), done("b", clip(2))])
    (file,) = tmp_path.glob("clips/*.parquet")
    assert pq.read_schema(file).equals(CLIPS_SCHEMA)
    assert pq.read_metadata(file).num_row_groups == 2
    assert pq.read_table(file)["frame_times_s"].to_pylist() == [[0.0, 1.0, 2.0]] * 2


def test_other_settings_are_refused(tmp_path):
    make(tmp_path)
    create_store(tmp_path, RAW)
    with pytest.raises(
        StoreError, match="max_frames: 5 in the store, 8 requested; size: 16 in the store, 32 requested"
    ):
        create_store(tmp_path, StoreSettings(frames_per_second=1.0, max_frames=8, size=32))


def test_failed_write_leaves_no_files(tmp_path):
    make(tmp_path)

    def results():
        yield done("a", clip(1))
        raise RuntimeError("the decoder process does not start")

    with pytest.raises(RuntimeError):
        write_block(tmp_path, RAW, results())
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["manifest.json"]


def test_full_disk_leaves_no_files(tmp_path):
    """A limit on the size of files stands in for the disk: the kernel refuses the write in the same way."""
    make(tmp_path)
    code = f"""
import resource
from pathlib import Path
import numpy as np
from waver.data.clip_store import StoreSettings
from waver.data.clip_store_writer import *
from waver.data.clip import Clip
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, {resource.RLIM_INFINITY}))
clip = Clip(np.zeros((3, 16, 16, 3), np.uint8), (0.0, 1.0, 2.0), 25.0, 240, 320, "decord")
try:
    write_block(Path({str(tmp_path)!r}), StoreSettings(1.0, 5, 16), [DecodedClip("a", "a.mp4", 0.5, clip)])
except OSError as error:
    print("refused:", error)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "refused: [Errno 27] File too large" in result.stdout
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["manifest.json"]


def test_only_old_temporary_files_are_removed(tmp_path):
    make(tmp_path)
    old, young = tmp_path / "clips/old.parquet.part", tmp_path / "clips/young.parquet.part"
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    create_store(tmp_path, RAW)
    assert not old.exists()
    assert young.exists()


def test_block_of_a_node_with_a_slow_clock_is_the_newest(tmp_path, monkeypatch):
    """The file of a clip is replaced by one of another name, and a node that lives in 1970 decodes it."""
    make(tmp_path, [done("a", clip(1))])
    monkeypatch.setattr("waver.data.clip_store_writer.time.time_ns", lambda: 1)
    write_block(tmp_path, RAW, [DecodedClip("a", "/videos/new.mp4", 0.5, clip(2))])
    assert read_ledger(tmp_path)["path"].to_pylist() == ["/videos/new.mp4"]
    frames, _ = ClipStore(tmp_path).read(["a"])
    assert (frames[0, :3] == clip(2).frames).all()


def test_several_writers_at_once(tmp_path):
    create_store(tmp_path, RAW)

    def write(writer: int) -> None:
        for i in range(5):
            write_block(tmp_path, RAW, [done(f"{i}", clip(i)), done(f"{writer}-{i}", clip(i))])

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store = ClipStore(tmp_path)
    assert len(store.ok_clip_ids()) == 5 + 4 * 5
    frames, _ = store.read(["0", "3-4", "2"])
    assert frames[:, 0, 0, 0, 0].tolist() == [0, 4, 2]


def test_manifest_has_counts_and_depends_on_the_content_only(tmp_path):
    results = [done("a", clip(1)), done("b", clip(2)), done("c", ClipError("empty", "the file has 0 bytes"))]
    stores = [make(tmp_path / "one", results), make(tmp_path / "two", results[2:], results[:2])]
    for store in stores:
        write_manifest(store, RAW, complete=True)
    one, two = (ClipStore(store).manifest for store in stores)
    assert one == two
    assert one["counts"] == {"empty": 1, "ok": 2}
    assert one["num_clips"] == 3
    assert one["complete"]
