"""Files and folders of weights as they lie on disks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from waver.model.errors import BackboneError
from waver.model.pretrained.weight_files import SNAPSHOT_NAMES, find_in_folder, num_bytes, read_metadata, read_weights

STATE = {"logit_scale": torch.tensor([2.0]), "visual.proj": torch.ones(3, 2)}


def test_a_snapshot_may_hold_the_same_weights_in_several_files(tmp_path):
    for name in reversed(SNAPSHOT_NAMES):
        (tmp_path / name).touch()
        assert find_in_folder(tmp_path) == tmp_path / name


def test_the_only_weights_in_a_folder_are_found_beside_what_trainers_write(tmp_path):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state_0.pth", "training_args.bin", "README.md", "epoch_5.pt"):
        (tmp_path / name).touch()
    assert find_in_folder(tmp_path) == tmp_path / "epoch_5.pt"
    (tmp_path / "epoch_6.pt").touch()
    with pytest.raises(
        BackboneError, match=r"is a folder with 2 files of weights \(epoch_5.pt, epoch_6.pt\): name the one"
    ):
        find_in_folder(tmp_path)


def test_a_folder_without_weights_names_what_it_holds(tmp_path):
    with pytest.raises(BackboneError, match=r"is a folder without weights \(it holds no files\)"):
        find_in_folder(tmp_path)
    (tmp_path / "config.json").touch()
    (tmp_path / "optimizer.pt").touch()
    with pytest.raises(
        BackboneError, match=r"without weights \(config.json, optimizer.pt\).*open_clip_model.safetensors"
    ):
        find_in_folder(tmp_path)


@pytest.mark.parametrize("end", [".safetensors", ".bin"])
def test_parts_are_read_together(tmp_path, end):
    names = {name: f"part-{number}{end}" for number, name in enumerate(STATE)}
    for name, file in names.items():
        save_file({name: STATE[name]}, tmp_path / file) if end == ".safetensors" else torch.save(
            {name: STATE[name]}, tmp_path / file
        )
    index = tmp_path / ("model.safetensors.index.json" if end == ".safetensors" else "pytorch_model.bin.index.json")
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    assert find_in_folder(tmp_path) == index
    assert read_weights(index).keys() == STATE.keys()
    assert num_bytes(index) == sum((tmp_path / name).stat().st_size for name in names.values())


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": 3}'])
def test_an_index_that_is_damaged(tmp_path, content):
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    with pytest.raises(BackboneError, match="cannot be read as the index of a snapshot"):
        read_weights(index)


class Module:
    """Stands for the class of a pickled model."""


def test_a_pickled_model_is_not_unpickled_and_its_class_is_named(tmp_path):
    torch.save({"model": Module()}, tmp_path / "w.pt")
    with pytest.raises(BackboneError, match=r"without running code: it holds an object of \S*Module, and") as told:
        read_weights(tmp_path / "w.pt")
    assert "weights_only" not in str(told.value), "torch's advice to trust the file is not passed on"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("model.npz", r"it is in JAX's format \(big_vision\): take the pretrained tag"),
        ("flax_model.msgpack", "it is in Flax's format: take the .safetensors file"),
        ("model.gguf", "it is in GGUF, quantised weights"),
    ],
)
def test_formats_of_other_libraries_are_named(tmp_path, name, told):
    with (tmp_path / name).open("wb") as file:
        np.savez(file, a=np.zeros(2)) if name.endswith("npz") else file.write(b"GGUF")
    with pytest.raises(BackboneError, match=rf"{name} cannot be read as weights: {told}"):
        read_weights(tmp_path / name)


def test_a_file_is_named_for_what_it_is(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"<!doctype html><html>404</html>" * 9)
    with pytest.raises(BackboneError, match=r"cannot be read as weights .*, and is a web page"):
        read_weights(tmp_path / "w.safetensors")
    (tmp_path / "w.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n")
    with pytest.raises(BackboneError, match="and is a pointer of Git LFS, not the file itself"):
        read_weights(tmp_path / "w.bin")


def test_a_safetensors_file_under_another_name(tmp_path):
    save_file(STATE, tmp_path / "w.bin")
    with pytest.raises(BackboneError, match=r"perhaps a \.safetensors file under another name: rename it"):
        read_weights(tmp_path / "w.bin")


def test_metadata_of_what_has_none(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"no weights")
    torch.save(STATE, tmp_path / "w.pt")
    assert read_metadata(tmp_path / "w.safetensors") == read_metadata(tmp_path / "w.pt") == {}
    save_file(STATE, tmp_path / "w.safetensors", {"a": "b"})
    assert read_metadata(tmp_path / "w.safetensors") == {"a": "b"}


def write_parts(folder: Path, weight_map: dict[str, str]) -> Path:
    """Writes two parts, of which the second has another copy of a tensor of the first, and their index."""
    folder.mkdir()
    save_file({"a": torch.zeros(2), "b": torch.zeros(1)}, folder / "one.safetensors")
    save_file({"a": torch.ones(2), "c": torch.zeros(1)}, folder / "two.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def test_each_tensor_is_that_of_the_part_that_the_index_names(tmp_path):
    places = {"b": "one.safetensors", "c": "two.safetensors"}
    for number, name in enumerate(("one.safetensors", "two.safetensors")):
        state = read_weights(write_parts(tmp_path / name, {**places, "a": name}))
        assert state["a"].tolist() == [number, number]
        assert state.keys() == {"a", "b", "c"}


def test_a_part_without_a_tensor_that_the_index_places_in_it_is_an_error(tmp_path):
    index = write_parts(tmp_path / "parts", {"a": "two.safetensors", "b": "two.safetensors", "c": "two.safetensors"})
    with pytest.raises(
        BackboneError, match=r"says that two\.safetensors holds b, which it does not: copy the snapshot"
    ):
        read_weights(index)
