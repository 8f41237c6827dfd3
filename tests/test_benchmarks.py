"""The benchmarks in experiments/ are not run by the tests; they must at least fit to the code that they measure.

The conventional baseline is tested: on equal weights its numbers are those of waver.
"""

import copy
import runpy
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from shared_fixtures import BACKBONE

from waver.benchmarks.ranking import random_pairs, rank
from waver.benchmarks.students import Setup, conventional_batch, conventional_step
from waver.benchmarks.synthetic import experiment, make_video, random_vectors
from waver.data.video.reader import read_clip
from waver.data.video.resizing import Resizing
from waver.knowledge.teacher import Teacher, match_clips
from waver.model.embeddings import Embeddings
from waver.model.interaction import wti
from waver.training.build import build_tokenizer, build_training
from waver.training.step import make_batch, train_step

BENCHMARKS = sorted((Path(__file__).parents[1] / "experiments" / "benchmarks").glob("*.py"))
NUM_PAIRS = 6


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_imports_only_what_exists(path):
    found = runpy.run_path(str(path), run_name="benchmark")
    assert found["__doc__"]


@pytest.fixture(scope="module")
def conventional():
    path = next(path for path in BENCHMARKS if path.stem == "conventional")
    return types.SimpleNamespace(**runpy.run_path(str(path), run_name="conventional"))


@pytest.fixture
def build(tmp_path, captions, store, knowledge):
    """Builds the small experiment with phrases and clips of 1 to 3 frames, always with equal weights, in float64."""

    def build(**train) -> Setup:
        settings = {
            "model": {"backbone": BACKBONE, "temporal_layers": 2},
            "video": {"size": 16, "max_frames": 3},
            "text": {"max_words": 20},
            "knowledge": {"top_k": 3},
            "train": {"precision": "fp32", "lr": 1e-2, "backbone_lr_scale": 0.1, "warmup_fraction": 0, **train},
        }
        config = experiment(tmp_path, settings)
        clip_ids = captions["clip_id"].to_pylist()
        # The last caption of each clip: they differ in length.
        rows = [len(clip_ids) - 1 - clip_ids[::-1].index(clip) for clip in store.ok_clip_ids()[:NUM_PAIRS]]
        training = build_training(config, num_steps=10**9, device=torch.device("cpu"), pretrained=False)
        training.student.double()
        teacher = Teacher(copy.deepcopy(training.student.backbone), build_tokenizer(config), config.knowledge.prompt)
        training.phrases = teacher.embed_phrases(knowledge.phrases)
        return Setup(config, captions.take(rows), store, knowledge, training)

    return build


@pytest.mark.slow
@pytest.mark.parametrize("scale", [0.0, 0.1])
def test_steps_have_equal_losses(conventional, build, monkeypatch, scale):
    """Three steps, so that the second and third loss depend on the gradients of those before."""
    ours, theirs = build(backbone_lr_scale=scale), build(backbone_lr_scale=scale)
    rows, store = np.arange(NUM_PAIRS), ours.clips
    clips = store.read(ours.captions["clip_id"].to_pylist())
    batch = make_batch(ours.captions, rows, clips, ours.config, NUM_PAIRS, ours.knowledge)
    assert len(set(batch.frame_mask.sum(1).tolist())) == 3
    assert not batch.token_mask.all()
    # In float64, so that equal means equal: the float32 of its data loader is tested below.
    exact = theirs.training.student.backbone.pixels
    in_float64 = lambda clip: exact(torch.from_numpy(clip).permute(0, 3, 1, 2)).numpy()  # noqa: E731
    monkeypatch.setattr(conventional, "normalise", in_float64)
    step = conventional_step(conventional, theirs, NUM_PAIRS)
    found = [(train_step(ours.training, batch, ours.config)["loss/total"], step()) for _ in range(3)]
    assert [a for a, _ in found] == pytest.approx([b for _, b in found], rel=1e-9)
    assert found[0][0] == pytest.approx(found[0][1], rel=1e-12)
    assert abs(found[2][0] - found[0][0]) > 1e-3 * found[0][0]


def test_frames_are_normalised_equally(conventional, build):
    setup = build()
    frames = conventional_batch(conventional, setup, NUM_PAIRS)[0]
    pixels = setup.clips.read(setup.captions["clip_id"].to_pylist())[0]
    expected = setup.training.student.backbone.pixels(torch.from_numpy(pixels).permute(0, 1, 4, 2, 3))
    torch.testing.assert_close(frames.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "differing"), [(64, 0), (224, 0.001), (240, 0), (300, 0)])
def test_a_clip_has_equal_pixels(conventional, tmp_path, size, differing):
    """waver resizes only the part that it keeps, which rounds a few pixels otherwise if the scale is no simple fraction."""
    path = make_video(tmp_path / "video.mp4", seconds=5.0)
    clip = read_clip(path, frames_per_second=1.0, max_frames=3, target=Resizing(size))
    frames = conventional.load_clip(str(path), 1.0, 3, size)
    assert frames.shape == (3, size, size, 3)
    difference = np.abs(frames.astype(int) - clip.frames)
    assert difference.max() <= 2
    assert (difference > 0).mean() <= differing


def test_items_of_the_data_loader_are_clips_with_their_captions(conventional, tmp_path):
    paths = [str(make_video(tmp_path / f"{number}.mp4", seconds=2.0 + number)) for number in range(2)]
    ids, mask = torch.arange(8).view(2, 4), torch.ones(2, 4, dtype=torch.bool)
    data = conventional.CaptionedVideos(paths, ids, mask, frames_per_second=1.0, max_frames=3, size=32)
    frames, frame_mask, token_ids, token_mask = next(iter(conventional.make_loader(data, 2)))
    assert frame_mask.tolist() == [[True, True, False], [True, True, True]]
    expected = conventional.normalise(conventional.load_clip(paths[0], 1.0, 3, 32))
    assert np.array_equal(frames[0, :2].numpy(), expected)
    assert not frames[0, 2].any()
    assert torch.equal(token_ids, ids)
    assert torch.equal(token_mask, mask)


def test_similarities_and_ranks_are_equal(conventional):
    text, video = (
        Embeddings(items.values.double(), items.mask, items.weights.double())
        for items in random_pairs(70, 32, max_words=32, max_frames=5)
    )
    frame_mask = torch.arange(5) < torch.arange(70)[:, None] % 5 + 1
    video = Embeddings(video.values, frame_mask, frame_mask / frame_mask.sum(1, keepdim=True).double())
    parts = [(items.values, items.mask, items.weights) for items in (text, video)]
    similarity = conventional.compare_in_blocks(*parts)
    torch.testing.assert_close(torch.from_numpy(similarity), wti(text, video), rtol=0, atol=1e-12)
    ranks = rank(text, video)
    assert conventional.ranks(similarity).tolist() == ranks.t2v.tolist()
    assert conventional.ranks(similarity.T).tolist() == ranks.v2t.tolist()


def test_phrases_are_equal(conventional):
    clips, phrases = random_vectors(70, 32, seed=0), random_vectors(9000, 32, seed=1)
    assert np.array_equal(conventional.match(clips.numpy(), phrases.numpy(), 30), match_clips(clips, phrases, 30)[0])
