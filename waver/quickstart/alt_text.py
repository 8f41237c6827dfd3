"""Noisy alt texts of stills, such as CLIP's training data has, for the pre-training of the small CLIP.

They mix the words of all styles. Most leave some attributes out, and none is a caption of `captions.STYLES`.
"""

import random
from dataclasses import dataclass

from waver.quickstart.captions import COLOUR_WORDS, MOTION_WORDS, SHAPE_WORDS, with_articles, with_typos
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
_COLOUR_PHRASES = (
    "{colour} {shape}",
    "{colour} {shape}",
    "{colour} coloured {shape}",
    "{shape} in {colour}",
    "{shape} of {colour} colour",
    "{shape} with a {colour} coat",
    "{shape} of {colour} skin",
    "{shape}, {colour} tones",
)
_SIZE_PHRASES = ("{size} {thing}", "{thing} of {size} size", "very {size} {thing}")
_MOTION_PHRASES = (
    "{motion}",
    "that {motion}",
    "which {motion}",
    "as it {motion}",
    "and {motion}",
    "she {motion}",
    "just {motion}",
)
_BACKGROUND_PHRASES = (
    "on {background}",
    "{background} background",
    "{background} backdrop",
    "upon {background} canvas",
    "before a {background} ground",
    "the surface is {background}",
)
Mentions = tuple[bool, bool, bool]
"""Whether a text mentions colour, shape and motion."""
_COLOUR, _SHAPE, _MOTION = (True, False, False), (False, True, False), (False, False, True)
_ALL = (True, True, True)
_TWO = ((True, True, False), (True, False, True), (False, True, True))
LESSONS: tuple[tuple[Mentions, ...], ...] = (
    (_COLOUR, _COLOUR, *(_SHAPE,) * 4, *(_MOTION,) * 4, *_TWO, *(_ALL,) * 4),
    (*(_COLOUR,) * 3, *(_SHAPE,) * 3, *(_MOTION,) * 10, *_TWO, *(_ALL,) * 5),
)
"""The curriculum: for each lesson the attributes that its texts mention, each entry with equal probability.

The first lesson teaches colours and shapes, the second motions. With the second alone, neither shapes nor motions were
learned in the same number of steps.
"""
_TYPO_PROBABILITY = 0.05


@dataclass(frozen=True)
class AltText:
    """A text with the attributes of the scene that it mentions; None for those it leaves out."""

    text: str
    colour: str | None
    shape: str | None
    motion: str | None
    background: str | None
    size: str | None


def alt_text(scene: Scene, rng: random.Random, lesson: int = 0) -> AltText:
    """Returns a text that describes the scene and mentions what the lesson draws of colour, shape and motion."""
    mentions = rng.choice(LESSONS[lesson])
    colour, shape, motion = (
        rng.choice(rng.choice(list(tables.values()))[value]) if is_mentioned else None
        for is_mentioned, tables, value in zip(
            mentions, (COLOUR_WORDS, SHAPE_WORDS, MOTION_WORDS), (scene.colour, scene.shape, scene.motion), strict=True
        )
    )
    says_background, says_size = rng.random() < 0.1, rng.random() < 0.1
    thing = shape or rng.choice(_NOUNS)
    if colour:
        thing = rng.choice(_COLOUR_PHRASES).format(colour=colour, shape=thing)
    if says_size:
        thing = rng.choice(_SIZE_PHRASES).format(size=scene.size, thing=thing)
    parts = [rng.choice(("a ", "the ", "")) + thing] if colour or shape or says_size else []
    if motion:
        parts.append(rng.choice(_MOTION_PHRASES).format(motion=motion))
    if says_background:
        parts.append(rng.choice(_BACKGROUND_PHRASES).format(background=scene.background))
    if rng.random() < 0.3:
        rng.shuffle(parts)
    if all(mentions) or rng.random() < 0.4:  # without an opening it could be a terse caption
        parts[0] = f"{rng.choice(_OPENINGS)} {parts[0]}"
    if rng.random() < 0.2:
        parts.append(rng.choice(_CLOSINGS))
    return AltText(
        with_typos(with_articles(rng.choice((" ", ", ")).join(parts)), _TYPO_PROBABILITY, rng),
        colour=scene.colour if colour else None,
        shape=scene.shape if shape else None,
        motion=scene.motion if motion else None,
        background=scene.background if says_background else None,
        size=scene.size if says_size else None,
    )
