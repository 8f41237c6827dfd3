"""Weights that open_clip downloads: found in its cache, or a host that must answer in seconds."""

import json
import socket
import time
from pathlib import Path

import pytest
import torch
from hub import hub_with, hub_without_files
from huggingface_hub import constants
from safetensors.torch import save_file

from waver.model.errors import BackboneError
from waver.model.pretrained import downloads
from waver.model.pretrained.weights import (
    activation_of,
    check_weights,
    find_weights,
    load_backbone,
    unreachable_weights,
)
from waver.tools import hub

ARCHITECTURE = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 16, "layers": 1, "width": 64, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 100, "width": 64, "heads": 1, "layers": 1},
}
HUB = "hf-hub:somebody/clip"


def write_snapshot(folder: Path, *names: str) -> dict[str, torch.Tensor]:
    """Writes weights that were trained with QuickGELU under some names, and what tells so; returns the weights."""
    folder.mkdir(parents=True, exist_ok=True)
    state = load_backbone(ARCHITECTURE, None, image_size=16).clip.state_dict()
    for name in names:
        if name.endswith(".index.json"):
            parts = {tensor: f"part-{len(tensor) % 2}.safetensors" for tensor in state}
            for part in sorted(set(parts.values())):
                save_file({tensor: state[tensor] for tensor in state if parts[tensor] == part}, folder / part)
            (folder / name).write_text(json.dumps({"weight_map": parts}))
        elif name.endswith(".safetensors"):
            save_file(state, folder / name)
        else:
            torch.save(state, folder / name)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"quick_gelu": True}}))
    return state


