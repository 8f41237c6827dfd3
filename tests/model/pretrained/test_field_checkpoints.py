"""What the tensors of a checkpoint of the field tell, by their names and sizes alone."""

import pytest
import torch

from waver.model.pretrained.field_checkpoints import FieldCheckpointError, read_field_checkpoint


def block(prefix: str, width: int) -> dict[str, torch.Tensor]:
    sizes = {
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        "attn.out_proj.weight": (width, width),
        "attn.out_proj.bias": (width,),
        "mlp.c_fc.weight": (4 * width, width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (width, 4 * width),
        "mlp.c_proj.bias": (width,),
        **{f"ln_{number}.{kind}": (width,) for number in (1, 2) for kind in ("weight", "bias")},
    }
    return {f"{prefix}{name}": torch.empty(size, device="meta") for name, size in sizes.items()}


def clip(width: int = 768, patch: int = 32, layers: int = 12, text: int = 512, size: int = 224) -> dict:
    """The backbone of a checkpoint, without values."""
    sizes = {
        "visual.conv1.weight": (width, 3, patch, patch),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": ((size // patch) ** 2 + 1, width),
        "visual.proj": (width, text),
        "positional_embedding": (77, text),
        "token_embedding.weight": (49408, text),
        "text_projection": (text, text),
        "ln_final.weight": (text,),
        "ln_final.bias": (text,),
        "logit_scale": (),
        **{f"visual.{norm}.{kind}": (width,) for norm in ("ln_pre", "ln_post") for kind in ("weight", "bias")},
    }
    state = {f"clip.{name}": torch.empty(size, device="meta") for name, size in sizes.items()}
    for number in range(layers):
        state |= block(f"clip.visual.transformer.resblocks.{number}.", width)
    for number in range(12):
        state |= block(f"clip.transformer.resblocks.{number}.", text)
    return state


def linear(name: str, rows: int, columns: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.empty(rows, columns), f"{name}.bias": torch.empty(rows)}


SEQ_TRANSF = {"frame_position_embeddings.weight": torch.empty(77, 512)}
for number in range(4):
    SEQ_TRANSF |= block(f"transformerClip.resblocks.{number}.", 512)
LSTM = {f"lstm_visual.{name}_l0": torch.empty(1) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
HEADS = {
    1: linear("text_weight_fc", 1, 512) | linear("video_weight_fc", 1, 512),
    2: {
        name: value
        for side in ("text", "video")
        for name, value in (
            linear(f"{side}_weight_fc.0", 512, 512) | linear(f"{side}_weight_fc.2", 1, 512)
        ).items()
    },
}  # fmt: skip
CROSS = {
    "cross.embeddings.position_embeddings.weight": torch.empty(77, 512),
    **{
        name: value
        for number in range(4)
        for name, value in block(f"cross.transformer.resblocks.{number}.", 512).items()
    },
    **linear("cross.pooler.dense", 512, 512),
}
DENSE = linear("similarity_dense", 1, 512)


@pytest.mark.parametrize(
    ("added", "asked", "expected"),
    [
        ({}, None, ("none", "dp", False)),
        (SEQ_TRANSF, None, ("seqTransf", "dp", False)),
        (LSTM | {"frame_position_embeddings.weight": torch.empty(77, 512)}, None, ("seqLSTM", "dp", False)),
        (SEQ_TRANSF, "ti", ("seqTransf", "ti", False)),
        (SEQ_TRANSF | HEADS[1], "ti", ("seqTransf", "wti", False)),
        (SEQ_TRANSF | HEADS[2], None, ("seqTransf", "wti", False)),
        (CROSS | DENSE, None, ("none", "xti", False)),
        (CROSS | DENSE | HEADS[2], None, ("none", "wti", False)),
        (CROSS, None, ("none", "dp", False)),
        (CROSS | DENSE, "dp", ("none", "dp", False)),
    ],
    ids=[
        "CLIP4Clip meanP", "CLIP4Clip seqTransf", "CLIP4Clip seqLSTM", "DRL ti", "DRL wti, 1 layer", "DRL wti, 2 layers",
        "CLIP4Clip tight", "DRL wti with a cross-encoder", "CLIP4Clip with a cross-encoder", "the same, told to be dp",
    ],
)  # fmt: skip
def test_kind_and_sizes_are_read_from_the_tensors(added, asked, expected):
    found = read_field_checkpoint(clip() | added, similarity=asked)
    assert (found.temporal, found.similarity, found.fusion) == expected
    assert (found.backbone, found.image_size) == ("ViT-B-32-quickgelu", 224)
    unused = any("cross-encoder" in note for note in found.notes)
    assert unused == (expected[1] != "xti" and "cross.pooler.dense.weight" in added)
    assert any(name.startswith("cross.") for name in found.state) == (expected[1] == "xti")
    assert any("whether dp or ti was used" in note for note in found.notes) == (expected[1] == "dp" and asked is None)


@pytest.mark.parametrize(
    ("sizes", "name", "pixels"),
    [
        ({"patch": 16}, "ViT-B-16-quickgelu", 224),
        ({"width": 1024, "patch": 14, "layers": 24, "text": 768}, "ViT-L-14-quickgelu", 224),
        ({"width": 1024, "patch": 14, "layers": 24, "text": 768, "size": 336}, "ViT-L-14-336-quickgelu", 336),
    ],
)
def test_backbones_of_openai_have_their_names(sizes, name, pixels):
    found = read_field_checkpoint(clip(**sizes))
    assert (found.backbone, found.image_size) == (name, pixels)


def test_other_sizes_are_described():
    found = read_field_checkpoint(clip(layers=3))
    assert found.backbone["vision_cfg"] == {"layers": 3, "width": 768, "patch_size": 32}
    assert found.backbone["quick_gelu"]
    assert "a backbone of its own architecture" in found.describe()


def without(state: dict, *names: str) -> dict:
    return {name: value for name, value in state.items() if name not in names}


WRONG = {
    "names that nobody knows": (
        clip() | {"prompt_learner.ctx": torch.empty(4), "clip_teacher.proj": torch.empty(1)},
        r"2 tensors that no checkpoint of WAVER, DRL or CLIP4Clip is known to have: prompt_learner.ctx, clip_teacher.proj",
    ),
    "X-CLIP": (
        clip() | SEQ_TRANSF | {"global_mat_weight": torch.eye(2), "word_logit_weight": torch.eye(2)},
        r"X-CLIP \(arXiv 2207.07285\).*global_mat_weight, word_logit_weight",
    ),
    "a backbone": (
        {name.removeprefix("clip."): value for name, value in clip().items()},
        r"weights of a CLIP network alone: set model.weights",
    ),
    "a checkpoint of waver": ({"backbone.clip.logit_scale": torch.ones(())}, r"it is a checkpoint of waver"),
    "a ResNet": (clip() | {"clip.visual.layer1.0.conv1.weight": torch.empty(1)}, r"ResNet"),
    "something else": ({"bert.embeddings.weight": torch.empty(1)}, r"no tensor of it is called clip.\*; it has bert"),
    "a backbone that lacks a part": (without(clip(), "clip.visual.proj"), r"it lacks clip.visual.proj"),
    "both aggregators": (clip() | SEQ_TRANSF | LSTM, r"both temporal aggregators"),
    "different heads": (
        clip() | linear("text_weight_fc", 1, 512),
        r"weights of words have 1 layers, those of frames 0",
    ),
    "a cross-encoder of two layers": (
        clip()
        | DENSE
        | {name: value for name, value in CROSS.items() if "blocks.2" not in name and "blocks.3" not in name},
        r"cross-encoder has 2 layers",
    ),
    "widths without whole heads": (clip(width=100), r"widths 100 and 512: those of CLIP's code are multiples of 64"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_told(case):
    state, message = WRONG[case]
    with pytest.raises(FieldCheckpointError, match=message):
        read_field_checkpoint(state)
