"""What frozen towers make of frames and captions, compared with the backbone on one item at a time."""

import copy

import numpy as np
import pytest
import torch

from waver.model.frozen import embed_frames, embed_texts, tower_digest
from waver.model.pretrained.weights import load_backbone
from waver.model.tokenizer import find_tokenizer

ARCHITECTURE = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 64, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 40, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}
READS_PADDING = ARCHITECTURE | {
    "text_cfg": ARCHITECTURE["text_cfg"] | {"no_causal_mask": True, "pool_type": "last"},
    "custom_text": True,
}
WHOLE_TEXTS = ARCHITECTURE | {"text_cfg": ARCHITECTURE["text_cfg"] | {"embed_cls": True}, "custom_text": True}
FRAMES = np.random.default_rng(0).integers(0, 256, (75, 16, 16, 3)).astype(np.uint8)
WORDS = [
    "a",
    "man",
    "folds",
    "the",
    "paper",
    "plane",
    "while",
    "his",
    "old",
    "dog",
    "watches",
    "from",
    "a",
    "warm",
    "window",
    "sill",
    "and",
    "sleeps",
]
TEXTS = [" ".join(WORDS[first : first + length]) for first in range(7) for length in (1, 3, 6, 9, 12)]


def build(architecture: dict = ARCHITECTURE):
    torch.manual_seed(0)
    return load_backbone(architecture, None, image_size=16).eval()


def texts_of(backbone, texts: list[str], max_words: int = 32) -> list[np.ndarray]:
    tokenizer = find_tokenizer(backbone.architecture)
    return embed_texts(backbone, tokenizer, texts, max_words=max_words, prompt="a video of {}")


def test_frames_are_those_of_the_backbone_in_float64():
    backbone = build()
    found = embed_frames(backbone, FRAMES)
    exact = copy.deepcopy(backbone).double()
    pixels = (torch.from_numpy(FRAMES).permute(0, 3, 1, 2).double() / 255 - exact.pixel_mean) / exact.pixel_std
    with torch.no_grad():
        np.testing.assert_allclose(found, exact.clip.encode_image(pixels).numpy(), rtol=0, atol=1e-5)


def test_the_bits_of_a_frame_do_not_depend_on_its_company():
    backbone, order = build(), np.random.default_rng(1).permutation(len(FRAMES))
    whole = embed_frames(backbone, FRAMES)
    np.testing.assert_array_equal(embed_frames(backbone, FRAMES[order]), whole[order])
    for size in (1, 7, 40):
        parts = [embed_frames(backbone, FRAMES[first : first + size]) for first in range(0, len(FRAMES), size)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("architecture", [ARCHITECTURE, READS_PADDING, WHOLE_TEXTS], ids=["clip", "siglip", "coca"])
def test_the_bits_of_a_text_do_not_depend_on_its_company(architecture):
    backbone, order = build(architecture), np.random.default_rng(1).permutation(len(TEXTS))
    whole, mixed = texts_of(backbone, TEXTS), texts_of(backbone, [TEXTS[row] for row in order])
    for row, found in zip(order, mixed, strict=True):
        np.testing.assert_array_equal(found, whole[row])
        np.testing.assert_array_equal(texts_of(backbone, [TEXTS[row]])[0], whole[row])


@pytest.mark.parametrize("architecture", [ARCHITECTURE, READS_PADDING, WHOLE_TEXTS], ids=["clip", "siglip", "coca"])
def test_texts_are_those_of_the_backbone_in_float64(architecture):
    backbone = build(architecture)
    tokenizer, exact = find_tokenizer(architecture), copy.deepcopy(backbone).double()
    for text, found in zip(TEXTS, texts_of(backbone, TEXTS, max_words=10), strict=True):
        ids, mask = tokenizer([text], max_words=10, prompt="a video of {}")
        with torch.no_grad():
            expected = exact.encode_tokens(ids, mask)[0][mask[0]].numpy()
        expected = expected if backbone.embeds_tokens else expected[:1]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_the_digest_is_that_of_one_tower():
    backbone = build()
    before = {tower: tower_digest(backbone, tower) for tower in ("vision", "text")}
    assert before == {tower: tower_digest(build(), tower) for tower in ("vision", "text")}
    with torch.no_grad():
        backbone.logit_scale.add_(1)
        backbone.clip.visual.conv1.weight[0, 0, 0, 0] += 1
    assert tower_digest(backbone, "text") == before["text"]
    assert tower_digest(backbone, "vision") != before["vision"]
    other = build()
    with torch.no_grad():
        other.text.token_embedding.weight[7, 3] += 1
        other.pixel_std[0] += 1
    assert tower_digest(other, "text") != before["text"]
    assert tower_digest(other, "vision") != before["vision"], "the same weights see other pixels"


def test_the_digest_depends_on_the_activation():
    assert tower_digest(build(ARCHITECTURE | {"quick_gelu": True}), "vision") != tower_digest(build(), "vision")
