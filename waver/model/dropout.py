"""Dropout that does not depend on how a global batch is divided among workers and parts."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Drop = Callable[[Tensor], Tensor]
"""Sets some values of a tensor (B, ...) to 0 and enlarges the others; or returns it as it is."""


def keep_all(values: Tensor) -> Tensor:
    """Returns the values as they are: what evaluation does in place of dropout."""
    return values


def dropout_of_pairs(rate: float, seeds: Sequence[int]) -> Drop:
    """Returns dropout whose masks depend on each pair's seed alone, not on the other pairs of a tensor.

    `torch.nn.Dropout` draws for whatever rows stand in one tensor, so that other workers or parts would drop other values.
    Masks are drawn on the CPU, so that they are the same on all devices. Successive calls draw different masks.

    Args:
        rate: share of the values that become 0.
        seeds: one for each row of the tensors.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def drop(values: Tensor) -> Tensor:
        drawn = torch.stack([torch.rand(values.shape[1:], generator=generator) for generator in generators])
        return values * (drawn >= rate).to(values) / (1 - rate)

    return drop
