import itertools
import random
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from waver.config import load_config
from waver.model.backbone import Backbone
from waver.model.pretrained.weights import load_backbone
from waver.model.tokenizer import find_tokenizer
from waver.quickstart.alt_text import LESSONS, alt_text
from waver.quickstart.captions import COLOUR_WORDS, MOTION_WORDS, SHAPE_WORDS, STYLES, caption, captions
from waver.quickstart.pretrain import embed_frames, embed_texts, pretrain, pretraining_scenes, stills
from waver.quickstart.scenes import COLOURS, MOTIONS, SHAPES, Scene, split_scenes
from waver.quickstart.weights import pack, unpack, write_backbone
from waver.quickstart.world import WORLD

CLIP = find_tokenizer("ViT-B-32")
FOLDER = Path(str(files("waver.quickstart")))
EXPERIMENT = load_config(FOLDER / "experiment.yaml")


@pytest.fixture(scope="module")
def world() -> dict[str, list[Scene]]:
    return split_scenes(**{name: WORLD[name] for name in ("num_train", "num_validation", "num_test", "seed")})


@pytest.fixture(scope="module")
def packaged_backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    path = tmp_path_factory.mktemp("backbone") / "backbone.safetensors"
    write_backbone(path)
    return load_backbone(EXPERIMENT.model.backbone, str(path), image_size=EXPERIMENT.video.size).eval()


def triple(scene: Scene) -> tuple[str, str, str]:
    return scene.colour, scene.shape, scene.motion


def test_pretraining_scenes_have_all_values_and_no_triple_of_validation_or_test(world):
    seen = {triple(scene) for scene in pretraining_scenes(copies=2, seed=0)}
    assert not seen & {triple(scene) for split in ("validation", "test") for scene in world[split]}
    assert {value for values in seen for value in values} == {*COLOURS, *SHAPES, *MOTIONS}


def test_alt_texts_describe_the_scene_and_are_no_captions():
    scene = Scene("red", "star", "left", "striped", "big", 0)
    rng = random.Random(0)
    texts = [alt_text(scene, rng, lesson) for lesson in range(len(LESSONS)) for _ in range(1500)]
    for name in ("colour", "shape", "motion", "background", "size"):
        assert {getattr(text, name) for text in texts} == {getattr(scene, name), None}
    written = {caption(scene, style, seed) for style in STYLES for seed in range(200)}
    assert not written & {text.text for text in texts}


def test_alt_texts_use_the_words_of_every_style():
    scene = Scene("red", "star", "left", "striped", "big", 0)
    rng = random.Random(0)
    texts = " | ".join(alt_text(scene, rng).text for _ in range(3000))
    for tables, value in ((COLOUR_WORDS, "red"), (SHAPE_WORDS, "star"), (MOTION_WORDS, "left")):
        for wording in itertools.chain.from_iterable(table[value] for table in tables.values()):
            assert wording in texts


@pytest.mark.slow
def test_pretraining_lowers_the_loss_and_is_deterministic(tmp_path, said):
    scenes = pretraining_scenes(copies=1, seed=0)[::20]
    state, rows = pretrain(scenes, steps=40, seed=1, batch_size=16, report_every=1)
    losses = [float(line.split()[-1]) for line in said[1:]]
    assert sum(losses[-10:]) < sum(losses[:10])
    again, _ = pretrain(scenes, steps=40, seed=1, batch_size=16)
    assert all(torch.equal(state[name], again[name]) for name in state)

    pack(state, rows, tmp_path / "packed.safetensors")
    unpack(tmp_path / "packed.safetensors", tmp_path / "full.safetensors")
    full = load_file(tmp_path / "full.safetensors")
    torch.testing.assert_close(
        full["token_embedding.weight"][rows], state["token_embedding.weight"], atol=1e-3, rtol=1e-3
    )
    assert full["token_embedding.weight"].count_nonzero(1).bool().sum() == len(rows)
    load_backbone(EXPERIMENT.model.backbone, str(tmp_path / "full.safetensors"), image_size=EXPERIMENT.video.size)


@torch.no_grad()
def test_the_packaged_backbone_retrieves_unseen_clips_above_chance(packaged_backbone, world):
    scenes = world["test"][:40]
    videos = embed_frames(packaged_backbone, stills(scenes, EXPERIMENT.video.size, num_frames=4, seed=0))
    correct = torch.arange(len(scenes))
    for style in STYLES:
        texts = embed_texts(packaged_backbone, *CLIP([caption(scene, style, 0) for scene in scenes], max_words=32))
        found = (texts @ videos.T).topk(5).indices
        recall = (found == correct[:, None]).any(1).float().mean().item()
        assert recall > 3 * 5 / len(scenes), f"{style}: R@5 {recall:.2f}, by chance {5 / len(scenes):.2f}"


def test_the_packaged_backbone_has_an_embedding_of_every_token_of_the_captions(packaged_backbone):
    scenes = pretraining_scenes(copies=1, seed=0)[::8]
    texts = [text for scene in scenes for style in STYLES.keys() - {"chatty"} for text in captions(scene, style, 0, 2)]
    ids, mask = CLIP(texts, max_words=32)
    assert packaged_backbone.text.token_embedding.weight[ids[mask].unique()].count_nonzero(1).all()


def test_the_packaged_backbone_is_smaller_than_3_mb():
    assert (FOLDER / "backbone.safetensors").stat().st_size < 3e6
