"""Matching loses no clip when a node is lost, with or without embedding frames first, and repeats at most one block."""

import json
import os
import signal
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from rays import titled
from safetensors.torch import save_file

from waver.config import ExperimentConfig, load_config
from waver.data.clip import Clip
from waver.data.clip_store_writer import create_store, write_block, write_manifest
from waver.data.ledger import DecodedClip
from waver.knowledge.teacher import CLIPS_PER_BLOCK
from waver.model.pretrained.weights import load_backbone
from waver.runs.inputs import store_settings

NUM_CLIPS, SIZE = 7 * CLIPS_PER_BLOCK, 64
# Large enough for a block to take about a second.
BACKBONE = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 256, "head_width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
_MATCH = """
import sys
import pyarrow as pa
from waver.data.clip_store import ClipStore
from waver.config import load_config
from waver.knowledge.store import build_dictionary
from waver.on_ray.cluster.connection import connect
from waver.on_ray.stages.match import match
from waver.knowledge.phrases import VOCABULARY_SCHEMA

config = load_config(sys.argv[1])
store = ClipStore(config.clip_store)
columns = [range(50), [f"do {number} things" for number in range(50)], [1] * 50]
dictionary = build_dictionary(pa.table(columns, names=VOCABULARY_SCHEMA.names).cast(VOCABULARY_SCHEMA), leaky=False)
with connect():
    knowledge = match(config, store.ok_clip_ids(), store, dictionary, progress=False)
print(len(knowledge.matches))
"""


@pytest.fixture
def config(tmp_path) -> ExperimentConfig:
    """An experiment with decoded clips, and a teacher with weights."""
    (tmp_path / "videos").mkdir()
    rows = [
        {"video": f"{number:03}.mp4", "caption": f"caption {number}", "split": "train"} for number in range(NUM_CLIPS)
    ]
    (tmp_path / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_file(load_backbone(BACKBONE, None, image_size=SIZE).clip.state_dict(), tmp_path / "backbone.safetensors")
    settings = {
        "name": "matching",
        "data": {
            "format": "table",
            "annotations": str(tmp_path / "captions.jsonl"),
            "videos": str(tmp_path / "videos"),
        },
        "video": {"max_frames": 4, "size": SIZE},
        "model": {"backbone": BACKBONE, "weights": str(tmp_path / "backbone.safetensors")},
        "knowledge": {"top_k": 3, "num_matches": 5},
        "resources": {"workers": 2, "cpus_per_worker": 2},
        "storage": {"path": str(tmp_path / "storage")},
    }
    (tmp_path / "experiment.yaml").write_text(yaml.safe_dump(settings))
    config = load_config(tmp_path / "experiment.yaml")
    create_store(config.clip_store, store_settings(config))
    random = np.random.default_rng(0)
    clips = []
    for row in rows:
        frames = random.integers(0, 256, (4, SIZE, SIZE, 3)).astype(np.uint8)
        clip = Clip(frames, (0.0, 1.0, 2.0, 3.0), 25.0, SIZE, SIZE, "test")
        clips.append(DecodedClip(row["video"], str(tmp_path / "videos" / row["video"]), 0.0, clip))
    write_block(config.clip_store, store_settings(config), clips)
    write_manifest(config.clip_store, store_settings(config), complete=True)
    return config


def times_written(config: ExperimentConfig, use: str) -> Counter:
    """Counts the rows of each clip in the files of matches or, if the frames are embedded first, of their embeddings."""
    if use == "auto":
        folder, column = config.frame_embeddings / "items", "id"
    else:
        folder, column = config.knowledge_store / "matches", "clip_id"
    return Counter(clip for file in folder.glob("*.parquet") for clip in pq.read_table(file)[column].to_pylist())


@pytest.mark.parametrize("use", ["never", "auto"], ids=["matching", "embedding"])
def test_a_lost_node_loses_no_clip(cluster, config, wait_for, use):
    experiment = config.storage.folder.parent / "experiment.yaml"
    experiment.write_text(yaml.safe_dump(yaml.safe_load(experiment.read_text()) | {"embeddings": {"use": use}}))
    running = cluster(nodes=2)
    matching = running.start("-c", _MATCH, experiment)
    wait_for(lambda: len(times_written(config, use)) >= 2 * CLIPS_PER_BLOCK, of=matching, timeout_s=120)
    lost = running.nodes[0]
    [actor] = titled(running.processes(lost), "_Actor")
    os.kill(actor, signal.SIGSTOP)
    # All blocks are done but the one of the stopped actor and the one in its queue.
    wait_for(lambda: len(times_written(config, use)) >= NUM_CLIPS - 2 * CLIPS_PER_BLOCK, of=matching, timeout_s=120)
    assert len(times_written(config, use)) < NUM_CLIPS
    running.kill_node(lost)
    stdout, stderr = matching.communicate(timeout=120)
    assert matching.returncode == 0, stderr
    assert stdout.splitlines()[-1] == str(NUM_CLIPS)
    times = times_written(config, use)
    assert len(times) == NUM_CLIPS
    # The actor may have been stopped after it wrote a block and before it reported the block.
    assert sum(times.values()) - NUM_CLIPS in (0, CLIPS_PER_BLOCK)
