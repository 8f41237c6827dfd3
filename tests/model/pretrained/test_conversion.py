"""Weights in the names of transformers and of older versions of open_clip give the embeddings that they gave there."""

import copy
import json

import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file
from timm.models import register_model
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from waver.model.errors import BackboneError
from waver.model.pretrained.conversion import fit_names, without_decoder
from waver.model.pretrained.weights import check_weights, load_backbone, load_weights

CLIP = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 16, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 100, "width": 64, "heads": 1, "layers": 2},
}
SIGLIP = {
    "embed_dim": 64,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 16,
        "timm_model_name": "tiny_siglip_of_a_test",
        "timm_model_pretrained": False,
        "timm_pool": "map",
        "timm_proj": "none",
    },
    "text_cfg": {
        **{"context_length": 20, "vocab_size": 100, "width": 64, "heads": 2, "layers": 2, "norm_kwargs": {"eps": 1e-6}},
        **{"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    },
}
TOKENS = torch.tensor([[98, 5, 7, 99] + 16 * [0], [98, 1, 2, 3, 4, 99] + 14 * [0]])


@register_model
def tiny_siglip_of_a_test(pretrained: bool = False, **options) -> nn.Module:
    """Like timm's vit_base_patch16_siglip_224, but small."""
    options = {
        name: value for name, value in options.items() if not name.startswith("pretrained") and name != "cache_dir"
    }
    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}
    return VisionTransformer(**sizes, class_token=False, **options)


def settings(**more) -> dict:
    return {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 1} | more


def randomise(model: nn.Module) -> None:
    """Gives every parameter values that matter; a bias of 0 or a factor of 1 would hide an error."""
    torch.manual_seed(5)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)


@pytest.fixture
def clip_model() -> CLIPModel:
    text = settings(vocab_size=100, max_position_embeddings=20, eos_token_id=99, bos_token_id=98, pad_token_id=0)
    vision = settings(image_size=16, patch_size=8)
    acts = {"hidden_act": "quick_gelu"}
    model = CLIPModel(CLIPConfig(text_config=text | acts, vision_config=vision | acts, projection_dim=24)).eval()
    randomise(model)
    return model


@pytest.fixture
def siglip_model() -> SiglipModel:
    acts = {"hidden_act": "gelu", "num_attention_heads": 2}
    text = settings(vocab_size=100, max_position_embeddings=20, eos_token_id=99, bos_token_id=98, pad_token_id=0)
    vision = settings(image_size=16, patch_size=8)
    model = SiglipModel(SiglipConfig(text_config=text | acts, vision_config=vision | acts)).eval()
    randomise(model)
    return model


