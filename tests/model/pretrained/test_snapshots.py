import json

import pytest
import torch

from waver.config import load_config
from waver.model.architecture import find_architecture
from waver.model.backbone import Backbone
from waver.model.errors import BackboneError
from waver.model.pretrained.snapshots import read_architecture


def write(folder, name: str, content: dict) -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps(content))
    return str(folder)


def test_open_clips_layout(tmp_path):
    described = {"embed_dim": 8, "vision_cfg": {"width": 8}, "text_cfg": {"width": 8}}
    assert find_architecture(write(tmp_path / "a", "open_clip_config.json", {"model_cfg": described})) == described
    with pytest.raises(BackboneError, match="missing: text_cfg, vision_cfg"):
        find_architecture(write(tmp_path / "b", "open_clip_config.json", {"model_cfg": {"embed_dim": 8}}))


@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu", "ViT-L-14", "ViT-H-14"])
def test_the_layout_of_transformers_gives_open_clips_architecture(tmp_path, name):
    """What config.json leaves out has the values of transformers' classes."""
    ours = find_architecture(name)
    towers = {}
    for tower in ("text", "vision"):
        part = ours[f"{tower}_cfg"]
        heads = part.get("heads") or part["width"] // part.get("head_width", 64)
        towers[tower] = {
            "hidden_size": part["width"],
            "num_hidden_layers": part["layers"],
            "num_attention_heads": heads,
            "intermediate_size": 4 * part["width"],
            "hidden_act": "quick_gelu" if ours.get("quick_gelu") else "gelu",
        }
    towers["vision"] |= {"patch_size": ours["vision_cfg"]["patch_size"]}
    config = {"model_type": "clip", "projection_dim": ours["embed_dim"]}
    config |= {"text_config": towers["text"], "vision_config": towers["vision"]}
    found = find_architecture(write(tmp_path / "clip", "config.json", config))
    assert found["embed_dim"] == ours["embed_dim"]
    assert found["quick_gelu"] == ours.get("quick_gelu", False)
    for tower in ("vision_cfg", "text_cfg"):
        assert found[tower] | ours[tower] == found[tower], tower
    assert found["vision_cfg"]["head_width"] == ours["vision_cfg"].get("head_width", 64)
    assert found["text_cfg"]["mlp_ratio"] == found["vision_cfg"]["mlp_ratio"] == 4


def test_siglip_is_the_model_of_open_clip_with_these_numbers(tmp_path):
    vision = {"hidden_size": 768, "image_size": 384}
    config = {"model_type": "siglip", "vision_config": vision, "text_config": {"vocab_size": 32000}}
    assert read_architecture(write(tmp_path / "a", "config.json", config)) == find_architecture("ViT-B-16-SigLIP-384")
    config = {
        "model_type": "siglip2",
        "text_config": {"vocab_size": 256000},
        "vision_config": {"patch_size": 32, "image_size": 256},
    }
    assert read_architecture(write(tmp_path / "b", "config.json", config)) == find_architecture("ViT-B-32-SigLIP2-256")
    with pytest.raises(
        BackboneError, match=r"width 768 for 100 pixels in patches of 16, with 32000 tokens and 64 positions"
    ):
        read_architecture(
            write(tmp_path / "c", "config.json", {"model_type": "siglip", "vision_config": {"image_size": 100}})
        )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "blip"}, "a model of type 'blip', and waver reads only the types clip and siglip"),
        ({"model_type": "clip", "text_config": {"hidden_act": "relu"}}, "has the activations quick_gelu, relu"),
        (None, "has no open_clip_config.json and no config.json"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, config, expected):
    folder = write(tmp_path / "a", "other.json" if config is None else "config.json", config or {})
    with pytest.raises(BackboneError, match=expected):
        read_architecture(folder)


def test_a_downloaded_model_has_its_own_weights(tmp_path, monkeypatch):
    folder = write(tmp_path / "clip", "config.json", {"model_type": "clip"})
    path = tmp_path / "experiment.yaml"
    path.write_text("{name: a, data: {format: table, annotations: a.csv, videos: videos}}")
    monkeypatch.chdir(tmp_path)
    model = load_config(path, {"model.backbone": "./clip"}).model
    assert (model.backbone, model.weights) == (folder, folder)
    model = load_config(path, {"model.backbone": "hf-hub:somebody/clip", "model.weights": None}).model
    assert (model.backbone, model.weights) == ("hf-hub:somebody/clip", None)
    (tmp_path / "openai").mkdir()
    assert load_config(path).model.weights == "openai"


def test_layer_norms_of_transformers_keep_their_epsilon(tmp_path):
    config = {"model_type": "clip", "text_config": {"layer_norm_eps": 1e-5}, "vision_config": {"layer_norm_eps": 1e-3}}
    found = find_architecture(write(tmp_path / "clip", "config.json", config))
    assert found["vision_cfg"]["norm_kwargs"] == {"eps": 1e-3}
    assert "norm_kwargs" not in found["text_cfg"], "the usual one"
    found["vision_cfg"]["layers"] = found["text_cfg"]["layers"] = 1
    with torch.device("meta"):
        clip = Backbone(found, 224).clip
    assert {module.eps for module in clip.visual.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-3}
    assert {module.eps for module in clip.transformer.modules() if isinstance(module, torch.nn.LayerNorm)} == {1e-5}


def test_a_name_like_no_other_is_told_without_similar_names():
    with pytest.raises(BackboneError, match=r"has no model 'ViT-B-33'; similar names: ViT-B-32"):
        find_architecture("ViT-B-33")
    with pytest.raises(BackboneError, match=r"has no model '@@@@'; open_clip\.list_models\(\) names all$"):
        find_architecture("@@@@")
