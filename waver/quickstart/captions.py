"""Captions of a scene in different writing styles.

Every caption mentions colour, shape and motion, so that it identifies a clip of the gallery; some mention background and
size too. Styles differ in words, word order, length and typing mistakes:

    plain           common words in sentences
    terse           common words, as typed into a search box
    wordy           exact words in long sentences
    chatty          informal words with typing mistakes
    question        questions with the words of plain, wordy and chatty
    synonyms        words that no other style has, with the colour behind the shape
    poetic          metaphors, which no other style has

Most sentences have a transitive verb whose direct object names colour and shape, or a motion (`shows a red star`, `draws
a zigzag`), so that the dictionary has verb phrases to extract.
"""

import random
import re
from dataclasses import dataclass

from waver.quickstart.scenes import COLOURS, MOTIONS, SHAPES, Scene

Words = dict[str, tuple[str, ...]]
"""Attribute value -> the wordings of it."""


def _words(values: tuple[str, ...], text: str) -> Words:
    """Parses `a|b, c`: the wordings of each value, separated by `|`, in the order of the values, separated by commas."""
    return {value: tuple(wordings.strip().split("|")) for value, wordings in zip(values, text.split(","), strict=True)}


def _merge(*tables: Words) -> Words:
    return {value: tuple(dict.fromkeys(words for table in tables for words in table[value])) for value in tables[0]}


COLOUR_WORDS = {
    "common": _words(COLOURS, ",".join(COLOURS)),
    "exact": _words(COLOURS, "crimson, amber, golden, emerald, turquoise, navy, violet, fuchsia"),
    "friendly": _words(COLOURS, "fiery, peachy, sunny, grassy, frosty, inky, grapey, sugary"),
    "rare": _words(
        COLOURS,
        "scarlet|vermilion, tangerine|apricot, lemon|mustard, jade|olive, teal|aqua, cobalt|sapphire, lilac|plum,"
        "rosy|magenta",
    ),
    "image": _words(COLOURS, "ruby, sunset, honey, forest, lagoon, midnight, lavender, blossom"),
}
SHAPE_WORDS = {
    "common": _words(SHAPES, ",".join(SHAPES)),
    "exact": _words(SHAPES, "disc, block, wedge, pentagram, plus sign, hoop"),
    "friendly": _words(SHAPES, "ball, box, pizza slice, starfish, plus, donut"),
    "rare": _words(
        SHAPES, "sphere|dot, cube|tile, pyramid|arrowhead, asterisk|pentacle, crucifix|crosshair, loop|wheel"
    ),
    "image": _words(SHAPES, "moon, window, sail, snowflake, windmill, wreath"),
}
MOTION_WORDS = {
    "common": _words(
        MOTIONS,
        "reaches the left side|crosses the screen to the left,"
        "reaches the right side|crosses the screen to the right,"
        "reaches the top|climbs the screen,"
        "reaches the bottom|goes down the screen,"
        "makes a round trip|rounds the middle,"
        "draws a zigzag|follows a zigzag line,"
        "gains size|gets a bigger size,"
        "loses size|gets a smaller size",
    ),
    "short": _words(MOTIONS, "leftward, rightward, upward, downward, orbit, zigzag, growing, shrinking"),
    "exact": _words(
        MOTIONS,
        "approaches the left margin of the picture,"
        "approaches the right margin of the picture,"
        "ascends the whole height of the picture,"
        "descends the whole height of the picture,"
        "describes a complete orbit around the centre,"
        "traces a sharp zigzag through the picture,"
        "increases its dimensions all the time,"
        "decreases its dimensions all the time",
    ),
    "friendly": _words(
        MOTIONS,
        "hits the left wall|wants the left corner,"
        "hits the right wall|wants the right corner,"
        "climbs the wall|hits the ceiling,"
        "hits the floor|falls down the wall,"
        "does laps|runs a few laps,"
        "does a zigzag|pulls a crazy zigzag,"
        "eats too much|gains weight,"
        "skips every meal|loses weight",
    ),
    "rare": _words(
        MOTIONS,
        "nears the western edge|quits the east,"
        "nears the eastern edge|quits the west,"
        "mounts the sky|nears the upper edge,"
        "seeks depth|nears the lower edge,"
        "circumnavigates the core|completes revolutions,"
        "weaves bends|performs wiggles,"
        "accumulates bulk|acquires volume,"
        "sheds bulk|forfeits volume",
    ),
    "image": _words(
        MOTIONS,
        "follows the dusk|chases the evening,"
        "follows the dawn|chases the morning,"
        "touches heaven|finds the clouds,"
        "kisses the earth|finds the roots,"
        "dances a waltz|circles its hearth,"
        "rides lightning|walks a drunken path,"
        "spreads its wings|opens its petals,"
        "folds its wings|closes its petals",
    ),
}


