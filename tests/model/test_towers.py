import pytest
import torch

from waver.model.backbone import Backbone
from waver.model.errors import BackboneError
from waver.model.towers import freeze_towers, recompute_activations, tower_blocks, tower_parameters

VIT = {
    "embed_dim": 16,
    "vision_cfg": {"layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 12, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2},
}
RESNET = VIT | {"vision_cfg": {"layers": [1, 1, 1, 1], "width": 8, "head_width": 16}}
TIMM = VIT | {"vision_cfg": {"timm_model_name": "vit_tiny_patch16_224", "image_size": 224}}
CUSTOM_TEXT = VIT | {"custom_text": True}
HUB_TOWERS = ("bert", "roberta", "mt5", "m2m_100")
"""Types of text towers of the hub; open_clip has models with the last three."""


def build(architecture: dict, size: int = 16) -> Backbone:
    torch.manual_seed(0)
    return Backbone(architecture, 224 if architecture is TIMM else 64 if architecture is RESNET else size)


@pytest.mark.parametrize("architecture", [VIT, RESNET, TIMM, CUSTOM_TEXT], ids=["vit", "resnet", "timm", "custom text"])
def test_towers_share_no_parameter_and_have_all_but_the_logit_scale(architecture):
    with torch.device("meta"):
        backbone = build(architecture)
    vision, text = (tower_parameters(backbone, tower).values() for tower in ("vision", "text"))
    assert not {id(p) for p in vision} & {id(p) for p in text}
    others = {id(p) for p in backbone.parameters()} - {id(p) for p in (*vision, *text)}
    assert others == {id(backbone.logit_scale)}


BLOCKS = [
    (VIT, "vision.1", "class_embedding positional conv1 ln_pre transformer.resblocks.0."),
    (VIT, "text.2", "positional token_embedding transformer.resblocks.0. transformer.resblocks.1."),
    (CUSTOM_TEXT, "text.1", "positional token_embedding transformer.resblocks.0."),
    (RESNET, "vision.2", "conv bn layer1. layer2."),
    (TIMM, "vision.1", "trunk.cls_token trunk.pos_embed trunk.patch_embed trunk.blocks.0."),
]


@pytest.mark.parametrize(("architecture", "part", "prefixes"), BLOCKS, ids=["vit", "text", "custom", "resnet", "timm"])
def test_first_blocks_are_frozen_with_all_before_them(architecture, part, prefixes):
    with torch.device("meta"):
        backbone = build(architecture)
    freeze_towers(backbone, (part,))
    tower, other = ("vision", "text") if part.startswith("vision") else ("text", "vision")
    parameters = tower_parameters(backbone, tower)
    assert {name for name, p in parameters.items() if not p.requires_grad} == {
        name for name in parameters if name.startswith(tuple(prefixes.split()))
    }
    assert all(any(name.startswith(prefix) for name in parameters) for prefix in prefixes.split())
    assert all(p.requires_grad for p in tower_parameters(backbone, other).values())


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_a_whole_tower_is_frozen_and_no_other(tower):
    with torch.device("meta"):
        backbone = build(VIT)
    freeze_towers(backbone, (tower,))
    frozen = {id(p) for p in backbone.parameters() if not p.requires_grad}
    assert frozen == {id(p) for p in tower_parameters(backbone, tower).values()}


def test_frozen_first_blocks_keep_no_activations():
    backbone = build(VIT)
    pixels, kept = torch.randn(2, 3, 16, 16), []
    for parts in ((), ("vision.1",), ("vision.3",), ("vision",)):
        freeze_towers(backbone, parts)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.numel()) or t, lambda t: t):
            backbone.clip.encode_image(pixels)
        kept.append(sum(saved))
    assert kept[0] > kept[1] > kept[2] > kept[3] == 0


def test_blocks_that_a_tower_does_not_have_are_an_error():
    with torch.device("meta"):
        backbone = build(VIT)
    with pytest.raises(BackboneError, match=r"vision\.4: .*has 3 blocks: vision\.1 to vision\.3 are possible"):
        freeze_towers(backbone, ("vision.4",))
    backbone.clip.visual.extra = torch.nn.Linear(2, 2)
    with pytest.raises(BackboneError, match=r"has extra\.weight, and waver does not know whether that comes before"):
        freeze_towers(backbone, ("vision.1",))
    backbone.clip.visual.transformer.resblocks = torch.nn.Identity()
    with pytest.raises(BackboneError, match=r"no blocks that waver knows: freeze all of it \(vision\), or none"):
        freeze_towers(backbone, ("vision.1",))


@pytest.mark.parametrize("kind", HUB_TOWERS)
def test_first_blocks_of_hub_towers_are_frozen_with_all_before_them(with_hub_tower, kind):
    backbone = build(with_hub_tower(kind))
    freeze_towers(backbone, ("text.1",))
    first = {id(parameter) for parameter in tower_blocks(backbone, "text")[0].parameters()}
    parameters = tower_parameters(backbone, "text")
    before = {name for name, p in parameters.items() if id(p) not in first and not p.requires_grad}
    assert first <= {id(p) for p in parameters.values() if not p.requires_grad}
    assert before == {name for name in parameters if "embeddings." in name or "embed_" in name}
    assert len(tower_blocks(backbone, "text")) == 2


def _first_layer(block: torch.nn.Module) -> torch.nn.Module:
    return next(module for module in block.modules() if not list(module.children()))


@pytest.mark.parametrize(
    "architecture", [VIT, TIMM, CUSTOM_TEXT, *HUB_TOWERS], ids=["vit", "timm", "custom text", *HUB_TOWERS]
)
def test_recomputed_blocks_give_the_same_gradient_and_run_twice(architecture, with_hub_tower):
    backbone = build(with_hub_tower(architecture) if isinstance(architecture, str) else architecture).double().train()
    backbone.text.eval()  # as in training, see `Student.train`: text towers of the hub would draw dropout
    size = 224 if architecture is TIMM else 16
    frames, tokens = torch.randn(2, 3, size, size, dtype=torch.float64), torch.randint(0, 50, (2, 7))

    def step() -> tuple[torch.Tensor, dict[str, torch.Tensor], list[int]]:
        calls = []
        handles = [
            _first_layer(block).register_forward_pre_hook(lambda *_, number=number: calls.append(number))
            for number, block in enumerate(tower_blocks(backbone, "vision") + tower_blocks(backbone, "text"))
        ]
        loss = (
            backbone.clip.encode_image(frames).square().sum()
            + backbone.encode_tokens(tokens, tokens >= 0).square().sum()
        )
        loss.backward()
        gradients = {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}
        backbone.zero_grad()
        for handle in handles:
            handle.remove()
        return loss.detach(), gradients, calls

    loss, gradients, calls = step()
    recompute_activations(backbone)
    again = step()
    torch.testing.assert_close(again[0], loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(again[1], gradients, rtol=1e-9, atol=1e-12)
    assert sorted(again[2]) == sorted(2 * calls)


def test_a_tower_without_gradient_checkpointing_is_an_error_unless_it_is_frozen():
    backbone = build(RESNET)
    with pytest.raises(
        BackboneError, match=r"grad_checkpointing: the vision tower of model.backbone \(ModifiedResNet\)"
    ):
        recompute_activations(backbone)
    backbone.clip.visual.requires_grad_(False)
    recompute_activations(backbone)
    assert backbone.clip.transformer.grad_checkpointing

    trunk = build(TIMM)
    trunk.clip.visual.trunk.set_grad_checkpointing = None
    with pytest.raises(BackboneError, match=r"the vision tower of model.backbone \(VisionTransformer\)"):
        recompute_activations(trunk)
