"""The weights of a student that training does not change: which they are, and their hash."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from waver.model.lora import NOT_OF_TOWERS, adapter_parameters, frozen_names
from waver.model.student import Student


def frozen_weights(student: Student) -> dict[str, Tensor]:
    """Returns the weights of a student that training does not change, by their names in its state.

    These are the parameters without gradient, and with adapters (model.lora) also the buffers of the towers. The logit scale
    is never one of them: training limits it even if it has no gradient.
    """
    if adapter_parameters(student.backbone):
        state = student.state_dict()
        return {name: state[name] for name in frozen_names(state)}
    named = student.named_parameters(remove_duplicate=False)
    return {name: p.detach() for name, p in named if not p.requires_grad and not name.startswith(NOT_OF_TOWERS)}


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 of the names and values of weights, hexadecimal; their order does not matter."""
    sha = hashlib.sha256()
    for name in sorted(weights):
        sha.update(name.encode())
        sha.update(weights[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()
