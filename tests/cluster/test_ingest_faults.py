"""Ingest loses no clip when a part of the cluster fails, and repeats only unfinished clips."""

import json
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from waver.config import load_config
from waver.data.clip_store import ClipStore
from waver.data.ledger import StoreError, read_ledger
from waver.runs.inputs import load_captions, open_store

NUM_CLIPS = 48


@pytest.fixture
def experiment(tmp_path) -> Path:
    """An experiment with many small videos, of one clip and one block each."""
    (tmp_path / "videos").mkdir()
    frames = [Image.fromarray(np.full((64, 64, 3), 5 * i, np.uint8)) for i in range(30)]
    with (tmp_path / "captions.jsonl").open("w") as file:
        for number in range(NUM_CLIPS):
            path = tmp_path / f"videos/{number:03d}.mp4"
            frames[0].save(path, "GIF", save_all=True, append_images=frames[1:], duration=100)
            row = {"video": path.name, "caption": f"caption {number}", "split": "train" if number % 4 else "test"}
            file.write(json.dumps(row) + "\n")
    settings = {
        "name": "faults",
        "data": {
            "format": "table",
            "annotations": str(tmp_path / "captions.jsonl"),
            "videos": str(tmp_path / "videos"),
        },
        "video": {"max_frames": 2, "size": 16},
        "ingest": {"clips_per_block": 1},
        "storage": {"path": str(tmp_path / "storage")},
    }
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "experiment.yaml"


_INGEST = """
import sys
from pathlib import Path
import pyarrow as pa
import yaml
from waver.config import load_config
from waver.runs.inputs import store_settings
from waver.on_ray.stages.ingest import ingest

# Called directly, because `waver ingest` would refuse the pipes.
config = load_config(sys.argv[1], yaml.safe_load(sys.argv[2]))
paths = sorted(map(str, config.data.videos.glob("*.mp4")))
none = pa.nulls(len(paths), pa.float64())
captions = pa.table({"clip_id": paths, "path": paths, "start_s": none, "end_s": none})
section = config.ingest.model_copy(update={"clips_per_block": 1})
ingest(captions, config.clip_store, store_settings(config), section)
"""


def times_done(experiment: Path) -> Counter:
    """Counts the rows of each video in the ledger's files."""
    files = sorted((load_config(experiment).clip_store / "ledger").glob("*.parquet"))
    return Counter(Path(path).name for file in files for path in pq.read_table(file)["path"].to_pylist())


def statuses(experiment: Path) -> Counter:
    return Counter(read_ledger(load_config(experiment).clip_store)["status"].to_pylist())


def block_at(video: Path) -> Path:
    """Replaces a video by a pipe, at which its decoder blocks. Returns the new path of the video."""
    kept = video.rename(video.with_suffix(".kept"))
    os.mkfifo(video)
    return kept


def num_blocked(processes: list[int]) -> int:
    """Counts the decoders among these processes that block at a pipe."""
    blocked = 0
    for process in processes:
        try:
            command, where = (Path(f"/proc/{process}/{name}").read_text() for name in ("cmdline", "wchan"))
        except OSError:
            continue
        blocked += "waver.data.video.decoder" in command and "wait_for_partner" in where
    return blocked


@pytest.mark.parametrize("fault", ["kill_node", "kill_raylet"])
def test_a_lost_node_loses_no_clip_and_no_finished_clip_is_decoded_again(cluster, experiment, wait_for, fault):
    pipe = experiment.parent / "videos/005.mp4"
    kept = block_at(pipe)
    running = cluster(nodes=0)
    nodes = [running.add_node() for _ in range(2)]
    ingest = running.start("-c", _INGEST, experiment, "{ingest.timeout_s: 120}")
    # All clips are done but the pipe and the clip that is queued at the same actor.
    wait_for(lambda: len(times_done(experiment)) >= NUM_CLIPS - 2, of=ingest)
    [lost] = [node for node in nodes if num_blocked(running.processes(node))]
    kept.replace(pipe)
    started = time.monotonic()
    getattr(running, fault)(lost)
    _, output = ingest.communicate(timeout=150)
    print(f"{fault}: ingest finished {time.monotonic() - started:.1f} s later")
    assert ingest.returncode == 0, output
    assert statuses(experiment) == {"ok": NUM_CLIPS}
    # No clip was written to the store twice.
    assert set(times_done(experiment).values()) == {1}


def test_a_late_node_decodes_while_the_first_hangs_and_only_hanging_clips_are_lost(cluster, experiment, wait_for):
    # Ray Data gives two clips to an actor at first: each of the two actors blocks at one, and has another in its queue.
    for number in range(4):
        block_at(experiment.parent / f"videos/{number:03d}.mp4")
    running = cluster(nodes=0)
    first = running.add_node()
    overrides = "{ingest.timeout_s: 15, ingest.max_failed_fraction: 0.1}"
    ingest = running.start("-c", _INGEST, experiment, overrides)
    wait_for(lambda: num_blocked(running.processes(first)) == 2, of=ingest, timeout_s=120)
    assert not times_done(experiment)
    running.add_node()
    joined = time.monotonic()
    wait_for(lambda: statuses(experiment)["ok"], of=ingest, timeout_s=80)
    print(f"late node: its first clip was done {time.monotonic() - joined:.1f} s after it joined")
    assert statuses(experiment)["timeout"] < 4  # the first node decodes nothing else before the last timeout
    _, output = ingest.communicate(timeout=120)
    assert ingest.returncode == 0, output
    assert statuses(experiment) == {"ok": NUM_CLIPS - 4, "timeout": 4}


def test_frames_bypass_the_object_store_and_the_clips_of_a_truncated_file_are_decoded_again(cluster, experiment):
    large = {"video.size": 224, "video.max_frames": 30, "video.frames_per_second": 10, "ingest.clips_per_block": 4}
    config = load_config(experiment, large)
    running = cluster(nodes=0, object_store_memory=80 * 2**20)
    running.add_node(object_store_memory=80 * 2**20)
    command = ["-m", "waver", "ingest", experiment, *(f"--set={key}={value}" for key, value in large.items())]
    first = running.start(*command)
    _, output = first.communicate(timeout=120)
    assert first.returncode == 0, output
    shards = sorted((config.clip_store / "clips").glob("*.parquet"))
    assert sum(shard.stat().st_size for shard in shards) > 2 * 80 * 2**20

    truncated = shards[1]
    truncated.write_bytes(truncated.read_bytes()[: truncated.stat().st_size // 2])
    with pytest.raises(StoreError, match=r"4 of 48 clips were never ingested(.|\n)*run `waver ingest CONFIG`"):
        open_store(config, load_captions(config))
    started = time.monotonic()
    again = running.start(*command)
    _, output = again.communicate(timeout=120)
    assert "4 were decoded now, in" in output
    assert "and 44 before" in output
    print(f"truncated file: decoded again in {time.monotonic() - started:.1f} s, with the start of the command")
    assert len(ClipStore(config.clip_store).ok_clip_ids()) == NUM_CLIPS
