"""Weights that open_clip downloads: found in its cache, or a host that must answer in seconds."""

import socket
import time
from pathlib import Path

import pytest
import torch
from hub import hub_without_files
from huggingface_hub import constants
from safetensors.torch import save_file

from waver.model import downloads
from waver.model.errors import BackboneError
from waver.model.weights import check_weights, load_backbone, unreachable_weights


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
    monkeypatch.setattr(downloads, "_LIMIT_S", 0.3)
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
