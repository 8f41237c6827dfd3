"""Streams of random numbers: each part of a model draws from one of its own.

A part then draws the same numbers, whichever other parts a model has: two models that differ in one part start from equal
weights in all others, so that a comparison of the two is one of this part.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