def assert_same_embeddings(theirs: nn.Module, ours: nn.Module) -> None:
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    ours = ours.eval()
    with torch.no_grad():
        text, image = theirs.get_text_features(input_ids=TOKENS), theirs.get_image_features(pixel_values=pixels)
        torch.testing.assert_close(ours.encode_text(TOKENS), text.pooler_output, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(ours.encode_image(pixels), image.pooler_output, atol=1e-5, rtol=1e-5)
    assert text.pooler_output.std() > 0.1


@pytest.mark.parametrize("custom_text", [False, True])
@pytest.mark.parametrize("safe", [True, False])
def test_clip_model_of_transformers(clip_model, tmp_path, safe, custom_text):
    if safe:
        clip_model.save_pretrained(tmp_path)
    else:
        torch.save(clip_model.state_dict(), tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_text(json.dumps(clip_model.config.to_dict(), default=str))
    architecture = copy.deepcopy(CLIP) | {"custom_text": custom_text}
    file = tmp_path / ("model.safetensors" if safe else "pytorch_model.bin")
    for weights in (tmp_path, file):
        assert check_weights(architecture, str(weights), image_size=16) == file
        backbone = load_backbone(architecture, str(weights), image_size=16)
        assert backbone.architecture["quick_gelu"], "as config.json says"
        assert_same_embeddings(clip_model, backbone.clip)


def test_clip_model_in_parts_with_an_index(clip_model, tmp_path):
    clip_model.save_pretrained(tmp_path, max_shard_size="60KB")
    index = tmp_path / "model.safetensors.index.json"
    parts = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    assert len(parts) > 3
    assert check_weights(CLIP, str(tmp_path), image_size=16) == index
    assert_same_embeddings(clip_model, load_backbone(CLIP, str(tmp_path), image_size=16).clip)
    (tmp_path / parts[1]).unlink()
    with pytest.raises(BackboneError, match=rf"{parts[1]} is missing, which model.safetensors.index.json names"):
        check_weights(CLIP, str(tmp_path), image_size=16)
    index.unlink()
    with pytest.raises(BackboneError, match=rf"has parts of weights \({parts[0]}, ...\), but not their index"):
        check_weights(CLIP, str(tmp_path), image_size=16)
    index.write_text(json.dumps({"weight_map": {"logit_scale": "../secret.safetensors"}}))
    with pytest.raises(BackboneError, match=r"names '\.\./secret.safetensors', which is no file beside it"):
        check_weights(CLIP, str(tmp_path), image_size=16)


def test_siglip_model_of_transformers(siglip_model, tmp_path):
    siglip_model.save_pretrained(tmp_path)
    assert check_weights(SIGLIP, str(tmp_path), image_size=16) == tmp_path / "model.safetensors"
    backbone = load_backbone(SIGLIP, str(tmp_path), image_size=16)
    assert_same_embeddings(siglip_model, backbone.clip)
    torch.testing.assert_close(backbone.clip.logit_bias, siglip_model.logit_bias.detach()[0])
    torch.testing.assert_close(backbone.clip.logit_scale, siglip_model.logit_scale.detach()[0])


@pytest.mark.slow
def test_every_tensor_of_a_published_siglip_has_its_place():
    architecture = open_clip.get_model_config("ViT-B-32-SigLIP2-256")
    vision = settings(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, image_size=256, patch_size=32)
    text = settings(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, vocab_size=256000)
    config = SiglipConfig(text_config=text | {"max_position_embeddings": 64}, vision_config=vision)
    architecture.pop("custom_text")
    with torch.device("meta"):
        theirs, ours = SiglipModel(config).state_dict(), open_clip.CustomTextCLIP(**architecture).state_dict()
    fitted = fit_names(theirs, ours)
    assert {name: tensor.shape for name, tensor in fitted.items()} == {name: t.shape for name, t in ours.items()}


def test_a_model_of_transformers_with_other_parts_is_not_converted_but_named(clip_model, tmp_path):
    state = clip_model.state_dict() | {"text_model.adapter.weight": torch.zeros(2)}
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "w.safetensors")
    with pytest.raises(
        BackboneError, match="it holds a model of transformers that is neither CLIPModel nor SiglipModel"
    ):
        check_weights(CLIP, str(tmp_path / "w.safetensors"), image_size=16)


@pytest.mark.slow
def test_a_clip_model_under_another_name_is_told_the_names_that_fit():
    with torch.device("meta"):
        theirs = CLIPModel(CLIPConfig(text_config={"bos_token_id": 1, "eos_token_id": 2})).state_dict()
        model = open_clip.CLIP(**open_clip.get_model_config("ViT-B-16"))
    with pytest.raises(
        BackboneError, match=r"\n  it holds weights whose sizes are those of ViT-B-32, .*ViT-B-32-quickgelu"
    ):
        load_weights(model, theirs, source="w.safetensors")


def test_positions_in_older_files_of_transformers_are_no_weights(clip_model, tmp_path):
    clip_model.save_pretrained(tmp_path)
    positions = {f"{tower}_model.embeddings.position_ids": torch.arange(9) for tower in ("text", "vision")}
    save_file(load_file(tmp_path / "model.safetensors") | positions, tmp_path / "model.safetensors")
    assert_same_embeddings(clip_model, load_backbone(CLIP, str(tmp_path), image_size=16).clip)


@pytest.mark.parametrize("into_text", [True, False])
def test_the_text_tower_moves_to_where_the_model_has_it(tmp_path, into_text):
    """open_clip once kept every text tower in the model itself."""
    flat, apart = open_clip.CLIP(**copy.deepcopy(CLIP)), open_clip.CustomTextCLIP(**copy.deepcopy(CLIP))
    written, read = (flat, apart) if into_text else (apart, flat)
    randomise(written)
    torch.save(written.state_dict(), tmp_path / "w.pt")
    architecture = copy.deepcopy(CLIP) | {"custom_text": into_text}
    backbone = load_backbone(architecture, str(tmp_path / "w.pt"), image_size=16)
    assert backbone.clip.state_dict().keys() == read.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(backbone.clip.eval().encode_text(TOKENS), written.eval().encode_text(TOKENS))


def test_scale_and_bias_may_be_numbers_or_vectors_of_one_and_the_bias_may_be_missing():
    state = {"logit_scale": torch.tensor([2.0])}
    fitted = fit_names(state, {"logit_scale": torch.zeros(()), "logit_bias": torch.zeros(1)})
    assert fitted["logit_scale"].shape == ()
    assert torch.equal(fitted["logit_bias"], torch.zeros(1))
    fitted = fit_names({"logit_scale": torch.tensor(2.0)}, {"logit_scale": torch.zeros(1)})
    assert torch.equal(fitted["logit_scale"], torch.tensor([2.0]))
    assert fit_names({"logit_scale": torch.zeros(2)}, {"logit_scale": torch.zeros(1)})["logit_scale"].shape == (2,)


def test_the_decoder_of_coca_is_dropped_where_the_model_has_one():
    state = {
        "visual.proj": torch.zeros(1),
        "text.cls_emb": torch.zeros(1),
        "text_decoder.ln_final.bias": torch.zeros(1),
    }
    assert without_decoder(state, {"multimodal_cfg": {}}).keys() == {"visual.proj", "text.cls_emb"}
    assert without_decoder(state, {}) == state
