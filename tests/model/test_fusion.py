"""The fusion of frames with phrases, alone; `test_student.py` has it within the student."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from waver.model.dropout import dropout_of_pairs
from waver.model.errors import BackboneError
from waver.model.fusion import KnowledgeFusion

KINDS = ["gated", "published"]
PHRASES = torch.randn(4, 5, 32, generator=torch.Generator().manual_seed(3))


def strong_fusion(kind: str, width: int = 32) -> KnowledgeFusion:
    """As it might be after training, in float64: what it adds to frames is of their size."""
    fusion = KnowledgeFusion(width, kind).double()
    with torch.no_grad():
        for module in fusion.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.mul_(20 if kind == "published" else 3)
                module.bias.normal_()
            if isinstance(module, torch.nn.LayerNorm) and kind == "gated":
                module.weight.normal_(1, 0.3)
                module.bias.normal_()
        if kind == "gated":
            fusion.attended_gate.fill_(0.5)
            fusion.output_gate.fill_(-0.3)
    return fusion


@torch.no_grad()
def test_published_fusion_equals_its_formula():
    """Two heads of 64; frame by frame, head by head."""
    fusion = strong_fusion("published", 128)
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [32, 128])
@torch.no_grad()
def test_returned_attention_is_the_one_used(kind, width, monkeypatch):
    fusion = strong_fusion(kind, width)
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


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_fusion_ignores_the_order_of_phrases(kind):
    fusion, frames, phrases = strong_fusion(kind), torch.randn(4, 3, 32).double(), PHRASES.double()
    fused = fusion(frames, phrases)
    for order in (torch.tensor([4, 3, 2, 1, 0]), torch.tensor([1, 0, 2, 4, 3])):
        torch.testing.assert_close(fusion(frames, phrases[:, order]), fused)
    other = phrases.clone()
    other[2, 4] = torch.randn(32)
    changed = (fusion(frames, other) - fused).abs().amax(dim=(1, 2)) > 1e-3
    assert changed.tolist() == [False, False, True, False]
    assert not torch.allclose(fusion(frames, phrases[:, :4]), fused)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_fusion_treats_frames_independently(kind):
    fusion, frames, phrases = strong_fusion(kind), torch.randn(4, 3, 32).double(), PHRASES.double()
    fused = fusion(frames, phrases)
    for number in range(3):
        torch.testing.assert_close(fusion(frames[:, [number]], phrases), fused[:, [number]])
    torch.testing.assert_close(fusion(frames[:, [2, 0, 1]], phrases), fused[:, [2, 0, 1]])


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_query_and_key_have_no_effect_with_one_phrase(kind):
    fusion, frames, phrases = strong_fusion(kind), torch.randn(4, 3, 32).double(), PHRASES.double()
    one, several = fusion(frames, phrases[:, :1]), fusion(frames, phrases)
    for module in (fusion.query, fusion.key):
        module.weight.normal_()
        module.bias.normal_()
    torch.testing.assert_close(fusion(frames, phrases[:, :1]), one)
    assert not torch.allclose(fusion(frames, phrases), several)


@torch.no_grad()
def test_published_fusion_starts_small():
    """Frames are normalised by it, and else nearly as they were."""
    frames = torch.randn(4, 3, 512)
    fused = KnowledgeFusion(512, "published")(frames, torch.randn(4, 5, 512))
    assert torch.nn.functional.cosine_similarity(fused, frames, dim=-1).min() > 0.9


def test_fusion_needs_a_width_that_its_heads_divide():
    assert KnowledgeFusion(100).num_heads == 1
    assert KnowledgeFusion(512).num_heads == 8
    with pytest.raises(
        BackboneError, match=r"knowledge.fusion: attention needs an embed_dim that 2 heads divide, not 129"
    ):
        KnowledgeFusion(129)


@torch.no_grad()
def test_gated_fusion_equals_its_formula():
    """One frame, one head and one phrase at a time."""
    fusion = strong_fusion("gated", 128)
    frames, phrases = 9 * torch.randn(3, 128, dtype=torch.float64), torch.randn(5, 128, dtype=torch.float64)

    def normalised(value: torch.Tensor, norm: torch.nn.LayerNorm) -> torch.Tensor:
        centred = value - value.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias

    known, expected = normalised(phrases, fusion.phrase_norm), []
    for frame in frames:
        scale = frame.square().mean().sqrt()
        query, seen = fusion.query(normalised(frame, fusion.query_norm)), []
        for head in (slice(0, 64), slice(64, 128)):
            attention = (fusion.key(known)[:, head] @ query[head] / 8).softmax(0)
            seen.append(attention @ fusion.value(known)[:, head])
        fused = frame + 0.5 * scale * fusion.attended(torch.cat(seen))
        hidden = F.gelu(fusion.hidden(normalised(fused, fusion.hidden_norm)))
        fused = fused - 0.3 * scale * fusion.output(hidden)
        expected.append(fused / fused.norm() * frame.norm())
    torch.testing.assert_close(fusion(frames[None], phrases[None])[0], torch.stack(expected))


@pytest.mark.parametrize("norm", [0.1, 10, 55])
@torch.no_grad()
def test_gated_fusion_starts_as_nothing_and_keeps_the_norm_of_frames(norm):
    """To the bit at the start, for frames of any backbone and for padding, which is 0."""
    frames = norm * F.normalize(torch.randn(4, 3, 32), dim=-1)
    frames[1, 2] = 0
    fusion = KnowledgeFusion(32, "gated")
    assert torch.equal(fusion(frames, PHRASES), frames)
    assert F.cosine_similarity(strong_fusion("gated")(frames.double(), PHRASES), frames, dim=-1).max() < 0.95
    fused = strong_fusion("gated")(frames.double(), PHRASES)
    torch.testing.assert_close(fused.norm(dim=-1), frames.norm(dim=-1).double())


@torch.no_grad()
def test_what_an_open_gate_adds_is_relative_to_the_frames():
    """As large for each backbone, and about the gate's share."""
    torch.manual_seed(0)
    for width in (128, 512):
        fusion = KnowledgeFusion(width, "gated").double()
        phrases = torch.randn(4, 10, width).double() + 2 * torch.randn(
            4, 1, width
        )  # alike, as the phrases of a clip are
        directions, shares = F.normalize(torch.randn(4, 3, width).double(), dim=-1), []
        for gate in (fusion.attended_gate, fusion.output_gate):
            gate.fill_(0.1)
            for norm in (1, 10, 55):
                changed = fusion(norm * directions, phrases) / norm - directions
                shares.append(changed.norm(dim=-1).mean().item())
            gate.fill_(0)
        assert all(0.05 < share < 0.12 for share in shares)
        for one, other in pairwise(shares[:3]):
            assert one == pytest.approx(other, rel=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_differences(kind):
    torch.manual_seed(1)
    fusion = strong_fusion(kind, 8)
    frames, phrases = torch.randn(2, 3, 8).double().requires_grad_(), torch.randn(2, 4, 8).double()
    weights = [p for p in fusion.parameters() if p.ndim < 2]
    assert torch.autograd.gradcheck(lambda *_: fusion(frames, phrases), (frames, *weights))


def test_padding_has_a_finite_gradient():
    fusion, frames = strong_fusion("gated").float(), torch.randn(4, 3, 32)
    frames[0, 1:] = 0
    frames.requires_grad_()
    fusion(frames, PHRASES).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in (frames, *fusion.parameters()))


