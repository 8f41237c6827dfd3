import pytest

from waver.evaluation.robustness.rewriting.verbs import Verb, find_verb, inflect


@pytest.mark.parametrize(
    ("base", "third", "past", "gerund"),
    [
        ("play", "plays", "played", "playing"),
        ("carry", "carries", "carried", "carrying"),
        ("chop", "chops", "chopped", "chopping"),
        ("open", "opens", "opened", "opening"),
        ("slice", "slices", "sliced", "slicing"),
        ("tie", "ties", "tied", "tying"),
        ("free", "frees", "freed", "freeing"),
        ("wash", "washes", "washed", "washing"),
        ("mix", "mixes", "mixed", "mixing"),
        ("peel", "peels", "peeled", "peeling"),
        ("squeeze", "squeezes", "squeezed", "squeezing"),
        ("unwrap", "unwraps", "unwrapped", "unwrapping"),
        ("mow", "mows", "mowed", "mowing"),
        ("knead", "kneads", "kneaded", "kneading"),
        ("pet", "pets", "petted", "petting"),
        ("season", "seasons", "seasoned", "seasoning"),
        ("spray", "sprays", "sprayed", "spraying"),
        ("stir", "stirs", "stirred", "stirring"),
    ],
)
def test_spelling(base, third, past, gerund):
    assert inflect(base) == Verb(base, third, past, past, gerund)


@pytest.mark.parametrize(
    ("form", "tag", "participle"),
    [
        ("cutting", "VBG", "cut"),
        ("rides", "VBZ", "ridden"),
        ("drew", "VBD", "drawn"),
        ("drawn", "VBN", "drawn"),
        ("put", "VBD", "put"),
        ("dicing", "VBG", "diced"),
        ("swung", "VBD", "swung"),
    ],
)
def test_verbs_of_the_table(form, tag, participle):
    assert find_verb(form, tag).participle == participle


def test_what_is_not_found():
    """No verb, none that has a passive, and a tag that does not fit."""
    assert find_verb("guitar", "VBZ") is find_verb("becomes", "VBZ") is find_verb("rides", "VBG") is None
    assert find_verb("cut", "NN") is None
