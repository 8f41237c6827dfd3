"""What the web would write beside stills of the world: wide, careless text, on which the small CLIP is pre-trained.

All words of all writers occur, mixed; most texts leave something out, and none is a sentence of `captions.STYLES`.
"""

import random
from dataclasses import dataclass

from waver.quickstart.captions import COLOUR_WORDS, MOTION_WORDS, SHAPE_WORDS, mistyped, with_articles
from waver.quickstart.scenes import Scene

_OPENINGS = (
    "a photo of",
    "a picture of",
    "this is a video about",
    "this is a video about a man who sees",
    "footage:",
    "an animation with",
    "clip art of",
    "in this recording we see",
    "what the camera shows is",
    "the video shows",
    "we can observe",
    "i see",
    "look at",
    "just love",
    "omg look,",
    "haha ok,",
    "lol it is",
    "which clip shows",
    "where do i find",
    "someone painted",
    "one spots",
    "behold,",
    "o my heart,",
    "thy friend",
    "it has",
    "it wears",
)
_CLOSINGS = (
    "for kids",
    "in hd",
    "lol",
    "haha",
    "!!",
    "?",
    "free download",
    "as she said",
    "wallpaper",
    "and how it moves",
)
_NOUNS = ("thing", "object", "figure", "something", "one", "someone", "toy")
_PAINTED = (
    "{colour} {shape}",
    "{colour} {shape}",
    "{colour} coloured {shape}",
    "{shape} in {colour}",
    "{shape} of {colour} colour",
    "{shape} with a {colour} coat",
    "{shape} of {colour} skin",
    "{shape}, {colour} tones",
)
_SIZED = ("{size} {thing}", "{thing} of {size} size", "very {size} {thing}")
_MOVING = (
    "{motion}",
    "that {motion}",
    "which {motion}",
    "as it {motion}",
    "and {motion}",
    "she {motion}",
    "just {motion}",
)
_BEHIND = (
    "on {background}",
    "{background} background",
    "{background} backdrop",
    "upon {background} canvas",
    "before a {background} ground",
    "the surface is {background}",
)
Told = tuple[bool, bool, bool]
"""Whether a text mentions colour, shape and motion."""
_COLOUR, _SHAPE, _MOTION = (True, False, False), (False, True, False), (False, False, True)
_ALL = (True, True, True)
_TWO = ((True, True, False), (True, False, True), (False, True, True))
LESSONS: tuple[tuple[Told, ...], ...] = (
    (_COLOUR, _COLOUR, *(_SHAPE,) * 4, *(_MOTION,) * 4, *_TWO, *(_ALL,) * 4),
    (*(_COLOUR,) * 3, *(_SHAPE,) * 3, *(_MOTION,) * 10, *_TWO, *(_ALL,) * 5),
)
"""What texts mention, each of a lesson as often as the others; in the first one learns colours and shapes, then motions.

With the texts of the second from the start, neither shapes nor motions were learned in the same time.
"""
_TYPOS = 0.05


@dataclass(frozen=True)
class AltText:
    """A text, and what it says of a scene: None for what it leaves out."""

    text: str
    colour: str | None
    shape: str | None
    motion: str | None
    background: str | None
    size: str | None


def alt_text(scene: Scene, rng: random.Random, lesson: int = 0) -> AltText:
    """A text that is true of the scene and mentions at least one of colour, shape and motion, as the lesson has it."""
    told = rng.choice(LESSONS[lesson])
    colour, shape, motion = (
        rng.choice(rng.choice(list(tables.values()))[value]) if tell else None
        for tell, tables, value in zip(
            told, (COLOUR_WORDS, SHAPE_WORDS, MOTION_WORDS), (scene.colour, scene.shape, scene.motion), strict=True
        )
    )
    says_background, says_size = rng.random() < 0.1, rng.random() < 0.1
    thing = shape or rng.choice(_NOUNS)
    if colour:
        thing = rng.choice(_PAINTED).format(colour=colour, shape=thing)
    if says_size:
        thing = rng.choice(_SIZED).format(size=scene.size, thing=thing)
    parts = [rng.choice(("a ", "the ", "")) + thing] if colour or shape or says_size else []
    if motion:
        parts.append(rng.choice(_MOVING).format(motion=motion))
    if says_background:
        parts.append(rng.choice(_BEHIND).format(background=scene.background))
    if rng.random() < 0.3:
        rng.shuffle(parts)
    if all(told) or rng.random() < 0.4:  # a text that says all without one could be a terse writer's
        parts[0] = f"{rng.choice(_OPENINGS)} {parts[0]}"
    if rng.random() < 0.2:
        parts.append(rng.choice(_CLOSINGS))
    return AltText(
        mistyped(with_articles(rng.choice((" ", ", ")).join(parts)), _TYPOS, rng),
        colour=scene.colour if colour else None,
        shape=scene.shape if shape else None,
        motion=scene.motion if motion else None,
        background=scene.background if says_background else None,
        size=scene.size if says_size else None,
    )
