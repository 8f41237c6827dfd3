"""A context of benchmarks at the size of the small experiment."""

import sys

import pytest
from shared_fixtures import BACKBONE

from waver.benchmarks.context import Context, Sizes
from waver.benchmarks.conventional import load_conventional

SMALL = Sizes(
    backbone=BACKBONE,
    image_size=16,
    max_frames=3,
    frozen_pairs=4,
    trained_pairs=3,
    matmul=64,
    phrases=500,
    matched_clips=70,
    input_clips=16,
    input_batch=4,
    decoded_clips=2,
    decoders=0,
    loaders=0,
    ranked=50,
    epoch_clips=20,
    epoch_captions=40,
    epoch_pairs=8,
    gpu_pairs=3,
    scaling_clips=(100, 200, 400),
    scaling_phrases=(100, 200),
    scaling_workers=(1, 2),
    scaling_pairs=8,
    search_windows=600,
)


@pytest.fixture
def context(tmp_path, repository, monkeypatch) -> Context:
    monkeypatch.setattr(sys, "path", [*sys.path])  # the folder of the baseline is added
    conventional, _ = load_conventional(repository / "experiments/benchmarks/conventional.py")
    return Context(tmp_path, 2, SMALL, conventional)
