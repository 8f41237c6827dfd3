"""What happens in the videos of the quickstart: a coloured shape moves in some way on some background."""

import itertools
import random
from dataclasses import dataclass

COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
MOTIONS = ("left", "right", "up", "down", "round", "zigzag", "grow", "shrink")
BACKGROUNDS = ("black", "white", "striped", "checkered")
SIZES = ("small", "big")


@dataclass(frozen=True)
class Scene:
    """One video's content: everything that a caption may mention, and `seed` for what it does not."""

    colour: str
    shape: str
    motion: str
    background: str
    size: str
    seed: int
    """Decides place, phase, tilt and duration."""


def split_scenes(*, num_train: int, num_validation: int, num_test: int, seed: int) -> dict[str, list[Scene]]:
    """Chooses the scenes of a world so that retrieval is well posed and cannot be solved by remembering.

    Colour, shape and motion, which every caption mentions, differ between any two scenes of validation and test: a
    caption fits one clip of its gallery. No such triple occurs in two splits: what is asked in the test was never seen
    together. Scenes of train may share a triple, never the background and size as well. From 22 scenes on, train shows
    every colour, shape and motion.

    Returns:
        The scenes of `train`, `validation` and `test`; the same for the same arguments, on every machine.

    Raises:
        ValueError: if there are not enough different scenes.
    """
    rng = random.Random(f"scenes/{seed}")
    triples = list(itertools.product(COLOURS, SHAPES, MOTIONS))
    settings = list(itertools.product(BACKGROUNDS, SIZES))
    rng.shuffle(triples)
    num_held_out = num_validation + num_test
    held_out, rest = triples[:num_held_out], triples[num_held_out:]
    if num_held_out > len(triples) // 2 or num_train > len(rest) * len(settings):
        raise ValueError(
            f"num_validation + num_test = {num_held_out}, num_train = {num_train}: that is too many. There are "
            f"{len(triples)} combinations of colour, shape and motion; validation and test together may take "
            f"{len(triples) // 2}, and train {len(settings)} scenes of each one left: {len(rest) * len(settings)} here"
        )

    def scene(triple: tuple[str, str, str], setting: tuple[str, str]) -> Scene:
        return Scene(*triple, *setting, seed=rng.getrandbits(32))

    held_out_scenes = [scene(triple, rng.choice(settings)) for triple in held_out]
    rest = _new_values_first(rest)
    settings_of = {triple: rng.sample(settings, len(settings)) for triple in rest}
    trained = [(triple, settings_of[triple][turn]) for turn in range(len(settings)) for triple in rest]
    return {
        "train": [scene(triple, setting) for triple, setting in trained[:num_train]],
        "validation": held_out_scenes[num_test:],
        "test": held_out_scenes[:num_test],
    }


def _new_values_first(triples: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Moves to the front each triple that shows a value for the first time, so that a short prefix shows them all."""
    seen: set[str] = set()
    first, later = [], []
    for triple in triples:
        (later if seen.issuperset(triple) else first).append(triple)
        seen.update(triple)
    return first + later