def write_cache(cache: Path, *names: str) -> Path:
    """Puts a snapshot into the cache as the hub's client does; returns its folder."""
    repository = cache / "models--somebody--clip"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("abc")
    write_snapshot(repository / "snapshots/abc", *names)
    return repository / "snapshots/abc"


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path) -> Path:
    """An empty cache of the hub, which is at an address where nothing listens."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return tmp_path / "cache"


def test_without_network_the_error_says_how_to_get_the_file_by_hand():
    start = time.monotonic()
    with pytest.raises(BackboneError) as told:
        load_backbone("ViT-B-32-quickgelu", "openai", image_size=224)
    assert time.monotonic() - start < 5
    assert str(told.value) == (
        "model.weights: 'openai' of ViT-B-32-quickgelu was not downloaded before, and 127.0.0.1 does not answer "
        "([Errno 111] Connection refused): download http://127.0.0.1:9/timm/vit_base_patch32_clip_224.openai/resolve/main/"
        "open_clip_model.safetensors on a machine with network, copy the file here, and set model.weights to its path"
    )


def test_a_file_by_hand_needs_the_name_of_the_activation_that_the_tag_implies():
    told = unreachable_weights("ViT-B-32", "openai")
    assert told.endswith("set model.weights to its path and model.backbone to ViT-B-32-quickgelu")


def test_a_host_that_is_silent_is_given_up(monkeypatch):
    monkeypatch.setattr(hub, "LIMIT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        start = time.monotonic()
        assert "127.0.0.1 does not answer (" in unreachable_weights("RN50", "openai")
        assert time.monotonic() - start < 2


def test_an_offline_hub_is_not_asked(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in unreachable_weights("RN50", "openai")


def test_a_host_that_answers_is_no_problem(monkeypatch):
    with hub_without_files(monkeypatch):
        assert unreachable_weights("RN50", "openai") == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_downloaded_weights_are_checked_and_loaded_without_network(cache, name):
    repository = cache / "models--timm--resnet50_clip.openai"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("abc")
    (repository / "snapshots/abc").mkdir(parents=True)
    weights = {"visual.conv1.weight": torch.zeros(2, 3, 4, 4)}
    file = repository / "snapshots/abc" / name
    save_file(weights, file) if name.endswith("safetensors") else torch.save(weights, file)
    for read in (check_weights, load_backbone):
        with pytest.raises(BackboneError, match=rf"{name} holds another architecture"):
            read("RN50", "openai", image_size=224)


def test_an_archive_whose_download_was_cut_off_is_not_taken(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    entry = {"url": "http://127.0.0.1:9/release/weights-12345678.pt"}
    file = tmp_path / ".cache/clip/weights-12345678.pt"
    file.parent.mkdir(parents=True)
    torch.save({"a": torch.zeros(9)}, file)
    assert downloads.cached_weights(entry) == file
    file.write_bytes(file.read_bytes()[:-9])
    assert downloads.cached_weights(entry) is None
    assert downloads.weights_url(entry) == entry["url"]


def test_a_repository_that_cannot_be_reached_says_how_to_get_it_by_hand():
    start = time.monotonic()
    with pytest.raises(BackboneError) as told:
        load_backbone(ARCHITECTURE, HUB, image_size=16)
    assert time.monotonic() - start < 5
    assert str(told.value) == (
        "model.weights: hf-hub:somebody/clip was not downloaded before, and 127.0.0.1 does not answer ([Errno 111] "
        "Connection refused): run `hf download somebody/clip --local-dir FOLDER` on a machine with network, copy the folder "
        "here, and set model.weights to its path (the model is at http://127.0.0.1:9/somebody/clip)"
    )
    assert unreachable_weights(ARCHITECTURE, HUB) == str(told.value)
    assert check_weights(ARCHITECTURE, HUB, image_size=16) is None
    assert activation_of(ARCHITECTURE, HUB).origin == (
        "because model.backbone has no quick_gelu; the configuration that is downloaded with the weights may name another"
    )


@pytest.mark.parametrize(
    "name",
    ["open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "model.safetensors.index.json"],
)
def test_a_cached_repository_is_read_without_network(cache, name):
    folder = write_cache(cache, name)
    assert check_weights(ARCHITECTURE, HUB, image_size=16) == folder / name
    backbone = load_backbone(ARCHITECTURE, HUB, image_size=16)
    assert backbone.architecture["quick_gelu"]
    assert activation_of(ARCHITECTURE, HUB).origin.startswith("from open_clip_config.json of the snapshot")


def test_a_cached_repository_that_lacks_a_part_is_not_taken(cache):
    folder = write_cache(cache, "model.safetensors.index.json")
    (folder / "part-1.safetensors").unlink()
    assert check_weights(ARCHITECTURE, HUB, image_size=16) is None


@pytest.mark.parametrize("name", ["open_clip_pytorch_model.bin", "model.safetensors.index.json"])
def test_a_repository_is_downloaded_with_what_tells_its_activation(cache, tmp_path, monkeypatch, name):
    state = write_snapshot(tmp_path / "hub", name)
    (tmp_path / "hub/notes.txt").write_text("not needed")
    with hub_with("somebody/clip", tmp_path / "hub", monkeypatch):
        backbone = load_backbone(ARCHITECTURE, HUB, image_size=16)
    assert backbone.architecture["quick_gelu"]
    assert all(torch.equal(tensor, state[key]) for key, tensor in backbone.clip.state_dict().items())
    assert not list(cache.rglob("notes.txt"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert check_weights(ARCHITECTURE, HUB, image_size=16), "it is cached now"


def test_a_repository_without_weights_or_with_an_invalid_name(tmp_path, monkeypatch):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/README.md").touch()
    with (
        hub_with("somebody/clip", tmp_path / "hub", monkeypatch),
        pytest.raises(BackboneError, match=r"the download failed \(FileNotFoundError: it has none of open_clip_model"),
    ):
        load_backbone(ARCHITECTURE, HUB, image_size=16)
    with hub_without_files(monkeypatch), pytest.raises(BackboneError, match="the download failed"):
        load_backbone(ARCHITECTURE, "hf-hub:somebody/else", image_size=16)
    for name in ("hf-hub:", "hf-hub:a/b/c", "hf-hub:a b"):
        with pytest.raises(BackboneError, match="names no repository of the hub: write hf-hub:owner/name"):
            find_weights(ARCHITECTURE, name)


def test_a_tag_of_the_name_is_taken_before_a_folder_or_file_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openai").mkdir()
    assert isinstance(find_weights("RN50", "openai"), dict)
    assert isinstance(find_weights("RN50", "OpenAI"), dict), "as open_clip spells tags"
    with pytest.raises(BackboneError, match="openai is a folder without weights"):
        find_weights(ARCHITECTURE, "openai")
