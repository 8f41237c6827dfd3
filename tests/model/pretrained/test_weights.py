import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from logs import logged
from safetensors.torch import save_file
from torch import nn

from waver.model.errors import BackboneError
from waver.model.pretrained.weights import check_weights, load_backbone

ARCHITECTURE = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 100, "width": 64, "heads": 1, "layers": 1},
}
TOKENS = torch.tensor([[98, 5, 7, 99, 0, 0], [98, 1, 2, 3, 4, 99]])


@pytest.fixture
def clip() -> open_clip.CLIP:
    torch.manual_seed(3)
    return open_clip.CLIP(**copy.deepcopy(ARCHITECTURE))


def encode(backbone) -> torch.Tensor:
    with torch.no_grad():
        return backbone.encode_tokens(TOKENS, TOKENS > 0)


@pytest.mark.parametrize("form", ["safetensors", "state dict", "training checkpoint"])
def test_weights_from_a_file(clip, tmp_path, form):
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pt")
    if form == "safetensors":
        save_file(clip.state_dict(), path)
    elif form == "state dict":
        torch.save(clip.state_dict(), path)
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": v for name, v in clip.state_dict().items()}}, path)
    backbone = load_backbone(ARCHITECTURE, str(path), image_size=16)
    assert not torch.equal(encode(backbone), encode(load_backbone(ARCHITECTURE, None, image_size=16)))
    for name, value in backbone.clip.state_dict().items():
        assert torch.equal(value, clip.state_dict()[name])
    assert check_weights(ARCHITECTURE, str(path), image_size=16) == path


def write_archive(clip: open_clip.CLIP, path: Path, activation: Callable) -> None:
    """Writes weights like OpenAI's ViT-B-32.pt: traced, in half precision, with three figures beside them."""

    class Archive(nn.Module):
        def __init__(self):
            super().__init__()
            for name, module in clip.named_children():
                self.add_module(name, copy.deepcopy(module).half())
            for name in ("positional_embedding", "text_projection", "logit_scale"):
                self.register_parameter(name, nn.Parameter(getattr(clip, name).detach().half()))
            for name, value in {"input_resolution": 16, "context_length": 20, "vocab_size": 100}.items():
                self.register_buffer(name, torch.tensor(value))

        def forward(self, x):
            return activation(x) * self.logit_scale

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Archive(), torch.ones(1)), path)


def test_openai_archive_is_a_torchscript_file_in_half_precision_and_means_quickgelu(clip, tmp_path):
    path = tmp_path / "ViT-B-32.pt"
    write_archive(clip, path, open_clip.transformer.QuickGELU())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_weights(ARCHITECTURE, str(path), image_size=16) == path
    backbone = load_backbone(ARCHITECTURE, str(path), image_size=16)
    assert backbone.architecture["quick_gelu"]
    assert isinstance(backbone.clip.transformer.resblocks[0].mlp.gelu, open_clip.transformer.QuickGELU)
    assert backbone.clip.ln_final.weight.dtype == torch.float32
    torch.testing.assert_close(backbone.clip.text_projection, clip.text_projection.half().float())


def test_weights_of_another_architecture_name_the_sizes(clip, tmp_path):
    save_file(clip.state_dict(), tmp_path / "weights.safetensors")
    other = copy.deepcopy(ARCHITECTURE) | {"embed_dim": 25}
    with pytest.raises(BackboneError, match=r"text_projection: the file has \(64, 24\), the model \(64, 25\)"):
        load_backbone(other, str(tmp_path / "weights.safetensors"), image_size=16)
    with pytest.raises(BackboneError, match=r"text_projection: the file has \(64, 24\), the model \(64, 25\)"):
        check_weights(other, str(tmp_path / "weights.safetensors"), image_size=16)
    deeper = copy.deepcopy(ARCHITECTURE)
    deeper["text_cfg"]["layers"] = 2
    with pytest.raises(BackboneError, match=r"12 missing from the file: transformer.resblocks.1"):
        load_backbone(deeper, str(tmp_path / "weights.safetensors"), image_size=16)
    wider = copy.deepcopy(ARCHITECTURE)
    wider["text_cfg"]["width"] = 128
    with pytest.raises(BackboneError, match=r"positional_embedding: the file has \(20, 64\), the model \(20, 128\)"):
        load_backbone(wider, str(tmp_path / "weights.safetensors"), image_size=16)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_file_that_is_no_weights(tmp_path, name):
    (tmp_path / name).write_bytes(b"<html>404</html>" * 9)
    for read in (load_backbone, check_weights):
        with pytest.raises(BackboneError, match="cannot be read as weights"):
            read(ARCHITECTURE, str(tmp_path / name), image_size=16)


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_values_that_are_not_finite_are_named_with_their_tensor_and_file(clip, tmp_path, name, dtype):
    state = {key: value.to(dtype) for key, value in clip.state_dict().items()}
    state["visual.proj"][0, :2] = torch.nan
    state["ln_final.bias"][1] = torch.inf
    save_file(state, tmp_path / name) if name.endswith("safetensors") else torch.save(state, tmp_path / name)
    for read in (load_backbone, check_weights):
        with pytest.raises(BackboneError) as raised:
            read(ARCHITECTURE, str(tmp_path / name), image_size=16)
        assert str(tmp_path / name) in str(raised.value)
        assert "in 2 of " in str(raised.value)
        assert "visual.proj (2 of 1536)" in str(raised.value)
        assert "ln_final.bias (1 of 64)" in str(raised.value)


def test_position_embeddings_follow_the_image_size(clip, tmp_path):
    save_file(clip.state_dict(), tmp_path / "weights.safetensors")
    backbone = load_backbone(ARCHITECTURE, str(tmp_path / "weights.safetensors"), image_size=32)
    assert backbone.clip.visual.positional_embedding.shape[0] == 1 + (32 // 8) ** 2
    assert check_weights(ARCHITECTURE, str(tmp_path / "weights.safetensors"), image_size=32)


def test_positions_of_texts_that_are_interpolated_are_told(clip, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(clip.state_dict(), path)
    shorter = copy.deepcopy(ARCHITECTURE)
    shorter["text_cfg"]["context_length"] = 10
    with logged() as messages:
        assert load_backbone(ARCHITECTURE, str(path), image_size=32)
        assert not messages
        assert load_backbone(shorter, str(path), image_size=16).num_positions == 10
    (message,) = messages
    assert message.startswith(
        f"{path} has positions for 20 tokens of a text, and the model has 10: open_clip interpolates the positions"
    )
    assert message.endswith("Set text_cfg.context_length of model.backbone to 20")


def test_a_pretrained_tag_is_not_downloaded_to_be_checked():
    assert check_weights("ViT-B-32", "openai", image_size=224) is None
