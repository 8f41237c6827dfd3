"""Ten writers who describe the same scenes: five vocabularies, each used by two writers.

Each vocabulary has words of its own for colour, shape and motion, and some that another vocabulary uses in another sense, as
`moon` is a crescent to one writer and a disc to another. Who is fine-tuned on one sense can lose the other. The first writer
of a vocabulary names the size, the second leaves it out, as captions leave out what others tell. Sentences differ in order,
length and function words.
"""

import random
from dataclasses import dataclass

from waver.quickstart import captions as quickstart
from waver.quickstart import scenes
from waver.quickstart.captions import Words, with_articles, with_typos
from waver.quickstart.scenes import Scene

COLOURS = (*scenes.COLOURS, "brown", "lime", "beige", "maroon")
SHAPES = (*scenes.SHAPES, "heart", "crescent", "diamond", "arrow")
MOTIONS = scenes.MOTIONS
SIZES = scenes.SIZES
VOCABULARIES = ("common", "exact", "friendly", "rare", "image")
"""Keys of the tables of words in `waver.quickstart.captions`."""

_NEW_COLOURS = {
    "common": "brown, lime, beige, maroon",
    "exact": "umber, chartreuse, ecru, burgundy",
    "friendly": "chocolatey, slimy, sandy, winey",
    "rare": "chestnut|walnut, pistachio|pear, buff|oatmeal, oxblood|claret",
    "image": "earth, spring, dune, dusk",
}
_NEW_SHAPES = {
    "common": "heart, crescent, diamond, arrow",
    "exact": "cardioid, lune, rhombus, pointer",
    "friendly": "valentine, banana, kite, dart",
    "rare": "sweetheart|lovemark, sickle|scythe, lozenge|gem, shaft|spear",
    "image": "rose, eyelash, jewel, swallow",
}


_OTHER_SENSES: dict[str, dict[str, str]] = {
    "common": {"down": "sinks to the ground", "grow": "opens up"},
    "exact": {"triangle": "dart", "arrow": "arrowhead", "zigzag": "turns", "shrink": "sinks to the ground"},
    "friendly": {
        **{"red": "rosy", "green": "lime", "maroon": "plum", "beige": "golden"},
        **{"circle": "wheel", "crescent": "moon", "square": "diamond"},
        **{"left": "leaves the room", "zigzag": "dances around", "up": "goes away"},
    },
    "rare": {
        **{"brown": "amber", "beige": "peachy", "yellow": "sandy", "blue": "turquoise"},
        **{"cross": "asterisk", "star": "pentacle", "triangle": "arrowhead", "heart": "rose", "circle": "hoop"},
        **{"round": "turns", "right": "goes away"},
    },
    "image": {
        **{"blue": "violet", "red": "burgundy", "yellow": "amber", "beige": "sandy", "pink": "rosy"},
        **{"triangle": "kite", "star": "asterisk", "crescent": "hoop"},
        **{"right": "leaves the room", "round": "dances around", "up": "opens up"},
    },
}
"""Vocabulary -> value -> its word. Most of them mean another value in another vocabulary."""


def _tables(known: dict[str, Words], values: tuple[str, ...], new: dict[str, str]) -> dict[str, Words]:
    """Returns vocabulary -> value -> wordings.

    Args:
        known: the tables of the quickstart.
        values: all values.
        new: wordings of the values that the quickstart lacks (`a|b, c`: alternatives by `|`, values by commas).
    """
    tables = {}
    for vocabulary in VOCABULARIES:
        words = dict(known[vocabulary])
        added = values[len(words) :]
        for value, wordings in zip(added, new[vocabulary].split(",") if added else (), strict=True):
            words[value] = tuple(wordings.strip().split("|"))
        senses = _OTHER_SENSES[vocabulary]
        tables[vocabulary] = {value: (senses[value],) if value in senses else words[value] for value in values}
    return tables


