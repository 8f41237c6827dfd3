"""Measures memory and speed of matching many clips with a large dictionary.

    python experiments/benchmarks/matching.py [--clips 10000] [--phrases 110000]

The backbone is small and random, with the output width of ViT-B/32 (512); clips are one frame of 32 pixels. The benchmark
therefore measures the cost that grows with the numbers of clips and phrases, not that of the encoders. Memory is the peak of
all processes together, including Ray. A run with 64 clips and 64 phrases, which loads the same models, gives the baseline.
"""

import logging
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import typer
from safetensors.torch import save_file

from waver.config import ExperimentConfig, load_config
from waver.data.clip import Clip
from waver.data.clip_store import ClipStore
from waver.data.clip_store_writer import create_store, write_block, write_manifest
from waver.data.ledger import DecodedClip
from waver.knowledge.phrases import VOCABULARY_SCHEMA
from waver.knowledge.store import build_dictionary
from waver.model.pretrained.weights import load_backbone
from waver.on_ray.cluster.connection import connect
from waver.on_ray.stages.match import match
from waver.runs.inputs import store_settings
from waver.tools.memory import sample_peak_memory

BACKBONE = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
EXPERIMENT = """
name: matching
data: {format: table, annotations: none.jsonl, videos: none}
video: {max_frames: 1, size: 32}
knowledge: {top_k: 1}
"""


def main(clips: int = 10_000, phrases: int = 110_000, workers: int = 1) -> None:
    """Prints seconds and peak GiB of a small and of the large run."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    for num_clips, num_phrases in ((64, 64), (clips, phrases)):
        with tempfile.TemporaryDirectory() as folder:
            config = prepare(Path(folder), workers)
            store, clip_ids = make_store(config, num_clips)
            table = pa.table([range(num_phrases), [f"counts {i} sheep" for i in range(num_phrases)], [1] * num_phrases],
                             names=VOCABULARY_SCHEMA.names).cast(VOCABULARY_SCHEMA)  # fmt: skip
            dictionary, started = build_dictionary(table, leaky=False), time.perf_counter()
            with sample_peak_memory() as memory, connect(num_cpus=workers):
                knowledge = match(config, clip_ids, store, dictionary)
            seconds = time.perf_counter() - started
            assert len(knowledge.matches) == num_clips
            print(
                f"{num_clips} clips, {num_phrases} phrases: {seconds:.0f} s, {memory.peak / 2**30:.2f} GiB peak memory"
            )


def prepare(folder: Path, workers: int) -> ExperimentConfig:
    """Writes random weights of the backbone, and returns the experiment."""
    torch.manual_seed(0)
    save_file(load_backbone(BACKBONE, None, image_size=32).clip.state_dict(), folder / "weights.safetensors")
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    places = {"model.backbone": BACKBONE, "model.weights": str(folder / "weights.safetensors")}
    return load_config(folder / "experiment.yaml", places | {"storage.path": str(folder), "resources.workers": workers})


def make_store(config: ExperimentConfig, num_clips: int) -> tuple[ClipStore, list[str]]:
    """Writes a clip store of random pixels; returns it and its clips."""
    settings, rng = store_settings(config), np.random.default_rng(0)
    clip_ids = [f"clip{i:06}" for i in range(num_clips)]
    create_store(config.clip_store, settings)
    pixels = rng.integers(0, 256, (num_clips, 1, 32, 32, 3), np.uint8)
    clips = (Clip(frames, (0.0,), 25.0, 32, 32, "none") for frames in pixels)
    results = (DecodedClip(clip_id, f"{clip_id}.mp4", 0.0, clip) for clip_id, clip in zip(clip_ids, clips, strict=True))
    write_block(config.clip_store, settings, results)
    write_manifest(config.clip_store, settings, complete=True)
    return ClipStore(config.clip_store), clip_ids


if __name__ == "__main__":
    typer.run(main)
