import itertools
import re

import pytest

from waver.quickstart.captions import STYLES, caption, captions
from waver.quickstart.scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, Scene

SEEDS = range(12)


def scene(colour="red", shape="star", motion="left", background="black", size="big", seed=0) -> Scene:
    return Scene(colour, shape, motion, background, size, seed)


def signature(text: str) -> list[str]:
    """The words without the order of their letters: typing mistakes do not show in it."""
    return ["".join(sorted(word)) for word in re.findall(r"[a-z]+", text.lower())]


def contains(text: str, phrase: str) -> bool:
    words, wanted = signature(text), signature(phrase)
    return any(words[at : at + len(wanted)] == wanted for at in range(len(words)))


def mentioned(text: str, words: dict[str, tuple[str, ...]]) -> set[str]:
    return {value for value, ways in words.items() if any(contains(text, way) for way in ways)}


@pytest.mark.parametrize("style", STYLES)
def test_every_caption_says_colour_shape_and_motion_and_no_other(style):
    words = STYLES[style]
    for number, (colour, shape, motion) in enumerate(itertools.product(COLOURS, SHAPES, MOTIONS)):
        text = caption(scene(colour, shape, motion), style, number)
        assert mentioned(text, words.colours) == {colour}, text
        assert mentioned(text, words.shapes) == {shape}, text
        assert mentioned(text, words.motions) == {motion}, text


@pytest.mark.parametrize("style", STYLES)
def test_a_caption_of_one_scene_never_describes_another(style):
    said: dict[str, set[tuple[str, str, str]]] = {}
    for triple in itertools.product(COLOURS, SHAPES, MOTIONS):
        for seed in SEEDS:
            said.setdefault(caption(scene(*triple), style, seed), set()).add(triple)
    assert all(len(triples) == 1 for triples in said.values())


@pytest.mark.parametrize("style", STYLES)
def test_background_and_size_are_true_where_they_are_said(style):
    for background, size in itertools.product(BACKGROUNDS, SIZES):
        texts = [caption(scene(background=background, size=size), style, seed) for seed in SEEDS]
        for text in texts:
            assert mentioned(text, {value: (value,) for value in BACKGROUNDS}) <= {background}
            assert mentioned(text, {value: (value,) for value in SIZES}) <= {size}


def test_wordy_captions_say_everything():
    for seed in SEEDS:
        text = caption(scene(background="striped", size="small"), "wordy", seed)
        assert contains(text, "striped")
        assert contains(text, "small")


def vocabulary(style: str) -> set[str]:
    """All ways to put colour, shape and motion."""
    tables = (STYLES[style].colours, STYLES[style].shapes, STYLES[style].motions)
    return {way for table in tables for ways in table.values() for way in ways}


@pytest.mark.parametrize("style", ["synonyms", "poetic"])
def test_two_styles_share_no_way_with_any_other(style):
    for other in STYLES.keys() - {style}:
        assert not vocabulary(style) & vocabulary(other)


def test_questions_use_the_words_of_three_other_styles():
    assert vocabulary("question") == vocabulary("plain") | vocabulary("wordy") | vocabulary("chatty")


@pytest.mark.parametrize("style", STYLES)
def test_captions_of_one_writer_differ(style):
    texts = captions(scene(), style, 0, 2)
    assert len(set(texts)) == 2
    assert texts == captions(scene(), style, 0, 2)
    assert texts[0] == caption(scene(), style, 0)


def test_the_seed_decides_the_words():
    texts = [caption(scene(), "synonyms", seed) for seed in SEEDS]
    assert texts == [caption(scene(), "synonyms", seed) for seed in SEEDS]
    assert len(set(texts)) > 3


def test_only_chatty_writers_mistype():
    def num_mistyped(style: str) -> int:
        right = set()
        texts = [caption(scene(motion=motion), style, seed) for motion in MOTIONS for seed in range(50)]
        words = [word for text in texts for word in re.findall(r"[a-z]+", text)]
        for sentence in STYLES[style].sentences:
            right.update(re.findall(r"[a-z]+", sentence))
        for table in (STYLES[style].colours, STYLES[style].shapes, STYLES[style].motions):
            right.update(word for ways in table.values() for way in ways for word in re.findall(r"[a-z]+", way))
        right.update(BACKGROUNDS, SIZES, ("an",))
        return sum(word not in right for word in words)

    mistyped = {style: num_mistyped(style) for style in STYLES}
    assert mistyped.pop("chatty") > 20
    assert not any(mistyped.values())


def test_articles_fit():
    for style, seed in itertools.product(STYLES, SEEDS):
        text = caption(scene("orange", "cross", "up"), style, seed)
        assert not re.search(r"\b(a [aeiou]|an [^aeiou])", text), text


def test_captions_fit_into_32_tokens():
    """The quickstart's text encoder reads no more; what it cut off could be the motion."""
    from open_clip import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    scenes = [scene(*triple, "checkered", "small") for triple in itertools.product(COLOURS, SHAPES, MOTIONS)]
    texts = [caption(one, style, 1) for style in STYLES for one in scenes]
    longest = max(texts, key=lambda text: len(tokenizer.encode(text)))
    assert len(tokenizer.encode(longest)) <= 30, longest
