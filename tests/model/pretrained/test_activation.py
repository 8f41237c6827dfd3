"""The activation of a model, and who says so: a plain file cannot tell it, and the wrong one changes every number."""

import copy
import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transformer import QuickGELU
from safetensors.torch import load_file, save_file
from torch import nn

from waver.model.errors import BackboneError
from waver.model.pretrained import activation
from waver.model.pretrained.activation import openai_names, set_activation
from waver.model.pretrained.weights import activation_of, load_backbone, weights_text

ARCHITECTURE = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 100, "width": 64, "heads": 1, "layers": 1},
}
QUICK = ARCHITECTURE | {"quick_gelu": True}
PIXELS = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def clip() -> open_clip.CLIP:
    """A CLIP that was trained with QuickGELU."""
    torch.manual_seed(3)
    return open_clip.CLIP(**copy.deepcopy(QUICK)).eval()


@pytest.fixture
def snapshot(clip, tmp_path) -> Callable[..., Path]:
    """Writes a snapshot with given configurations: name of a file -> its content."""

    def write(name: str, **configs: dict) -> Path:
        save_file(clip.state_dict(), tmp_path / name)
        for config, content in configs.items():
            (tmp_path / f"{config}.json").write_text(json.dumps(content))
        return tmp_path

    return write


def images(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().encode_image(PIXELS)


def check(backbone, weights, clip: open_clip.CLIP, *, quick: bool) -> str:
    """Checks that a model computes with the activation that is told; returns who says so."""
    name, origin = activation_of(backbone, str(weights))
    assert name == ("QuickGELU" if quick else "GELU")
    loaded = load_backbone(backbone, str(weights), image_size=16)
    assert bool(loaded.architecture.get("quick_gelu")) == quick
    assert torch.allclose(images(loaded.clip), images(clip), atol=1e-6) == quick, "the weights are of QuickGELU"
    return origin


def test_a_plain_file_cannot_tell_so_the_configuration_decides_and_is_named(clip, tmp_path):
    """F4: a state dict of QuickGELU under a configuration without it computes other numbers; what decided is told."""
    path = tmp_path / "w.pt"
    torch.save(clip.state_dict(), path)
    assert check(ARCHITECTURE, path, clip, quick=False) == "because model.backbone has no quick_gelu"
    assert check(QUICK, path, clip, quick=True) == "from model.backbone.quick_gelu"
    assert str(activation_of("ViT-B-32", str(path))) == "GELU, from the name ViT-B-32"
    assert str(activation_of("ViT-B-32-quickgelu", str(path))) == "QuickGELU, from the name ViT-B-32-quickgelu"
    assert weights_text("ViT-B-32", str(path)) == (
        f"the backbone has the weights {path}; its activation is GELU, from the name ViT-B-32"
    )
    assert str(activation_of("ViT-B-32-quickgelu", None)) == "QuickGELU, from the name ViT-B-32-quickgelu"


def test_a_tag_of_open_clip_decides():
    assert (
        str(activation_of("ViT-B-32", "openai"))
        == "QuickGELU, from open_clip's tag openai; by model.backbone alone it would be GELU"
    )
    told = activation_of("ViT-B-32", "laion2b_s34b_b79k")
    assert str(told) == "GELU, from open_clip's tag laion2b_s34b_b79k of ViT-B-32"


@pytest.mark.parametrize(("value", "quick"), [("true", True), ("false", False)])
def test_metadata_of_a_safetensors_file_decides(clip, tmp_path, value, quick):
    path = tmp_path / "w.safetensors"
    save_file(clip.state_dict(), path, {"quick_gelu": value})
    architecture = ARCHITECTURE if quick else QUICK
    origin = check(architecture, path, clip, quick=quick)
    assert (
        origin
        == f"from the metadata of w.safetensors; by model.backbone alone it would be {'GELU' if quick else 'QuickGELU'}"
    )


@pytest.mark.parametrize("quick", [True, False])
def test_the_configuration_in_a_snapshot_of_open_clip_decides(clip, snapshot, quick):
    config = {"model_cfg": QUICK if quick else ARCHITECTURE, "preprocess_cfg": {}}
    folder = snapshot("open_clip_model.safetensors", open_clip_config=config, config={"architecture": "vit_base"})
    origin = check(ARCHITECTURE if quick else QUICK, folder, clip, quick=quick)
    assert origin.startswith("from open_clip_config.json of the snapshot; by model.backbone alone it would be")


@pytest.mark.parametrize(
    ("config", "quick", "told"),
    [
        ({"text_config": {"hidden_act": "gelu"}, "vision_config": {"hidden_act": "gelu"}}, False, "hidden_act"),
        ({"text_config": {"hidden_act": "quick_gelu"}, "vision_config": {}}, True, "hidden_act"),
        ({"text_config": {}, "vision_config": None}, True, "the default hidden_act"),
        (
            {
                f"{tower}_config{part}": {"hidden_act": act}
                for tower in ("text", "vision")
                for part, act in (("", "quick_gelu"), ("_dict", "gelu"))
            },
            False,
            "hidden_act",
        ),
    ],
)
def test_the_configuration_in_a_snapshot_of_transformers_decides(clip, snapshot, config, quick, told):
    folder = snapshot("model.safetensors", config={"model_type": "clip"} | config)
    assert check(QUICK, folder, clip, quick=quick).startswith(f"from config.json of the snapshot: {told}")


def test_gelu_by_tanh_is_told(snapshot):
    folder = snapshot("model.safetensors", config={"model_type": "siglip"})
    told = activation_of(ARCHITECTURE, str(folder))
    assert told.name == "GELU"
    assert told.origin.endswith(
        "the default hidden_act = gelu_pytorch_tanh, which differs from GELU by less than 0.0005"
    )
    x = torch.linspace(-9, 9, 10001, dtype=torch.float64)
    assert (nn.functional.gelu(x) - nn.functional.gelu(x, approximate="tanh")).abs().max() < 0.0005


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"text_config": {"hidden_act": "gelu"}, "vision_config": {"hidden_act": "quick_gelu"}}, "gelu and quick_gelu"),
        (
            {"text_config": {"hidden_act": "relu"}, "vision_config": {"hidden_act": "relu"}},
            "hidden_act = relu;",
        ),
    ],
)
def test_activations_that_open_clip_cannot_build_are_refused(snapshot, config, expected):
    folder = snapshot("model.safetensors", config={"model_type": "clip"} | config)
    for read in (activation_of, lambda *a: load_backbone(*a, image_size=16)):
        with pytest.raises(BackboneError, match=rf"{expected}.*cannot use these weights"):
            read(ARCHITECTURE, str(folder))