@dataclass(frozen=True)
class Style:
    """A writing style: sentences with placeholders for the attributes, and the wordings that fill them."""

    sentences: tuple[str, ...]
    motions: Words
    colours: Words
    shapes: Words
    typos: float = 0.0
    """Probability that two inner letters of a word are swapped, for words of at least five letters."""


STYLES: dict[str, Style] = {
    "plain": Style(
        (
            "a {colour} {shape} {motion}",
            "a {colour} {shape} on a {background} background {motion}",
            "the video shows a {colour} {shape} that {motion}",
            "we see a {size} {colour} {shape} and it {motion}",
        ),
        MOTION_WORDS["common"],
        COLOUR_WORDS["common"],
        SHAPE_WORDS["common"],
    ),
    "terse": Style(
        ("{colour} {shape}, {motion}", "{colour} {shape} {motion}, {background}", "{motion} {size} {colour} {shape}"),
        MOTION_WORDS["short"],
        COLOUR_WORDS["common"],
        SHAPE_WORDS["common"],
    ),
    "wordy": Style(
        (
            "in this recording the camera shows a {size} {colour} {shape} which {motion} before a {background} surface",
            "we can observe a {colour} {shape} of {size} size that {motion} on a {background} surface",
        ),
        MOTION_WORDS["exact"],
        COLOUR_WORDS["exact"],
        SHAPE_WORDS["exact"],
    ),
    "chatty": Style(
        (
            "haha i see a {colour} {shape} and it {motion}",
            "lol so this {size} {colour} {shape} just {motion}",
            "omg i love this {colour} {shape}!! look how it {motion}",
        ),
        MOTION_WORDS["friendly"],
        COLOUR_WORDS["friendly"],
        SHAPE_WORDS["friendly"],
        typos=0.15,
    ),
    "question": Style(
        (
            "which clip has a {shape} that {motion} and wears a {colour} coat?",
            "where on {background} ground do i find the {shape}, {colour}, that {motion}?",
        ),
        _merge(MOTION_WORDS["common"], MOTION_WORDS["exact"], MOTION_WORDS["friendly"]),
        _merge(COLOUR_WORDS["common"], COLOUR_WORDS["exact"], COLOUR_WORDS["friendly"]),
        _merge(SHAPE_WORDS["common"], SHAPE_WORDS["exact"], SHAPE_WORDS["friendly"]),
    ),
    "synonyms": Style(
        (
            "something {motion}: someone painted a {shape} in {colour} tones",
            "upon {background} canvas one spots a {shape} with {colour} skin as it {motion}",
        ),
        MOTION_WORDS["rare"],
        COLOUR_WORDS["rare"],
        SHAPE_WORDS["rare"],
    ),
    "poetic": Style(
        (
            "behold the {shape} of {colour} as she {motion}",
            "o {colour} {shape}, thy heart {motion}",
        ),
        MOTION_WORDS["image"],
        COLOUR_WORDS["image"],
        SHAPE_WORDS["image"],
    ),
}


def caption(scene: Scene, style: str, seed: int, turn: int = 0) -> str:
    """Returns a caption of the scene in a style (a key of `STYLES`); `seed` and `turn` choose sentence and wordings."""
    writer, rng = STYLES[style], random.Random(f"{seed}/{turn}/{style}/{scene}")
    text = rng.choice(writer.sentences).format(
        colour=rng.choice(writer.colours[scene.colour]),
        shape=rng.choice(writer.shapes[scene.shape]),
        motion=rng.choice(writer.motions[scene.motion]),
        background=scene.background,
        size=scene.size,
    )
    return with_typos(with_articles(text), writer.typos, rng)


def captions(scene: Scene, style: str, seed: int, count: int) -> list[str]:
    """Returns `count` different captions in one style, at most as many as the style has sentences."""
    assert count <= len(STYLES[style].sentences)
    texts: dict[str, None] = {}
    turn = 0
    while len(texts) < count:
        texts[caption(scene, style, seed, turn)] = None
        turn += 1
    return list(texts)


def with_articles(text: str) -> str:
    """Returns the text with `an` in place of `a` before vowels."""
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def with_typos(text: str, probability: float, rng: random.Random) -> str:
    """Returns the text after swapping, with this probability, two inner letters of each word of five or more letters."""
    return re.sub(r"[a-z]{5,}", lambda word: _with_typo(word[0], probability, rng), text)


def _with_typo(word: str, probability: float, rng: random.Random) -> str:
    if rng.random() >= probability:
        return word
    at = rng.randrange(1, len(word) - 2)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
