import copy

import open_clip
import pytest
import torch

from waver.model.errors import BackboneError
from waver.model.pretrained.weights import check_weights, load_backbone

ARCHITECTURE = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 100, "width": 64, "heads": 1, "layers": 1},
}
TOKENS = torch.tensor([[98, 5, 7, 99, 0, 0], [98, 1, 2, 3, 4, 99]])


@pytest.fixture
def clip() -> open_clip.CLIP:
    torch.manual_seed(3)
    return open_clip.CLIP(**copy.deepcopy(ARCHITECTURE))


def encode(backbone) -> torch.Tensor:
    with torch.no_grad():
        return backbone.encode_tokens(TOKENS, TOKENS > 0)


def test_tokens_equal_the_pooled_text_of_open_clip(clip):
    """The end token of ours is what open_clip pools, though we stop at the longest text."""
    backbone = load_backbone(ARCHITECTURE, None, image_size=16)
    backbone.clip.load_state_dict(clip.state_dict())
    padded = torch.nn.functional.pad(TOKENS, (0, 14))
    with torch.no_grad():
        expected = backbone.clip.encode_text(padded)
    torch.testing.assert_close(encode(backbone)[[0, 1], [3, 5]], expected)


def test_frames_equal_open_clips_images():
    backbone = load_backbone(ARCHITECTURE, None, image_size=16).eval()
    frames = torch.randint(0, 256, (2, 3, 3, 16, 16), dtype=torch.uint8)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    with torch.no_grad():
        ours = backbone.encode_frames(backbone.pixels(frames), mask)
        for clip_number, frame in mask.nonzero().tolist():
            theirs = backbone.clip.encode_image(((frames[clip_number, frame] / 255 - mean) / std)[None])[0]
            torch.testing.assert_close(ours[clip_number, frame], theirs)
    assert (ours[~mask] == 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "image_size"), [("ViT-B-32-quickgelu", 64), ("RN50", 64), ("MobileCLIP-B", 224), ("EVA02-B-16", 224)]
)
def test_models_of_open_clip(name, image_size):
    """Of several kinds: a vision transformer, a ResNet, towers from timm, text towers with and without a causal mask."""
    backbone = load_backbone(name, None, image_size=image_size)
    size = backbone.architecture["vision_cfg"]["image_size"]
    with torch.no_grad():
        mask = torch.ones(1, 1, dtype=torch.bool)
        frames = backbone.encode_frames(torch.zeros(1, 1, 3, size, size), mask)
        words = backbone.encode_tokens(torch.ones(1, 5, dtype=torch.long), torch.ones(1, 5, dtype=torch.bool))
    assert frames.shape == (1, 1, backbone.width)
    assert words.shape == (1, 5, backbone.width)


@pytest.mark.parametrize(
    ("backbone", "weights", "expected"),
    [
        ("ViT-B-31", None, "open_clip has no model 'ViT-B-31'; similar names: .*ViT-B-32"),
        ("MobileCLIP-B", None, "takes images of 224 pixels only: set video.size to this number"),
        ("ViT-B-16-SigLIP", None, "takes images of 224 pixels only"),
        (
            "xlm-roberta-base-ViT-B-32",
            None,
            "its text tower xlm-roberta-base was not downloaded before, and .*: dow",
        ),
        ({"embed_dim": 3}, None, "missing: text_cfg, vision_cfg"),
        ({**ARCHITECTURE, "text_cfg": {"widht": 3}}, None, "open_clip cannot build this network"),
        (ARCHITECTURE, "nowhere.pt", "model.weights: there is no file nowhere.pt"),
        ("ViT-B-32", "opanai", "neither a file nor a pretrained tag of ViT-B-32; its tags: openai, laion"),
        (ARCHITECTURE, "openai", "neither a file nor a pretrained tag of this architecture; give a file"),
    ],
)
def test_unusable_backbones_are_refused(backbone, weights, expected):
    with pytest.raises(BackboneError, match=expected):
        load_backbone(backbone, weights, image_size=16)
    if weights:
        with pytest.raises(BackboneError, match=expected):
            check_weights(backbone, weights, image_size=16)
