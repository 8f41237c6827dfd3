import subprocess
import sys
from dataclasses import replace
from typing import get_args

import pytest
import torch

from waver.config.model import ModelConfig, SimilarityConfig
from waver.data.batch import Batch
from waver.model.errors import BackboneError
from waver.model.fusion import KnowledgeFusion
from waver.model.interaction import INTERACTIONS
from waver.model.student import Student
from waver.model.temporal import TEMPORAL_AGGREGATORS
from waver.training.build import build_student

FRAMES = torch.randint(0, 256, (4, 3, 3, 16, 16), dtype=torch.uint8)
MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]]).bool()
KINDS = [(kind, temporal) for kind in INTERACTIONS for temporal in TEMPORAL_AGGREGATORS]


@pytest.mark.slow
def test_the_model_imports_without_ray():
    modules = "waver.model.student, waver.training.step, waver.evaluation.evaluate, waver.runs.folder"
    code = f"import sys, {modules}; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("kind", "temporal"), KINDS)
@torch.no_grad()
def test_clip_embedding_ignores_padding_and_other_clips(load_tiny, kind, temporal):
    student = build_student(load_tiny(**{"similarity.kind": kind, "model.temporal": temporal})).double().eval()
    together = student.encode_video(FRAMES, MASK)
    black = student.encode_video(FRAMES * MASK[..., None, None, None], MASK)
    for clip in range(4):
        length = int(MASK[clip].sum())
        alone = student.encode_video(FRAMES[clip : clip + 1, :length], MASK[clip : clip + 1, :length])
        for other in (together, black):
            torch.testing.assert_close(other.values[clip, :length], alone.values[0])
            torch.testing.assert_close(other.weights[clip, :length], alone.weights[0])


@pytest.mark.parametrize(("kind", "temporal"), KINDS)
def test_every_parameter_learns(load_tiny, kind, temporal):
    """DDP waits for the gradient of every parameter: one that gets none would stop a run."""
    student = build_student(load_tiny(**{"similarity.kind": kind, "model.temporal": temporal}))
    tokens = torch.randint(1, 1000, (4, 6))
    text = student.encode_text(tokens, torch.ones(4, 6, dtype=torch.bool))
    similarity = student.similarity(text, student.encode_video(FRAMES, MASK))
    (student.logit_scale.exp() * similarity).square().sum().backward()
    assert [name for name, p in student.named_parameters() if p.requires_grad and p.grad is None] == []


def test_training_drops_no_block_since_each_worker_would_drop_others(load_tiny):
    """open_clip's ConvNeXt and ViTamin have stochastic depth in their configurations."""
    tower = {"timm_model_name": "vit_tiny_patch16_224", "image_size": 224, "timm_drop_path": 0.5}
    backbone = load_tiny().model.backbone | {"vision_cfg": tower}
    config = load_tiny(**{"model.backbone": backbone, "video.size": None})
    student = build_student(config)
    frames = torch.randint(0, 256, (2, 2, 3, 224, 224), dtype=torch.uint8)
    mask = torch.ones(2, 2, dtype=torch.bool)
    expected = student.eval().encode_video(frames, mask)
    torch.testing.assert_close(student.train().encode_video(frames, mask).values, expected.values)


def test_aggregator_starts_as_the_text_tower(load_tiny):
    student = build_student(load_tiny())
    text = student.backbone.text
    for name, value in text.transformer.resblocks[0].state_dict().items():
        assert torch.equal(student.temporal.transformer.resblocks[0].state_dict()[name], value)
    assert torch.equal(student.temporal.position_embedding, text.positional_embedding)


def test_aggregator_of_another_width_starts_at_random(load_tiny):
    backbone = dict(load_tiny().model.backbone) | {"embed_dim": 48}
    student = build_student(load_tiny(**{"model.backbone": backbone}))
    assert student.encode_video(FRAMES, MASK).values.shape == (4, 3, 48)


def test_logit_scale_is_clamped_at_100(load_tiny):
    student = build_student(load_tiny())
    with torch.no_grad():
        student.logit_scale.fill_(9.0)
    student.clamp_logit_scale()
    assert student.logit_scale.exp().item() == pytest.approx(100)


PHRASES = torch.randn(4, 5, 32, generator=torch.Generator().manual_seed(3))


def strong_fusion(width: int = 32) -> KnowledgeFusion:
    """As it might be after training, in float64: what it adds to frames is of their size."""
    fusion = KnowledgeFusion(width).double()
    with torch.no_grad():
        for module in fusion.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(20)
                module.bias.normal_()
    return fusion


