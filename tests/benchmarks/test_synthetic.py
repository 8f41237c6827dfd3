import av
import numpy as np
import pytest
import torch
from shared_fixtures import BACKBONE

from waver.benchmarks.synthetic import (
    LENGTHS,
    PROMPT,
    draw_lengths,
    embed_captions,
    embed_clips,
    experiment,
    make_captions,
    make_clips,
    make_video,
)
from waver.config import load_config
from waver.model.tokenizer import find_tokenizer


def test_lengths_are_those_of_real_captions():
    assert sum(LENGTHS.values()) == 1000
    mean = sum(length * number for length, number in LENGTHS.items()) / 1000
    drawn = draw_lengths(20_000, max_words=32)
    assert drawn.mean() == pytest.approx(mean, abs=0.1)
    assert (drawn.min(), drawn.max()) == (11, 32)
    assert draw_lengths(100, max_words=12).max() == 12


def test_captions_have_the_lengths_that_were_drawn():
    captions = make_captions(100, 2, max_words=32)
    mask = find_tokenizer(BACKBONE)(captions["caption"].to_pylist(), max_words=32, prompt=PROMPT)[1]
    assert mask.sum(1).tolist() == draw_lengths(200, max_words=32).tolist()
    assert captions["clip_id"].to_pylist() == [f"clip{row // 2:08}" for row in range(200)]
    assert captions["caption_index"].to_pylist() == [0, 1] * 100


def test_the_experiment_is_that_of_waver_on_msrvtt(repository, tmp_path):
    ours = experiment(tmp_path, {"train": {"precision": "auto"}}).model_dump()
    published = load_config(repository / "experiments/msrvtt_waver.yaml").model_dump()
    for section in ("video", "text", "similarity", "knowledge", "loss"):
        differing = {key for key, value in ours[section].items() if value != published[section][key]}
        assert differing <= {"size", "dropout"}, (
            section
        )  # null is the size of the backbone; the benchmarks drop nothing
    assert ours["model"] == published["model"] | {"weights": None}


def test_embeddings_can_be_read_for_every_clip_and_caption(tmp_path):
    clips = make_clips(tmp_path / "clips", 5, size=8, max_frames=3)
    frames = embed_clips(tmp_path / "frames", clips, 32)
    sources = clips.blocks_of(clips.ok_clip_ids())
    values, lengths = frames.read(list(sources.items()), 3)
    assert values.shape == (5, 3, 32)
    assert lengths.tolist() == [3] * 5
    captions = make_captions(5, 2, max_words=16)
    tokens = embed_captions(tmp_path / "tokens", captions, BACKBONE, 32, max_words=16)
    texts = captions["caption"].to_pylist()
    _, lengths = tokens.read([(text, "") for text in texts], 16)
    mask = find_tokenizer(BACKBONE)(texts, max_words=16, prompt=PROMPT)[1]
    assert torch.equal(torch.from_numpy(lengths), mask.sum(1).int())


def test_pixels_are_those_that_were_written(tmp_path):
    raw, jpeg = (
        make_clips(tmp_path / kind, 2, size=64, max_frames=3, frame_format=kind).read(["clip00000001"])[0]
        for kind in ("raw", "jpeg")
    )
    assert raw.std() > 10
    assert np.corrcoef(raw.ravel(), jpeg.ravel())[0, 1] > 0.8
    assert np.array_equal(raw[0, 0, 8:, 8:], raw[0, 1, :-8, :-8])  # the picture moves


def test_a_video_has_the_size_and_rate_of_msrvtt(tmp_path):
    with av.open(make_video(tmp_path / "video.mp4", seconds=1.0)) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate, stream.frames) == (320, 240, 25, 25)
