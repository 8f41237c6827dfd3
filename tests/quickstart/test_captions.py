import itertools
import re

import pytest

from waver.quickstart.captions import STYLES, caption, captions
from waver.quickstart.scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SIZES, Scene

SEEDS = range(12)


def scene(colour="red", shape="star", motion="left", background="black", size="big", seed=0) -> Scene:
    return Scene(colour, shape, motion, background, size, seed)


def signature(text: str) -> list[str]:
    """The words of a text with sorted letters, so that swapped letters make no difference."""
    return ["".join(sorted(word)) for word in re.findall(r"[a-z]+", text.lower())]


def contains(text: str, phrase: str) -> bool:
    words, wanted = signature(text), signature(phrase)
    return any(words[at : at + len(wanted)] == wanted for at in range(len(words)))


def mentioned(text: str, words: dict[str, tuple[str, ...]]) -> set[str]:
    return {value for value, wordings in words.items() if any(contains(text, wording) for wording in wordings)}


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_every_caption_mentions_its_colour_shape_and_motion_and_no_other(style):
    words = STYLES[style]
    for number, (colour, shape, motion) in enumerate(itertools.product(COLOURS, SHAPES, MOTIONS)):
        text = caption(scene(colour, shape, motion), style, number)
        assert mentioned(text, words.colours) == {colour}, text
        assert mentioned(text, words.shapes) == {shape}, text
        assert mentioned(text, words.motions) == {motion}, text


@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_no_two_triples_have_the_same_caption(style):
    triples_of: dict[str, set[tuple[str, str, str]]] = {}
    for triple in itertools.product(COLOURS, SHAPES, MOTIONS):
        for seed in SEEDS:
            triples_of.setdefault(caption(scene(*triple), style, seed), set()).add(triple)
    assert all(len(triples) == 1 for triples in triples_of.values())


@pytest.mark.parametrize("style", STYLES)
def test_mentioned_background_and_size_are_those_of_the_scene(style):
    for background, size in itertools.product(BACKGROUNDS, SIZES):
        texts = [caption(scene(background=background, size=size), style, seed) for seed in SEEDS]
        for text in texts:
            assert mentioned(text, {value: (value,) for value in BACKGROUNDS}) <= {background}
            assert mentioned(text, {value: (value,) for value in SIZES}) <= {size}


def test_wordy_captions_mention_all_attributes():
    for seed in SEEDS:
        text = caption(scene(background="striped", size="small"), "wordy", seed)
        assert contains(text, "striped")
        assert contains(text, "small")


def vocabulary(style: str) -> set[str]:
    """All wordings of colour, shape and motion in a style."""
    tables = (STYLES[style].colours, STYLES[style].shapes, STYLES[style].motions)
    return {wording for table in tables for wordings in table.values() for wording in wordings}


@pytest.mark.parametrize("style", ["synonyms", "poetic"])
def test_synonyms_and_poetic_share_no_wording_with_other_styles(style):
    for other in STYLES.keys() - {style}:
        assert not vocabulary(style) & vocabulary(other)


def test_questions_use_the_words_of_three_other_styles():
    assert vocabulary("question") == vocabulary("plain") | vocabulary("wordy") | vocabulary("chatty")


@pytest.mark.parametrize("style", STYLES)
def test_captions_of_one_style_differ_and_are_deterministic(style):
    texts = captions(scene(), style, 0, 2)
    assert len(set(texts)) == 2
    assert texts == captions(scene(), style, 0, 2)
    assert texts[0] == caption(scene(), style, 0)


def test_the_seed_chooses_the_wordings():
    texts = [caption(scene(), "synonyms", seed) for seed in SEEDS]
    assert texts == [caption(scene(), "synonyms", seed) for seed in SEEDS]
    assert len(set(texts)) > 3


def test_only_chatty_captions_have_typos():
    def num_typos(style: str) -> int:
        known = set()
        texts = [caption(scene(motion=motion), style, seed) for motion in MOTIONS for seed in range(50)]
        words = [word for text in texts for word in re.findall(r"[a-z]+", text)]
        for sentence in STYLES[style].sentences:
            known.update(re.findall(r"[a-z]+", sentence))
        for table in (STYLES[style].colours, STYLES[style].shapes, STYLES[style].motions):
            known.update(
                word for wordings in table.values() for text in wordings for word in re.findall(r"[a-z]+", text)
            )
        known.update(BACKGROUNDS, SIZES, ("an",))
        return sum(word not in known for word in words)

    typos = {style: num_typos(style) for style in STYLES}
    assert typos.pop("chatty") > 20
    assert not any(typos.values())


def test_articles_are_a_or_an_by_the_next_letter():
    for style, seed in itertools.product(STYLES, SEEDS):
        text = caption(scene("orange", "cross", "up"), style, seed)
        assert not re.search(r"\b(a [aeiou]|an [^aeiou])", text), text


def test_captions_fit_into_32_tokens():
    """The quickstart's text encoder reads 32 tokens; the rest, perhaps the motion, would be cut off."""
    from open_clip import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    scenes = [scene(*triple, "checkered", "small") for triple in itertools.product(COLOURS, SHAPES, MOTIONS)]
    texts = [caption(one, style, 1) for style in STYLES for one in scenes]
    longest = max(texts, key=lambda text: len(tokenizer.encode(text)))
    assert len(tokenizer.encode(longest)) <= 30, longest