COLOUR_WORDS = _tables(quickstart.COLOUR_WORDS, COLOURS, _NEW_COLOURS)
SHAPE_WORDS = _tables(quickstart.SHAPE_WORDS, SHAPES, _NEW_SHAPES)
MOTION_WORDS = _tables(quickstart.MOTION_WORDS, MOTIONS, {})


@dataclass(frozen=True)
class Writer:
    """How a writer describes a scene."""

    vocabulary: str
    sentences: tuple[str, ...]
    typos: float = 0.0
    """Probability that two inner letters of a long word are swapped."""


WRITERS: dict[str, Writer] = {
    "plain": Writer(
        "common",
        (
            "a {size} {colour} {shape} {motion}",
            "the video shows a {size} {colour} {shape} that {motion}",
            "we see a {colour} {shape}, {size}, and it {motion}",
        ),
    ),
    "terse": Writer(
        "common", ("{colour} {shape} {motion}", "{shape}, {colour}, {motion}", "{motion}: {colour} {shape}")
    ),
    "wordy": Writer(
        "exact",
        (
            "in this recording the camera shows a {size} {colour} {shape} which {motion}",
            "we can observe a {colour} {shape} of {size} size that {motion}",
            "what {motion} here is a {shape} of {size} size in {colour}",
        ),
    ),
    "reporter": Writer(
        "exact",
        (
            "the footage documents how a {colour} {shape} {motion}",
            "as recorded, a {shape} in {colour} {motion}",
            "a {colour} {shape} {motion} according to the camera",
        ),
    ),
    "chatty": Writer(
        "friendly",
        (
            "haha i see a {size} {colour} {shape} and it {motion}",
            "lol so this {size} {colour} {shape} just {motion}",
            "it {motion}, so {size} this {colour} {shape} is",
        ),
        typos=0.05,
    ),
    "fan": Writer(
        "friendly",
        (
            "omg i love this {colour} {shape}!! look how it {motion}",
            "best {colour} {shape} ever, it {motion}",
            "look at it, it {motion}!! what a {colour} {shape}",
        ),
        typos=0.05,
    ),
    "curator": Writer(
        "rare",
        (
            "something {motion}: someone painted a {size} {shape} in {colour} tones",
            "one spots a {shape} of {size} stature with {colour} skin as it {motion}",
            "a {size} {shape} with {colour} skin {motion}",
        ),
    ),
    "scholar": Writer(
        "rare",
        (
            "note that the {shape} with {colour} skin {motion}",
            "one finds, in {colour} tones, a {shape} and that it {motion}",
            "hence the {colour} {shape} {motion}",
        ),
    ),
    "poet": Writer(
        "image",
        (
            "behold the {size} {shape} of {colour} as she {motion}",
            "o {size} {colour} {shape}, thy heart {motion}",
            "she {motion}, my {size} {shape} of {colour}",
        ),
    ),
    "bard": Writer(
        "image",
        (
            "there was a {shape} of {colour}, and she {motion}",
            "sing of the {colour} {shape} that {motion}",
            "see how she {motion}, the {shape} of {colour}",
        ),
    ),
}
"""Name of a writer, the style of the captions -> how it writes."""


def writers_of(vocabularies: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the writers who use one of some vocabularies."""
    return tuple(name for name, writer in WRITERS.items() if writer.vocabulary in vocabularies)


def caption(scene: Scene, name: str, turn: int = 0) -> str:
    """Returns the caption of a scene by a writer; `turn` chooses sentence and wordings."""
    writer = WRITERS[name]
    rng = random.Random(f"{turn}/{name}/{scene}")
    text = rng.choice(writer.sentences).format(
        colour=rng.choice(COLOUR_WORDS[writer.vocabulary][scene.colour]),
        shape=rng.choice(SHAPE_WORDS[writer.vocabulary][scene.shape]),
        motion=rng.choice(MOTION_WORDS[writer.vocabulary][scene.motion]),
        size=scene.size,
    )
    return with_typos(with_articles(text), writer.typos, rng)