@torch.no_grad()
def test_fusion_equals_its_formula():
    """Two heads of 64; frame by frame, head by head."""
    fusion = strong_fusion(128)
    frames, phrases = torch.randn(3, 128, dtype=torch.float64), torch.randn(5, 128, dtype=torch.float64)
    expected = []
    for frame in frames:
        seen = []
        for head in (slice(0, 64), slice(64, 128)):
            query, keys, values = (
                fusion.query(frame)[head],
                fusion.key(phrases)[:, head],
                fusion.value(phrases)[:, head],
            )
            seen.append((keys @ query / 8).softmax(0) @ values)
        attended = fusion.attended_norm(frame + fusion.attended(torch.cat(seen)))
        hidden = torch.nn.functional.gelu(fusion.hidden(attended))
        expected.append(fusion.output_norm(attended + fusion.output(hidden)))
    torch.testing.assert_close(fusion(frames[None], phrases[None])[0], torch.stack(expected))


@pytest.mark.parametrize("width", [32, 128])
@torch.no_grad()
def test_returned_attention_is_the_one_used(width, monkeypatch):
    fusion = strong_fusion(width)
    frames, phrases = torch.randn(4, 3, width).double(), torch.randn(4, 5, width).double()
    used = []
    original = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        torch.nn.functional,
        "scaled_dot_product_attention",
        lambda query, key, value: used.append((value, original(query, key, value))) or used[-1][1],
    )
    fusion(frames, phrases)
    attention, (value, seen) = fusion.attention(frames, phrases), used[0]
    assert attention.shape == (4, fusion.num_heads, 3, 5)
    torch.testing.assert_close(attention.sum(-1), torch.ones(4, fusion.num_heads, 3).double())
    torch.testing.assert_close(attention @ value, seen)


@torch.no_grad()
def test_fusion_ignores_the_order_of_phrases():
    fusion, frames, phrases = strong_fusion(), torch.randn(4, 3, 32).double(), PHRASES.double()
    fused = fusion(frames, phrases)
    for order in (torch.tensor([4, 3, 2, 1, 0]), torch.tensor([1, 0, 2, 4, 3])):
        torch.testing.assert_close(fusion(frames, phrases[:, order]), fused)
    other = phrases.clone()
    other[2, 4] = torch.randn(32)
    changed = (fusion(frames, other) - fused).abs().amax(dim=(1, 2)) > 1e-3
    assert changed.tolist() == [False, False, True, False]
    assert not torch.allclose(fusion(frames, phrases[:, :4]), fused)


@torch.no_grad()
def test_fusion_treats_frames_independently():
    fusion, frames, phrases = strong_fusion(), torch.randn(4, 3, 32).double(), PHRASES.double()
    fused = fusion(frames, phrases)
    for number in range(3):
        torch.testing.assert_close(fusion(frames[:, [number]], phrases), fused[:, [number]])
    torch.testing.assert_close(fusion(frames[:, [2, 0, 1]], phrases), fused[:, [2, 0, 1]])


@torch.no_grad()
def test_query_and_key_have_no_effect_with_one_phrase():
    fusion, frames, phrases = strong_fusion(), torch.randn(4, 3, 32).double(), PHRASES.double()
    one, several = fusion(frames, phrases[:, :1]), fusion(frames, phrases)
    for module in (fusion.query, fusion.key):
        module.weight.normal_()
        module.bias.normal_()
    torch.testing.assert_close(fusion(frames, phrases[:, :1]), one)
    assert not torch.allclose(fusion(frames, phrases), several)


@torch.no_grad()
def test_fusion_starts_small():
    """Frames are normalised by it, and else nearly as they were."""
    frames = torch.randn(4, 3, 512)
    fused = KnowledgeFusion(512)(frames, torch.randn(4, 5, 512))
    assert torch.nn.functional.cosine_similarity(fused, frames, dim=-1).min() > 0.9


def test_fusion_needs_a_width_that_its_heads_divide():
    assert KnowledgeFusion(100).num_heads == 1
    assert KnowledgeFusion(512).num_heads == 8
    with pytest.raises(
        BackboneError, match=r"knowledge.fusion: attention needs an embed_dim that 2 heads divide, not 129"
    ):
        KnowledgeFusion(129)


