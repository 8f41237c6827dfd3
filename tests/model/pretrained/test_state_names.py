"""What training code wraps around weights, and what is no weights at all."""

import re

import pytest
import torch

from waver.model.errors import BackboneError
from waver.model.pretrained.state_names import strip_prefixes, take_state

STATE = {"visual.proj": torch.ones(2, 3), "text_projection": torch.zeros(3, 2), "logit_scale": torch.tensor(4.6)}


def prefixed(prefix: str, *, without: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
    return {name if name in without else prefix + name: tensor for name, tensor in STATE.items()}


def same(state: dict[str, torch.Tensor]) -> bool:
    return state.keys() == STATE.keys() and all(torch.equal(state[name], tensor) for name, tensor in STATE.items())


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "clip.", "module._orig_mod.", "_orig_mod.module.model.clip."]
)
def test_prefixes_are_removed_in_any_order(prefix):
    assert same(take_state(prefixed(prefix), source="w.pt"))


def test_a_part_that_torch_compiled():
    state = {name.replace("visual.", "visual._orig_mod."): tensor for name, tensor in STATE.items()}
    assert same(take_state(state, source="w.pt"))


def test_a_prefix_that_only_the_scale_lacks_is_removed_and_figures_are_dropped():
    state = prefixed("module.", without=("logit_scale",)) | {
        "n_averaged": torch.tensor(7),
        "vocab_size": torch.tensor(100),
    }
    assert same(take_state(state, source="w.pt"))


def test_a_prefix_that_other_weights_lack_is_kept():
    state = prefixed("clip.", without=("visual.proj",))
    assert take_state(state, source="w.pt").keys() == state.keys()


def test_two_names_of_the_same_tensor():
    state = prefixed("module.") | {"logit_scale": torch.tensor(1.0)}
    with pytest.raises(
        BackboneError, match=r"w\.pt has module\.logit_scale and logit_scale, which are the same tensor"
    ):
        take_state(state, source="w.pt")


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "ema", "model_state_dict"])
def test_the_wrapper_that_holds_tensors_is_taken(wrapper):
    assert same(take_state({"epoch": 3, wrapper: prefixed("module."), "optimizer": {"state": {}}}, source="w.pt"))
    assert same(take_state({"model": {wrapper: STATE}, "args": {"lr": 1}}, source="w.pt"))
    assert same(take_state({"net": {"name": "ViT-B-32"}, wrapper: STATE}, source="w.pt"))


def test_several_state_dicts_are_not_guessed(tmp_path):
    path = tmp_path / "w.pt"
    content = {"model": STATE, "ema": prefixed("module."), "epoch": 1}
    torch.save(content, path)
    with pytest.raises(
        BackboneError, match=r"holds several state dicts \('model', 'ema'\), whose values differ"
    ) as told:
        take_state(content, source=str(path))
    command = re.search(r'python -c "(.*)"', str(told.value), re.DOTALL)
    assert command
    code = command[1].replace("'ema.pt'", repr(str(tmp_path / "ema.pt")))
    exec(code)  # the remedy does what it says
    assert same(take_state(torch.load(tmp_path / "ema.pt", weights_only=True), source="ema.pt"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([1, 2], "holds list, something else than tensors by name"),
        ({}, "holds nothing"),
        ({"state_dict": {}}, r"something else than tensors by name \('state_dict'\)"),
        ({"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}, "the state of an optimizer"),
        ({"optimizer": {"state": {}}, "epoch": 2}, "the state of an optimizer"),
        ({"weights": [1.0], "names": ["a"]}, r"something else than tensors by name \('weights', 'names'\)"),
        (torch.ones(2), "holds Tensor, something else"),
    ],
)
def test_what_is_no_state_dict_is_described(content, told):
    with pytest.raises(BackboneError, match=rf"w\.pt .*{told}"):
        take_state(content, source="w.pt")


@pytest.mark.parametrize(
    ("name", "tensor", "told"),
    [
        (
            "h.attn.qweight",
            torch.zeros(2, dtype=torch.int32),
            r"quantised by GPTQ or AWQ \(such as h.attn.qweight",
        ),
        ("h.attn.weight.absmax", torch.zeros(2), "quantised by bitsandbytes in 4 bits"),
        ("h.attn.SCB", torch.zeros(2), "quantised by bitsandbytes in 8 bits"),
        ("h.attn.weight_scale", torch.zeros(2), "quantised by compressed-tensors"),
        ("h.attn.weight", torch.zeros(2).to(torch.float8_e4m3fn), "holds h.attn.weight as float8_e4m3fn"),
        ("h.attn.weight", torch.zeros(2, dtype=torch.int8), "holds h.attn.weight as int8"),
        ("h.attn.in_proj_weight", torch.zeros(2, dtype=torch.int64), "holds h.attn.in_proj_weight as int64"),
    ],
)
def test_quantised_weights_are_refused_by_name(name, tensor, told):
    with pytest.raises(BackboneError, match=rf"{told}.*take the file of the same model in 16 or 32 bits"):
        take_state(STATE | {name: tensor}, source="w.pt")


def test_counters_and_half_precision_are_no_quantised_weights():
    state = {"visual.bn1.num_batches_tracked": torch.tensor(5), "visual.proj": torch.ones(2, 2, dtype=torch.bfloat16)}
    assert take_state(state, source="w.pt") == state


def test_a_prefix_that_is_part_of_the_names_is_kept():
    state = {f"module.model._orig_mod.clip.{name}": torch.zeros(2) for name in ("visual.proj", "logit_scale")}
    assert strip_prefixes(state, source="x", kept_prefix="clip.").keys() == {"clip.visual.proj", "clip.logit_scale"}
    assert strip_prefixes(state, source="x").keys() == {"visual.proj", "logit_scale"}
