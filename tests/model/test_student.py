import itertools
import subprocess
import sys
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import nn

from waver.config.model import ModelConfig, SimilarityConfig
from waver.data.batch import Batch
from waver.model.backbone import Backbone
from waver.model.interaction import INTERACTIONS
from waver.model.lora import adapter_parameters
from waver.model.student import Student, StudentParts
from waver.model.temporal import TEMPORAL_AGGREGATORS
from waver.training.build import build_backbone, build_student

FRAMES = torch.randint(0, 256, (4, 3, 3, 16, 16), dtype=torch.uint8)
MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]]).bool()
KNOWLEDGE_FUSIONS = ["gated", "published"]
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


@pytest.mark.parametrize("fusion", KNOWLEDGE_FUSIONS)
@pytest.mark.parametrize(("kind", "temporal"), KINDS)
def test_every_parameter_learns_with_fusion(load_knowing, kind, temporal, fusion):
    settings = {"knowledge.fusion": fusion, "model.frame_norm": "layer"}
    student = build_student(load_knowing(**settings, **{"similarity.kind": kind, "model.temporal": temporal}))
    if fusion == "gated":
        nn.init.ones_(student.fusion.attended_gate)
        nn.init.ones_(student.fusion.output_gate)
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


def parts_of(student: Student) -> dict[str, dict[str, torch.Tensor]]:
    """Name of each part -> its weights."""
    names = ("backbone", "fusion", "temporal", "text_weights", "video_weights", "cross")
    return {name: part.state_dict() for name in names if (part := getattr(student, name)) is not None}


def same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_parts_start_from_the_same_weights_whichever_other_parts_a_student_has(load_tiny):
    # Of a random backbone, whose text tower is wider: seqTransf draws its blocks.
    backbone = load_tiny().model.backbone | {"embed_dim": 48}
    found = {
        (kind, temporal, fusion): parts_of(
            Student(
                build_backbone(load_tiny(**{"model.backbone": backbone}), None),
                StudentParts(temporal=temporal, similarity=kind, wti_layers=2, fusion=fusion),
                seed=5,
            )
        )
        for kind in INTERACTIONS
        for temporal in TEMPORAL_AGGREGATORS
        for fusion in ("none", "gated")
    }
    compared = 0
    for (of_one, one), (of_other, other) in itertools.combinations(found.items(), 2):
        for name in one.keys() & other.keys():
            if name in ("temporal", "cross") and of_one[1] != of_other[1]:
                continue  # aggregators of two kinds, of which seqTransf initialises the cross-encoder
            assert same_weights(one[name], other[name]), (of_one, of_other, name)
            compared += name != "backbone"
    assert compared > 100
    whole = found["wti", "seqLSTM", "gated"]
    assert not torch.equal(whole["text_weights"]["0.weight"], whole["video_weights"]["0.weight"])


def test_other_seeds_draw_other_weights_in_every_part(load_tiny, load_knowing):
    kinds = [{"similarity.kind": "wti", "model.temporal": "seqLSTM"}, {"similarity.kind": "xti"}]
    for kind in kinds:
        for load in (load_tiny, load_knowing):
            one, again, other = (parts_of(build_student(load(**kind, seed=seed))) for seed in (0, 0, 1))
            for name in one:
                assert same_weights(one[name], again[name])
                initialised = name == "temporal" and "model.temporal" not in kind  # from the text tower
                if not initialised:
                    assert not same_weights(one[name], other[name]), name


def test_adapters_start_from_the_same_weights_with_and_without_fusion(load_knowing):
    students = [build_student(load_knowing(**{"model.lora.rank": 2, "knowledge.top_k": k})) for k in (0, 3)]
    plain, informed = ([p.detach() for p in adapter_parameters(student)] for student in students)
    assert plain
    assert all(torch.equal(one, other) for one, other in zip(plain, informed, strict=True))


def test_building_a_student_leaves_the_generator_of_torch(load_knowing):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    build_student(load_knowing(**{"model.lora.rank": 2}))
    assert torch.equal(torch.get_rng_state(), before)