@pytest.mark.parametrize(("kind", "temporal"), KINDS)
@torch.no_grad()
def test_informed_clip_ignores_padding_and_other_clips(load_knowing, kind, temporal):
    student = build_student(load_knowing(**{"similarity.kind": kind, "model.temporal": temporal})).double().eval()
    phrases = PHRASES.double()
    together = student.encode_video(FRAMES, MASK, phrases)
    for clip in range(4):
        rows, length = slice(clip, clip + 1), int(MASK[clip].sum())
        alone = student.encode_video(FRAMES[rows, :length], MASK[rows, :length], phrases[rows])
        torch.testing.assert_close(together.values[clip, :length], alone.values[0])
        torch.testing.assert_close(together.weights[clip, :length], alone.weights[0])


def informed_and_plain(student: Student) -> torch.Tensor:
    """Similarities of some texts with clips that are embedded in both ways."""
    text = student.encode_text(torch.randint(1, 1000, (4, 6)), torch.ones(4, 6, dtype=torch.bool))
    videos = (student.encode_video(FRAMES, MASK), student.encode_video(FRAMES, MASK, PHRASES))
    return torch.stack([student.similarity(text, video) for video in videos])


@pytest.mark.parametrize(("kind", "temporal"), KINDS)
def test_every_parameter_learns_with_fusion(load_knowing, kind, temporal):
    student = build_student(load_knowing(**{"similarity.kind": kind, "model.temporal": temporal}))
    (student.logit_scale.exp() * informed_and_plain(student)).square().sum().backward()
    assert [name for name, p in student.named_parameters() if p.requires_grad and p.grad is None] == []
    # A key's bias adds the same to every phrase of a frame: attention cannot see it, so it is the one that never moves.
    still = {name for name, p in student.fusion.named_parameters() if p.grad.abs().max() < 1e-12}
    assert still <= {"key.bias"}


@pytest.mark.parametrize(("kind", "temporal"), KINDS)
@torch.no_grad()
def test_embeddings_take_the_place_of_pixels_and_words(load_knowing, kind, temporal):
    """A batch with what the towers make of it is embedded to the same bits, also in parts."""
    student = build_student(load_knowing(**{"similarity.kind": kind, "model.temporal": temporal})).eval()
    tokens, token_mask = (
        torch.randint(1, 1000, (4, 6)),
        torch.tensor([[1] * n + [0] * (6 - n) for n in (6, 2, 4, 6)]).bool(),
    )
    phrase_ids = torch.arange(12).reshape(4, 3)
    batch = Batch(tokens, token_mask, FRAMES, MASK, phrase_ids, tuple("abcd"), tuple("abcd"), torch.arange(4), 4)
    frames = student.backbone.encode_frames(student.backbone.pixels(FRAMES), MASK)
    embedded = replace(batch, frames=frames, tokens=student.backbone.encode_tokens(tokens, token_mask)).to("cpu")
    expected, found = (student(b, PHRASES, plain=True, informed=True) for b in (batch, embedded))
    for name in ("text", "plain", "informed"):
        for tensor in ("values", "mask", "weights"):
            assert torch.equal(getattr(getattr(found, name), tensor), getattr(getattr(expected, name), tensor))
    part = student(embedded[1:3], PHRASES[1:3], plain=True, informed=False)
    torch.testing.assert_close(part.text.values, expected.text.values[1:3])
    torch.testing.assert_close(part.plain.values, expected.plain.values[1:3])


@torch.no_grad()
def test_embeddings_of_another_width_are_refused(load_tiny):
    student = build_student(load_tiny())
    with pytest.raises(AssertionError, match="embeddings of frames are those of this backbone"):
        student.encode_video(torch.zeros(4, 3, 31), MASK)


@torch.no_grad()
def test_without_fusion_there_are_no_weights_of_it(load_knowing):
    plain, informed = build_student(load_knowing(**{"knowledge.top_k": 0})), build_student(load_knowing())
    new = informed.state_dict().keys() - plain.state_dict().keys()
    assert new == {f"fusion.{name}" for name in informed.fusion.state_dict()}
    ways = informed_and_plain(informed)
    assert not torch.allclose(ways[0], ways[1])


def test_the_configuration_offers_what_the_tables_have():
    """The configuration does not import torch, so its names are written out."""
    assert get_args(SimilarityConfig.model_fields["kind"].annotation) == tuple(INTERACTIONS)
    assert get_args(ModelConfig.model_fields["temporal"].annotation) == tuple(TEMPORAL_AGGREGATORS)
