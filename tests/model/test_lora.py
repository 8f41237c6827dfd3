import pytest
import torch

from waver.model.backbone import Backbone
from waver.model.errors import BackboneError
from waver.model.lora import adapter_parameters, add_adapters
from waver.model.towers import tower_blocks

VIT = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 50, "width": 32, "heads": 2, "layers": 3},
}
OWN_ATTENTION = VIT | {"vision_cfg": VIT["vision_cfg"] | {"block_type": "custom", "qk_norm": True}}
TIMM = VIT | {"vision_cfg": {"timm_model_name": "vit_tiny_patch16_224", "image_size": 224}}
RESNET = VIT | {"vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 16}}
SIZES = {id(TIMM): 224, id(RESNET): 64}


def build(architecture: dict) -> Backbone:
    torch.manual_seed(0)
    return Backbone(architecture, SIZES.get(id(architecture), 16)).eval()


def embed(backbone: Backbone) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    size = backbone.architecture["vision_cfg"]["image_size"]
    pixels = torch.randn(2, 3, size, size, generator=generator)
    tokens = torch.randint(0, 50, (2, 12), generator=generator)
    return backbone.clip.encode_image(pixels), backbone.encode_tokens(tokens, tokens >= 0)


@pytest.mark.parametrize("architecture", [VIT, OWN_ATTENTION, TIMM], ids=["vit", "own attention", "timm"])
@pytest.mark.parametrize("no_grad", [False, True])
def test_adapters_change_nothing_at_the_start_and_both_towers_later(architecture, no_grad):
    """Without gradient torch's attention takes another way through its code, which may round differently."""
    backbone = build(architecture)
    with torch.set_grad_enabled(not no_grad):
        before = embed(backbone)
        add_adapters(backbone, ("vision", "text"), rank=2, alpha=4.0)
        at_start = embed(backbone)
        for then, now in zip(before, at_start, strict=True):
            torch.testing.assert_close(now, then, rtol=0, atol=1e-5 if no_grad else 0)
        with torch.no_grad():
            for parameter in adapter_parameters(backbone):
                parameter.normal_()
        assert not any(torch.allclose(a, b) for a, b in zip(before, embed(backbone), strict=True))


def test_weights_are_the_sum_for_query_key_value_and_output():
    plain, backbone = build(VIT), build(VIT)
    add_adapters(backbone, ("text",), rank=2, alpha=6.0)
    attention, frozen = (b.clip.transformer.resblocks[1].attn for b in (backbone, plain))
    with torch.no_grad():
        for parameter in adapter_parameters(backbone):
            parameter.normal_()
        for module, name in ((attention, "in_proj_weight"), (attention.out_proj, "weight")):
            low = module.parametrizations[name][0]
            added = torch.cat([3 * up @ down for up, down in zip(low.up, low.down, strict=True)])
            assert len(low.up) == (3 if name == "in_proj_weight" else 1)
            original = frozen.in_proj_weight if name == "in_proj_weight" else frozen.out_proj.weight
            torch.testing.assert_close(getattr(module, name), original + added)


HUB_ATTENTION = {
    "roberta": ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    "mt5": tuple(f"layer.0.SelfAttention.{name}" for name in "qkvo"),
    "m2m_100": tuple(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")),
}


@pytest.mark.parametrize("kind", HUB_ATTENTION)
def test_text_towers_of_the_hub_get_adapters_for_query_key_value_and_output(kind, with_hub_tower):
    backbone = build(with_hub_tower(kind))
    add_adapters(backbone, ("text",), rank=2, alpha=4.0)
    for block in tower_blocks(backbone, "text"):
        found = {name.partition(".parametrizations.")[0] for name, p in block.named_parameters() if p.requires_grad}
        assert found == set(HUB_ATTENTION[kind])


@pytest.mark.parametrize("where", [("vision",), ("text",), ("vision", "text")])
def test_only_adapters_and_the_logit_scale_are_trained(where):
    with torch.device("meta"):
        backbone = build(VIT)
        add_adapters(backbone, where, rank=2, alpha=4.0)
    trained = {name for name, p in backbone.clip.named_parameters() if p.requires_grad}
    assert all(name == "logit_scale" or name.endswith((".up", ".down")) for name in trained)
    num_blocks = {"vision": 2, "text": 3}
    assert len(trained) == 1 + sum(4 * num_blocks[tower] for tower in where)  # two weights a block, two factors each
    assert {name.startswith("visual.") for name in trained if name != "logit_scale"} == {w == "vision" for w in where}


def test_gradient_reaches_the_adapters_alone():
    backbone = build(VIT).train()
    add_adapters(backbone, ("vision", "text"), rank=2, alpha=4.0)
    sum(values.square().sum() for values in embed(backbone)).backward()
    with_gradient = {id(p) for p in backbone.parameters() if p.grad is not None}
    assert with_gradient == {id(p) for p in adapter_parameters(backbone)}


@pytest.mark.parametrize(
    ("architecture", "rank", "message"),
    [
        (RESNET, 2, r"model.lora: the vision tower of model.backbone has no attention"),
        (VIT, 33, r"model.lora.rank = 33 is more than the width 32 of the attention in the vision tower"),
    ],
)
def test_adapters_that_do_not_fit_are_an_error(architecture, rank, message):
    with torch.device("meta"):
        backbone = build(architecture)
    with pytest.raises(BackboneError, match=message):
        add_adapters(backbone, ("vision",), rank=rank, alpha=1.0)
