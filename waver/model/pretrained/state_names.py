"""Extracts the weights from the content of a file: removes the wrappers and the prefixes of training code."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from waver.model.errors import BackboneError

_WRAPPERS = (
    *("state_dict", "model_state_dict", "model", "module", "net"),
    *("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema"),
)
"""Keys under which training code saves a state dict among other things; `module` is DeepSpeed's."""
_MAX_NESTED = 4
"""Maximal number of wrappers inside each other; files of known programs have two at most."""
_PREFIXES = ("module.", "_orig_mod.", "model.", "clip.")
"""Prefixes that DistributedDataParallel, torch.compile, and modules that contain a CLIP put before each name."""
_UNUSED = ("input_resolution", "context_length", "vocab_size", "n_averaged", "attn_mask", "text.attn_mask")
"""Tensors that are no weights, in archives of OpenAI, torch's AveragedModel and traced models of open_clip."""
_WITHOUT_PREFIX = (*_UNUSED, "logit_scale", "logit_bias")
"""Names that may lack a prefix that all other names have."""
_BESIDE_A_MODEL = frozenset(
    ("optimizer", "optimizer_state_dict", "scheduler", "scheduler_state_dict", "scaler", "epoch", "step", "loss")
)
"""Keys under which training code saves all but the model."""
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int64, torch.int32, torch.bool)
"""Types of buffers, such as counters and positions; no model keeps its weights in them."""
_QUANTISED = {
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".SCB": "bitsandbytes in 8 bits",
    ".absmax": "bitsandbytes in 4 bits",
    ".quant_map": "bitsandbytes in 4 bits",
    ".weight_scale": "compressed-tensors",
    ".weight_packed": "compressed-tensors",
}
"""Ends of the names of tensors that only quantised weights have -> the format."""


def take_state(content: Any, *, source: str, kept_prefix: str | None = None) -> dict[str, Tensor]:
    """Returns the state dict that a file holds.

    Args:
        content: what the reader of the file returned.
        source: the file, for error messages.
        kept_prefix: see `strip_prefixes`.

    Raises:
        BackboneError: if it holds no tensors by name, or several state dicts; if a tensor lacks values or is quantised.
    """
    for _ in range(_MAX_NESTED):
        if not isinstance(content, Mapping) or not content or _are_tensors(content):
            break
        held = [name for name in _WRAPPERS if _holds_tensors(content.get(name))]
        if len(held) > 1:
            raise BackboneError(
                f"model.weights: {source} holds several state dicts ({', '.join(map(repr, held))}), whose values differ: "
                f'write the one that you mean to a file of its own, such as\n  python -c "import torch; torch.save('
                f"torch.load({source!r}, map_location='cpu', weights_only=True)[{held[-1]!r}], '{held[-1]}.pt')\""
            )
        if not held:
            break
        content = content[held[0]]
    if not isinstance(content, Mapping) or not content or not _are_tensors(content):
        raise BackboneError(f"model.weights: {source} holds {_describe(content)}; it should be a state dict")
    state = dict(content)
    if incomplete := [name for name, tensor in state.items() if not _is_complete(tensor)]:
        raise BackboneError(
            f"model.weights: {source} does not hold all values of {incomplete[0]}; it should be a state dict"
        )
    check_types(state, source=source)
    return strip_prefixes(state, source=source, kept_prefix=kept_prefix)


def strip_prefixes(state: Mapping[str, Tensor], *, source: str, kept_prefix: str | None = None) -> dict[str, Tensor]:
    """Removes the prefixes that all names have, in any order and number, and tensors that are no weights.

    Args:
        state: name -> tensor.
        source: the file, for error messages.
        kept_prefix: a prefix that is a part of the names; None for none.

    Raises:
        BackboneError: if two tensors would have the same name.
    """
    names = {name: name.replace("_orig_mod.", "") for name in state}  # torch.compile may wrap a part of the model
    while (prefix := _common_prefix(names.values())) and prefix != kept_prefix:
        names = {name: short.removeprefix(prefix) for name, short in names.items()}
    stripped: dict[str, Tensor] = {}
    for name, short in names.items():
        if short in stripped:
            both = [long for long in names if names[long] == short]
            raise BackboneError(
                f"model.weights: {source} has {' and '.join(both)}, which are the same tensor of a model: keep one of them"
            )
        stripped[short] = state[name]
    return {name: tensor for name, tensor in stripped.items() if name not in _UNUSED}


def check_types(state: Mapping[str, Tensor], *, source: str) -> None:
    """Checks that tensors hold numbers as a model computes with them.

    Args:
        state: name -> tensor.
        source: the file, for error messages.

    Raises:
        BackboneError: if they are quantised, or of a type that no weights have; names the first.
    """
    remedy = "take the file of the same model in 16 or 32 bits"
    for end, form in _QUANTISED.items():
        if found := [name for name in state if name.endswith(end)]:
            raise BackboneError(
                f"model.weights: {source} holds weights quantised by {form} (such as {found[0]}), "
                f"which waver does not compute with: {remedy}"
            )
    for name, tensor in state.items():
        buffer = tensor.dtype in _INTEGERS and not name.endswith(("weight", "bias"))
        if tensor.is_quantized or not (tensor.dtype in _DTYPES or buffer):
            kind = str(tensor.dtype).removeprefix("torch.")
            raise BackboneError(
                f"model.weights: {source} holds {name} as {kind}, which waver does not compute with: {remedy}"
            )


def _common_prefix(names: Any) -> str | None:
    """Returns a prefix of all names, of which those of `_WITHOUT_PREFIX` may lack it; None if there is none."""
    others = [name for name in names if name not in _WITHOUT_PREFIX]
    if not others:
        return None
    return next((prefix for prefix in _PREFIXES if all(name.startswith(prefix) for name in others)), None)


def _holds_tensors(content: Any) -> bool:
    """Returns whether a value is a state dict, or wraps one."""
    if not isinstance(content, Mapping):
        return False
    return any(isinstance(value, Tensor) for value in content.values()) or any(
        _holds_tensors(content.get(name)) for name in _WRAPPERS
    )


def _are_tensors(content: Mapping[Any, Any]) -> bool:
    return all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())


def _is_complete(tensor: Tensor) -> bool:
    """Returns False for a tensor that repeats its values, so that a small file could claim any size."""
    return tensor.layout == torch.strided and tensor.numel() * tensor.itemsize <= tensor.untyped_storage().nbytes()


def _describe(content: Any) -> str:
    """Describes the content of a file that is no state dict, for the error message."""
    if not isinstance(content, Mapping):
        return f"{type(content).__name__}, something else than tensors by name"
    if not content:
        return "nothing"
    if {"state", "param_groups"} <= content.keys() or content.keys() <= _BESIDE_A_MODEL:
        return "the state of an optimizer, without weights of a model"
    keys = ", ".join(repr(str(key)) for key in list(content)[:6])
    return f"something else than tensors by name ({keys}{', ...' if len(content) > 6 else ''})"
