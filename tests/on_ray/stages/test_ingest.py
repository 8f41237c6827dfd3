import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest
from rays import family, kill

from waver.config.video import IngestConfig
from waver.data.clip_store import ClipStore, StoreSettings
from waver.data.clip_store_writer import create_store
from waver.data.ledger import StoreError
from waver.on_ray.stages.ingest import IngestError, IngestInterrupted, IngestReport, ingest

VIDEOS = Path(os.environ.get("WAVER_VIDEOS", Path(__file__).parents[3].parent / "shared/data/videos"))
SMALL = StoreSettings(frames_per_second=1.0, max_frames=4, size=16)
SCHEMA = pa.schema(
    {
        "clip_id": pa.string(),
        "path": pa.string(),
        "start_s": pa.float64(),
        "end_s": pa.float64(),
        "caption": pa.string(),
    }
)


def captions(paths: dict[str, Path], captions_per_clip: int = 2) -> pa.Table:
    rows = [
        {"clip_id": clip_id, "path": str(path), "caption": f"caption {i}"}
        for i in range(captions_per_clip)
        for clip_id, path in paths.items()
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def run(paths: dict[str, Path], store: Path, settings: StoreSettings = SMALL, **section) -> IngestReport:
    # One decoder: each is a process, which every run starts.
    section = IngestConfig(**{"max_failed_fraction": 1.0, "decoders": 1} | section)
    return ingest(captions(paths), store, settings, section, progress=False)


def statuses(store: Path) -> dict[str, str]:
    return {row["clip_id"]: row["status"] for row in ClipStore(store).ledger.to_pylist()}


def files(store: Path) -> set[str]:
    return {path.name for path in store.glob("*/*")}


@pytest.fixture
def videos(tmp_path, render_video) -> dict[str, Path]:
    (tmp_path / "videos").mkdir()
    return {f"clip{i}": render_video(tmp_path / f"videos/{i}.gif", grey=10 * i) for i in range(5)}


@pytest.mark.skipif(not VIDEOS.is_dir(), reason="no real videos here: set WAVER_VIDEOS")
def test_real_videos_are_decoded_or_reported(tmp_path):
    paths = {str(path.relative_to(VIDEOS)): path for path in VIDEOS.rglob("*") if path.suffix not in ("", ".md")}
    assert len(paths) == 15
    report = run(paths, tmp_path, settings=StoreSettings(frames_per_second=1.0, max_frames=12, size=224), decoders=2)
    assert report.counts == {"ok": 14, "empty": 1}
    assert report.reasons == {"empty: the file has 0 bytes": 1}
    store = ClipStore(tmp_path)
    failed = [row for row in store.ledger.to_pylist() if row["status"] != "ok"]
    assert [row["clip_id"] for row in failed] == ["broken/zero_bytes_result.webm"]
    frames, num_frames = store.read(["bikes.mp4", "broken/corrupted.mp4", "bitmap.mp4"])
    assert frames.shape == (3, 12, 224, 224, 3)
    assert num_frames.tolist() == [10, 4, 5]


def test_each_clip_is_decoded_once(tmp_path, videos):
    store = tmp_path / "store"
    report = run(videos, store, clips_per_block=2, decoders=2)
    assert (report.counts, report.num_decoded, report.num_skipped) == ({"ok": 5}, 5, 0)
    frames, num_frames = ClipStore(store).read(list(videos))
    assert num_frames.tolist() == [3] * 5
    assert frames[:, :3, 8, 8, 0].tolist() == [[10 * i, 10 * i + 10, 10 * i + 20] for i in range(5)]
    assert ClipStore(store).manifest["complete"]

    before = files(store)
    again = run(videos, store)
    assert (again.counts, again.num_decoded, again.num_skipped) == ({"ok": 5}, 0, 5)
    assert files(store) == before


def test_new_clips_are_added_to_the_store(tmp_path, videos):
    store = tmp_path / "store"
    run(dict(list(videos.items())[:3]), store)
    before = files(store)
    assert run(videos, store).num_decoded == 2
    assert before < files(store)


def test_lost_and_damaged_blocks_are_decoded_again(tmp_path, videos):
    store = tmp_path / "store"
    run(videos, store, clips_per_block=1)
    lost, damaged, *_ = sorted(store.glob("clips/*.parquet"))
    lost.unlink()
    damaged.write_bytes(damaged.read_bytes()[:500])
    assert run(videos, store).num_decoded == 2
    assert len(ClipStore(store).read(list(videos))[0]) == 5


def test_failed_clips_are_in_the_ledger_and_retried_when_their_file_changes(tmp_path, videos, render_video):
    store, folder = tmp_path / "store", tmp_path / "videos"
    videos["late"] = folder / "late.gif"
    videos["torn"] = folder / "torn.gif"
    videos["torn"].write_bytes(b"GIF89a and no more")
    assert run(videos, store).counts == {"ok": 5, "missing": 1, "corrupt": 1}
    before = files(store)
    assert run(videos, store).num_decoded == 0
    assert files(store) == before

    render_video(videos["late"])
    render_video(videos["torn"])
    # The disk's time stamps are too coarse to order the failed attempt and the new file.
    for ledger in store.glob("ledger/*"):
        os.utime(ledger, (0, 0))
    report = run(videos, store)
    assert (report.counts, report.num_decoded) == ({"ok": 7}, 2)


def test_a_replaced_video_is_decoded_again_but_not_a_copy(tmp_path, videos):
    store = tmp_path / "store"
    run(videos, store)
    copied, replaced = videos["clip1"], videos["clip2"]
    content = copied.read_bytes()
    copied.unlink()
    copied.write_bytes(content)  # at another time
    replaced.write_bytes(videos["clip3"].read_bytes())
    report = run(videos, store)
    assert (report.num_decoded, report.counts) == (1, {"ok": 5})
    frames, _ = ClipStore(store).read(list(videos))
    assert frames[:, 0, 8, 8, 0].tolist() == [0, 10, 30, 30, 40]
    replaced.write_bytes(b"GIF89a and no more")
    assert run(videos, store).counts == {"ok": 4, "corrupt": 1}, "old frames do not stay"
    assert run(videos, store).num_decoded == 0


def test_segments_in_milliseconds_are_reported(tmp_path, videos):
    clips = captions(videos, 1)
    for column, factor in (("start_s", 500.0), ("end_s", 1500.0)):
        values = pa.array([factor * (number % 3) for number in range(5)], pa.float64())
        clips = clips.set_column(clips.schema.get_field_index(column), column, values)
    report = ingest(clips, tmp_path / "store", SMALL, IngestConfig(decoders=1, max_failed=4), progress=False)
    assert report.counts == {"too_short": 3, "ok": 2}
    assert report.reasons == {"too_short: the segment begins after the end of the video": 3}
    assert report.remarks == (
        "3 of 5 segments lie past the end: milliseconds? Their videos are 3.0 to 3.0 s long, and clip1 is 500 to 1500. "
        "start_s and end_s are seconds.",
    )


def test_too_many_failures_are_an_error_after_the_ledger_is_written(tmp_path, videos):
    videos |= {f"absent{i}": tmp_path / f"{i}.mp4" for i in range(3)}
    with pytest.raises(IngestError, match=r"3 of 8 clips could not be decoded(.|\n)*3 x missing: no such file"):
        run(videos, tmp_path / "store", max_failed_fraction=0.3, max_failed=0)
    assert sorted(statuses(tmp_path / "store").values()) == ["missing"] * 3 + ["ok"] * 5
    assert ClipStore(tmp_path / "store").manifest["complete"]
    assert run(videos, tmp_path / "store", max_failed_fraction=0.4, max_failed=0).num_decoded == 0


def test_a_hanging_clip_has_the_status_timeout(tmp_path, videos):
    os.mkfifo(tmp_path / "pipe.mp4")
    videos["pipe"] = tmp_path / "pipe.mp4"
    report = run(videos, tmp_path / "store", timeout_s=2.0)
    assert report.counts == {"ok": 5, "timeout": 1}
    assert report.reasons == {"timeout: not decoded after 2 s (ingest.timeout_s)": 1}


def test_two_concurrent_runs_complete_the_same_store(tmp_path, videos):
    reports = []
    threads = [threading.Thread(target=lambda: reports.append(run(videos, tmp_path / "store"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [report.counts for report in reports] == [{"ok": 5}] * 2
    frames, _ = ClipStore(tmp_path / "store").read(list(videos))
    assert frames[:, 0, 8, 8, 0].tolist() == [0, 10, 20, 30, 40]


def test_a_store_with_other_settings_is_an_error(tmp_path, videos):
    create_store(tmp_path / "store", SMALL)
    with pytest.raises(StoreError, match="size: 16 in the store, 32 requested"):
        run(videos, tmp_path / "store", settings=StoreSettings(frames_per_second=1.0, max_frames=4, size=32))


def test_a_store_that_cannot_be_written_is_an_error(tmp_path, videos):
    """Simulates a full disk by a path that is too long for the files of blocks, but not for the manifest."""
    store = tmp_path
    while (left := 4095 - len(f"{store}/clips/{'x' * 40}")) > 0:
        store /= "x" * min(left, 200)
    with pytest.raises(IngestError, match=r"could not be decoded into .* \[Errno 36\] File name too long"):
        run(videos, store)


@pytest.fixture
def hanging(tmp_path, videos) -> Path:
    """A sixth video: a pipe, at which its decoder hangs."""
    videos["pipe"] = tmp_path / "videos/pipe.gif"
    os.mkfifo(videos["pipe"])
    return videos["pipe"]


def num_recorded(store: Path) -> int:
    return len(list(store.glob("ledger/*.parquet")))


def finish(store: Path, videos: dict[str, Path], hanging: Path, render_video) -> None:
    """Checks that only the hanging clip is missing, replaces it by a video, and completes the store."""
    assert set(statuses(store)) == {f"clip{i}" for i in range(5)}
    assert not ClipStore(store).manifest["complete"]
    hanging.unlink()
    render_video(hanging)
    report = run(videos, store)
    assert (report.counts, report.num_decoded, report.num_skipped) == ({"ok": 6}, 1, 5)


def test_ctrl_c_keeps_finished_clips(tmp_path, videos, hanging, render_video):
    store = tmp_path / "store"

    def press_ctrl_c() -> None:
        while num_recorded(store) < 5:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press_ctrl_c, daemon=True).start()
    with pytest.raises(IngestInterrupted, match=r"stopped. 5 of 6 clips are done and kept in"):
        run(videos, store, clips_per_block=1)
    finish(store, videos, hanging, render_video)


@pytest.mark.own_ray
def test_a_killed_run_is_continued(tmp_path, videos, hanging, render_video):
    """SIGKILL of driver and Ray."""
    store = tmp_path / "store"
    driver = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, str(store), str(SMALL), *videos, *map(str, videos.values())],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while num_recorded(store) < 5:
            assert driver.poll() is None, driver.stderr.read()
            time.sleep(0.1)
    finally:
        kill(family(driver.pid))
        driver.communicate()
    finish(store, videos, hanging, render_video)


_DRIVER = """
import sys
from pathlib import Path
import pyarrow as pa
from waver.config.video import IngestConfig
from waver.data.clip_store import StoreSettings
from waver.on_ray.cluster.connection import connect
from waver.on_ray.stages.ingest import ingest

store, settings, *rest = sys.argv[1:]
ids, paths = rest[: len(rest) // 2], rest[len(rest) // 2 :]
none = pa.nulls(len(ids), pa.float64())
captions = pa.table({"clip_id": ids, "path": paths, "start_s": none, "end_s": none})
with connect(num_cpus=1):
    ingest(captions, Path(store), eval(settings), IngestConfig(decoders=1, clips_per_block=1), progress=False)
"""
