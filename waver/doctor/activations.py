"""Estimates the memory of the activations that the towers keep for the gradient, on torch's meta device."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from waver.config import ExperimentConfig
from waver.model.lora import LowRank
from waver.model.student import Student
from waver.model.towers import TOWERS, tower_blocks
from waver.training.build import empty_text


def tower_activations(student: Student, config: ExperimentConfig) -> int:
    """Returns the bytes that autograd keeps for one pair in both towers; shared memory counts once, weights do not count.

    With train.grad_checkpointing these are the inputs of all blocks, the activations of the largest block, and those
    outside of blocks.

    Args:
        student: on the meta device; parameters that are not trained are frozen.
        config: configuration of the experiment.

    Raises:
        RuntimeError, NotImplementedError: if a tower has an operation that the meta device lacks.
    """
    of_weights = {p.untyped_storage()._cdata for p in student.parameters()}
    # The dictionaries hold the storages, so that no address is used twice.
    kept: dict[int, dict[int, torch.UntypedStorage]] = defaultdict(dict)  # 0: outside of blocks
    inputs: dict[int, torch.UntypedStorage] = {}
    weights: list[Tensor] = []
    now = [0]

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in of_weights:
            kept[now[0]][storage._cdata] = storage
        return tensor

    def enter(number: int, given: Any) -> None:
        now[0] = number

    def leave(number: int, given: Any, output: Any) -> None:
        now[0] = 0
        if isinstance(output, Tensor) and output.requires_grad:
            inputs[number] = given[0].untyped_storage()

    def note_weight(weight: Tensor) -> None:  # computed once for all pairs of a pass
        of_weights.add(weight.untyped_storage()._cdata)
        weights.append(weight)

    size = config.preprocessing.size
    with _hooks(student, enter, leave, note_weight), torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        frames = student.backbone.clip.encode_image(torch.empty(config.video.max_frames, 3, size, size))
        words = student.backbone.encode_tokens(*empty_text(config))
    blocks = [sum(s.nbytes() for s in storages.values()) for number, storages in kept.items() if number]
    of_inputs = sum(storage.nbytes() for storage in inputs.values())
    if config.train.grad_checkpointing:
        total = sum(storage.nbytes() for storage in kept[0].values()) + of_inputs + max(blocks, default=0)
    else:  # what a block shares with the next counts once
        total = sum(s.nbytes() for s in {c: s for storages in kept.values() for c, s in storages.items()}.values())
    del frames, words
    return total


@contextmanager
def _hooks(student: nn.Module, enter: Any, leave: Any, note_weight: Any) -> Iterator[None]:
    """Calls functions before and after each block of the towers, and with each weight that an adapter computes."""
    backbone: Any = student.backbone
    blocks = [block for tower in TOWERS for block in tower_blocks(backbone, tower)]
    handles = []
    for number, block in enumerate(blocks, 1):
        handles.append(block.register_forward_pre_hook(lambda _, given, number=number: enter(number, given)))
        handles.append(
            block.register_forward_hook(lambda _, given, output, number=number: leave(number, given, output))
        )
    for module in student.modules():
        if isinstance(module, LowRank):
            handles.append(module.register_forward_hook(lambda _, __, weight: note_weight(weight)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