def test_gates_open_first_and_then_all_learns():
    fusion = KnowledgeFusion(32, "gated")
    optimizer = torch.optim.Adam(fusion.parameters(), lr=1e-2)
    frames, target = torch.randn(4, 3, 32), torch.randn(4, 3, 32)
    before = {name: p.detach().clone() for name, p in fusion.named_parameters()}
    for step in range(2):
        optimizer.zero_grad()
        (fusion(frames, PHRASES) - target).square().mean().backward()
        assert all(p.grad is not None for p in fusion.parameters())  # DDP waits for each
        with_gradient = {name for name, p in fusion.named_parameters() if p.grad.abs().max() > 1e-12}
        assert step > 0 or with_gradient == {"attended_gate", "output_gate"}
        optimizer.step()
    moved = {name for name, p in fusion.named_parameters() if not torch.equal(p, before[name])}
    assert before.keys() - moved <= {"key.bias"}  # attention cannot see it


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_dropout_stands_where_bert_has_it(kind):
    """On the attention, after the layer that follows it, and after the feed-forward layer."""
    fusion, frames, phrases = strong_fusion(kind), torch.randn(4, 3, 32).double(), PHRASES.double()
    fusion.dropout, seeds = 0.3, [3, 1, 4, 1]
    drop = dropout_of_pairs(0.3, seeds)
    gated = kind == "gated"
    known = fusion.phrase_norm(phrases) if gated else phrases
    attention = drop(fusion.attention(frames, phrases))[:, 0]  # of the only head
    attended = drop(fusion.attended(attention @ fusion.value(known)))
    if gated:
        scale = frames.norm(dim=-1, keepdim=True) / 32**0.5
        fused = frames + 0.5 * scale * attended
        fused = fused - 0.3 * scale * drop(fusion.output(F.gelu(fusion.hidden(fusion.hidden_norm(fused)))))
        expected = F.normalize(fused, dim=-1) * frames.norm(dim=-1, keepdim=True)
    else:
        fused = fusion.attended_norm(frames + attended)
        expected = fusion.output_norm(fused + drop(fusion.output(F.gelu(fusion.hidden(fused)))))
    torch.testing.assert_close(fusion(frames, phrases, seeds), expected)
    assert not torch.allclose(fusion(frames, phrases), expected)
    fusion.dropout = 0.0
    assert torch.equal(fusion(frames, phrases, seeds), fusion(frames, phrases))


def test_the_published_block_keeps_the_order_of_its_parameters():
    """Checkpoints have the state of the optimizer in this order."""
    names = [name.removesuffix(".weight") for name, _ in KnowledgeFusion(32, "published").named_parameters()]
    layers = ["query", "key", "value", "attended", "attended_norm", "hidden", "output", "output_norm"]
    assert names[::2] == layers
    assert names[1::2] == [f"{name}.bias" for name in layers]