def test_random_towers_are_drawn_from_the_seed_itself(load_tiny):
    """Stored embeddings of random towers, also those of earlier versions, are made by the towers of the student."""
    config = load_tiny(seed=6)
    student = build_student(config)
    torch.manual_seed(6)
    towers = Backbone(config.model.backbone, config.preprocessing.size)
    for other in (towers, build_backbone(config, None)):
        assert same_weights(other.state_dict(), student.backbone.state_dict())


@pytest.mark.parametrize("kind", KNOWLEDGE_FUSIONS)
@torch.no_grad()
def test_frame_norm_applies_to_pixels_and_stored_frames_in_both_ways(load_knowing, kind):
    settings = {"knowledge.fusion": kind, "model.temporal": "seqLSTM"}
    bare, normed = (build_student(load_knowing(**settings, **{"model.frame_norm": n})) for n in ("none", "layer"))
    normed.frame_norm.bias.normal_()
    frames = bare.backbone.encode_frames(bare.backbone.pixels(FRAMES), MASK)
    expected = normed.frame_norm(frames)
    for phrases in (None, PHRASES):
        by_hand = bare.encode_video(expected, MASK, phrases)
        for given in (FRAMES, frames):
            found = normed.encode_video(given, MASK, phrases)
            assert torch.equal(found.values[MASK], by_hand.values[MASK])
            assert torch.equal(found.weights, by_hand.weights)
    assert not torch.allclose(normed.encode_video(FRAMES, MASK).values, bare.encode_video(FRAMES, MASK).values)


@torch.no_grad()
def test_normed_frames_start_at_the_scale_of_clip_whatever_the_backbone_gives(load_tiny):
    student = build_student(load_tiny(**{"model.frame_norm": "layer"}))
    frames = torch.randn(4, 3, 32)
    for scale in (1, 55):
        norms = student.encode_frames(scale * frames, MASK).norm(dim=-1)
        torch.testing.assert_close(norms, torch.full((4, 3), 10.0), rtol=1e-3, atol=0)


@torch.no_grad()
def test_informed_videos_are_the_plain_ones_until_the_gates_open(load_knowing):
    for settings in ({}, {"model.frame_norm": "layer"}):
        student = build_student(load_knowing(**settings, **{"knowledge.fusion": "gated"}))
        plain, informed = (student.encode_video(FRAMES, MASK, phrases) for phrases in (None, PHRASES))
        assert torch.equal(plain.values, informed.values)
        student.fusion.attended_gate.fill_(0.3)
        assert not torch.allclose(plain.values, student.encode_video(FRAMES, MASK, PHRASES).values)


@pytest.mark.parametrize("fusion", KNOWLEDGE_FUSIONS)
def test_published_initialisation_of_heads_and_fusion(load_knowing, fusion):
    settings = {"knowledge.fusion": fusion, "model.temporal": "seqLSTM"}
    drawn, published = (
        build_student(load_knowing(**settings, **{"model.initialisation": how})) for how in ("torch", "published")
    )
    for part in (published.text_weights, published.video_weights, published.fusion):
        layers = [module for module in part.modules() if isinstance(module, nn.Linear)]
        weights = torch.cat([layer.weight.flatten() for layer in layers])
        assert weights.std().item() == pytest.approx(0.02, rel=0.1)
        assert abs(weights.mean().item()) < 0.003
        assert all(torch.count_nonzero(layer.bias) == 0 for layer in layers)
    assert drawn.text_weights[0].weight.abs().max() <= 32**-0.5
    assert drawn.text_weights[0].bias.abs().max() > 0
    assert same_weights(drawn.temporal.state_dict(), published.temporal.state_dict())
    std = torch.cat([p.flatten() for p in drawn.fusion.parameters() if p.ndim == 2]).std().item()
    assert std == pytest.approx(0.02 if fusion == "published" else 32**-0.5, rel=0.1)