def test_a_configuration_that_does_not_tell_or_is_damaged(clip, snapshot):
    folder = snapshot("model.safetensors", config={"model_type": "bert"})
    assert check(QUICK, folder, clip, quick=True) == "from model.backbone.quick_gelu"
    (folder / "config.json").write_text("{")
    with pytest.raises(
        BackboneError, match=r"config.json, which names the activation of model.safetensors, cannot be read"
    ):
        activation_of(QUICK, str(folder))


def write_traced(path: Path, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    class Traced(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return function(x)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Traced(), torch.ones(3)), path)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (
            QuickGELU(),
            "QuickGELU, from the code in w.pt, which is none of OpenAI's published files; by model.backbone alone",
        ),
        (nn.GELU(), "GELU, from the code in w.pt, which is none of OpenAI's published files"),
        (torch.relu, "GELU, because model.backbone has no quick_gelu"),
    ],
)
def test_the_code_of_a_torchscript_archive_decides(tmp_path, function, expected):
    write_traced(tmp_path / "w.pt", function)
    assert str(activation_of(ARCHITECTURE, str(tmp_path / "w.pt"))).startswith(expected)


@pytest.mark.slow
@pytest.mark.parametrize("quick", [True, False])
def test_a_traced_model_of_open_clip(tmp_path, quick):
    torch.manual_seed(3)
    traced = open_clip.CLIP(**copy.deepcopy(ARCHITECTURE), quick_gelu=quick).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(traced, (PIXELS, torch.ones(2, 20, dtype=torch.int64))), tmp_path / "w.pt")
    loaded = load_backbone(QUICK if not quick else ARCHITECTURE, str(tmp_path / "w.pt"), image_size=16)
    assert torch.allclose(images(loaded.clip), images(traced), atol=1e-6)


def test_archives_of_openai_are_known_by_their_published_hash(tmp_path, monkeypatch):
    path = tmp_path / "renamed.pt"
    write_traced(path, nn.GELU())  # the hash decides before the code does
    published = {hashlib.sha256(path.read_bytes()).hexdigest(): "ViT-B-32.pt"}
    monkeypatch.setattr(activation, "openai_names", lambda: published)
    told = activation_of(ARCHITECTURE, str(path))
    assert str(told).startswith(
        "QuickGELU, from OpenAI's ViT-B-32.pt, known by its SHA-256; by model.backbone alone it would be GELU"
    )
    write_traced(path, nn.GELU(approximate="tanh"))
    assert "known by" not in str(activation_of(ARCHITECTURE, str(path))), "a file that has changed is hashed again"


def test_published_hashes():
    names = openai_names()
    assert len(names) == 9
    assert names["40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"] == "ViT-B-32.pt"
    assert names["3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"] == "ViT-L-14-336px.pt"
    assert all(len(digest) == 64 for digest in names)


def test_the_activation_of_a_model_can_be_changed(clip, tmp_path):
    save_file(clip.state_dict(), tmp_path / "w.safetensors")
    loaded = load_backbone(ARCHITECTURE, str(tmp_path / "w.safetensors"), image_size=16)
    set_activation(loaded, quick=True)
    assert torch.equal(images(loaded.clip), images(clip))
    set_activation(loaded, quick=False)
    assert (images(loaded.clip) - images(clip)).abs().max() > 1e-4
    assert not loaded.architecture["quick_gelu"]
    assert load_file(tmp_path / "w.safetensors").keys() == loaded.clip.state_dict().keys()
