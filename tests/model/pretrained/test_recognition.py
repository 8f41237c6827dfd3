"""Weights that do not fit are named for what they are."""

import open_clip
import pytest
import torch
from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModel

from waver.model.pretrained.recognition import describe_weights
from waver.model.pretrained.weights import BackboneError, check_weights
from waver.training.build import build_student

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}


def named(*names: str) -> dict[str, torch.Tensor]:
    return dict.fromkeys(names, torch.zeros(2))


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (
            ["clip.visual.proj", "text_weight_fc.0.weight", "transformerClip.x"],
            "a checkpoint of DRL: turn it into a run with",
        ),
        (["clip.visual.proj", "transformerClip.resblocks.0.ln_1.weight"], "a checkpoint of CLIP4Clip"),
        (["clip.visual.proj", "lstm_visual.weight_ih_l0"], "a checkpoint of CLIP4Clip"),
        (["clip.visual.proj", "global_mat_weight", "transformerClip.x"], "a checkpoint of X-CLIP"),
        (["visual_encoder.blocks.0.norm1.weight", "text_encoder.embeddings.word_embeddings.weight"], "BLIP or ALBEF"),
        (["query_tokens", "Qformer.bert.x", "visual_encoder.x"], "BLIP-2"),
        (["vision_model.x", "text_decoder.bert.y"], "BLIP"),
        (["visual.conv1.weight", "text.x", "text_decoder.y"], "CoCa"),
        (["base_model.visual.x.lora_A.weight", "base_model.visual.x.lora_B.weight"], "LoRA adapters"),
        (["visual.proj.exp_avg", "visual.proj.exp_avg_sq"], "the state of an optimizer"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "a diffusion model"),
        (["layers.0.mlp.up_proj.weight", "embed_tokens.weight", "lm_head.weight"], "a language model"),
        (["patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "cls_token"], "a vision tower alone (timm's ViT"),
        (["layer1.0.conv1.weight", "fc.weight"], "a vision tower alone (a ResNet"),
        (["shared.weight", "encoder.block.0.layer.0.x"], "a text encoder alone (T5)"),
        (["visual.conv1.weight", "visual.proj"], "the vision tower of an open_clip model alone"),
        (
            ["token_embedding.weight", "transformer.resblocks.0.ln_1.weight"],
            "the text tower of an open_clip model alone",
        ),
        (["image_encoder.model.patch_emb.0.block.conv.weight", "text_encoder.x"], "MobileCLIP in the names of Apple"),
        (["prompts_generator.x", "mit.y", "text_model.z", "vision_model.u"], "the X-CLIP of Microsoft"),
        (["something.else"], ""),
    ],
)
def test_kinds_by_their_names(names, what):
    described = describe_weights(named(*names))
    assert described.startswith(what)
    assert bool(described) == bool(what)


def test_towers_of_transformers_alone():
    text = CLIPTextModel(CLIPTextConfig(vocab_size=9, bos_token_id=1, eos_token_id=2, **SIZES)).state_dict()
    vision = CLIPVisionModel(CLIPVisionConfig(image_size=16, patch_size=8, **SIZES)).state_dict()
    bert = BertModel(BertConfig(vocab_size=9, **SIZES)).state_dict()
    for prefix in ("", "text_model."):  # older versions have the prefix
        state = {prefix + name: tensor for name, tensor in text.items()}
        assert describe_weights(state).startswith("a text tower alone, of transformers")
    for prefix in ("", "vision_model."):
        state = {prefix + name: tensor for name, tensor in vision.items()}
        assert describe_weights(state).startswith("a vision tower alone, of transformers")
    assert describe_weights(bert).startswith("a text encoder alone (BERT")


def test_a_checkpoint_of_waver_is_no_backbone(tiny_config, tmp_path):
    path = tmp_path / "model.pt"
    torch.save(build_student(tiny_config).state_dict(), path)
    with pytest.raises(
        BackboneError, match=r"\n  it holds a checkpoint of waver: evaluate it or search with it as a run"
    ):
        check_weights(tiny_config.model.backbone, str(path), image_size=16)


def test_siglip_2_for_images_of_any_size():
    state = named("text_model.embeddings.token_embedding.weight", "text_model.head.weight", "logit_scale")
    state["vision_model.embeddings.patch_embedding.weight"] = torch.zeros(4, 12)
    assert "NaFlex" in describe_weights(state)


def test_a_clip_of_another_size_is_named():
    with torch.device("meta"):
        state = open_clip.CLIP(**open_clip.get_model_config("ViT-B-16")).state_dict()
    told = describe_weights(state)
    assert told.startswith("weights whose sizes are those of ViT-B-16")
    assert "ViT-B-16-quickgelu" in told
    assert "ViT-B-32" not in told
    assert "is model.backbone one of these?" in told


def test_a_clip_that_open_clip_has_no_name_for():
    with torch.device("meta"):
        state = open_clip.CLIP(
            8, {"layers": 1, "width": 64, "patch_size": 8}, {"layers": 1, "width": 64, "heads": 1}
        ).state_dict()
    assert describe_weights(state) == ""
