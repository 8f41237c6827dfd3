"""The scenes of the quickstart's videos: a coloured shape moves before a background."""

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
    """Content of a video: the attributes that captions mention, and a seed for all else.

    The `repr` of a scene seeds the choice of its captions: do not rename the class or its fields.
    """

    colour: str
    shape: str
    motion: str
    background: str
    size: str
    seed: int
    """Of position, phase, tilt and duration."""


def split_scenes(*, num_train: int, num_validation: int, num_test: int, seed: int) -> dict[str, list[Scene]]:
    """Chooses the scenes of a world so that each caption fits one clip of its gallery and must be generalised to.

    Every caption mentions the triple of colour, shape and motion. Each triple occurs at most once in validation and test,
    and no triple occurs in two splits, so that no tested combination is seen in training. Scenes of train may share a
    triple, but not background and size as well. With 22 or more scenes, train has every colour, shape and motion.

    Returns:
        The scenes of `train`, `validation` and `test`; they depend on the arguments alone, not on the machine.

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
            f"num_validation + num_test = {num_held_out} or num_train = {num_train} is too many. There are {len(triples)} "
            f"combinations of colour, shape and motion. Validation and test may take {len(triples) // 2} of them, and "
            f"train {len(settings)} scenes of each remaining one: {len(rest) * len(settings)} here"
        )

    def make_scene(triple: tuple[str, str, str], setting: tuple[str, str]) -> Scene:
        return Scene(*triple, *setting, seed=rng.getrandbits(32))

    held_out_scenes = [make_scene(triple, rng.choice(settings)) for triple in held_out]
    rest = _new_values_first(rest)
    settings_of = {triple: rng.sample(settings, len(settings)) for triple in rest}
    trained = [(triple, settings_of[triple][turn]) for turn in range(len(settings)) for triple in rest]
    return {
        "train": [make_scene(triple, setting) for triple, setting in trained[:num_train]],
        "validation": held_out_scenes[num_test:],
        "test": held_out_scenes[:num_test],
    }


def _new_values_first(triples: list[tuple[str, str, str]]) -> list[tuple[str, str, str]]:
    """Moves each triple with a value not seen before it to the front, so that a short prefix has all values."""
    seen: set[str] = set()
    first, later = [], []
    for triple in triples:
        (later if seen.issuperset(triple) else first).append(triple)
        seen.update(triple)
    return first + later
