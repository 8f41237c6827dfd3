"""Random initial weights: each part of a model draws from a stream of random numbers of its own.

A part then draws the same numbers, whichever other parts a model has: two models that differ in one part start from equal
weights in all others, so that a comparison of the two is one of this part.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

BERT_STD = 0.02
"""Standard deviation of the initial weights of BERT, and of the linear layers of the released code of WAVER."""


def derive_seed(*key: int | str) -> int:
    """Returns the seed of a stream, which its name determines: an integer of 63 bits.

    Args:
        key: name of the stream, such as (seed of the experiment, name of the part).
    """
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@contextmanager
def random_stream(seed: int) -> Iterator[None]:
    """Makes the body draw from a stream of its own, on the CPU; afterwards the generator of torch is where it was."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed)
    try:
        yield
    finally:
        generator.set_state(state)


def draw_linear(module: nn.Module, *, std: float) -> None:
    """Draws the weights of all linear layers of a module from a normal distribution of mean 0, and sets biases to 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=std)
            nn.init.zeros_(part.bias)
