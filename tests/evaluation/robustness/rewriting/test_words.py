import pytest

from waver.evaluation.robustness.rewriting.rewrites import RULES
from waver.evaluation.robustness.rewriting.rule import rewrite
from waver.evaluation.robustness.rewriting.words import find_words, load_words, replace_spans

TABLES = ("synonyms.txt", "exchanges.txt")


@pytest.mark.parametrize(
    ("text", "word", "other", "expected"),
    [
        ("a car", "car", "automobile", "an automobile"),
        ("An ocean", "ocean", "sea", "A sea"),
        ("AN OCEAN", "OCEAN", "sea", "A SEA"),
        ("A CAR", "CAR", "automobile", "AN AUTOMOBILE"),
        ("Car in a big city", "Car", "automobile", "Automobile in a big city"),
        ("a man", "man", "unicorn", "a unicorn"),
        ("a man", "man", "hour", "an hour"),
        ("an apple", "apple", "one-way street", "a one-way street"),
        ("a fast car", "car", "automobile", "a fast automobile"),
    ],
)
def test_articles_and_case(text, word, other, expected):
    assert replace_spans(text, [(text.index(word), text.index(word) + len(word), other)]) == expected


ONE = ("enormous", "delicious", "tennis", "bus", "rhinoceros", "hippopotamus")


def is_plural(word):
    """Whether it ends as plurals and verbs of the third person do."""
    return word.endswith(("men", "children")) or (word.endswith("s") and word not in ONE)


@pytest.mark.parametrize("name", TABLES)
def test_tables(name):
    table = load_words(name)
    assert len(table) > 100
    for word, others in table.items():
        assert word == word.lower().strip()
        assert len(others) == len(set(others))
        assert word not in others
        for other in others:
            assert is_plural(word) == is_plural(other), (word, other)


def test_what_stays_as_it_is():
    assert find_words("a hot dog and hot dogs", "synonyms.txt") == []
    assert [found[0] for found in find_words("a dog-like dog's Dog", "synonyms.txt")] == ["dog", "Dog"]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a woman is talking", "a lady is speaking"),
        ("Women are hugging.", "Ladies are embracing."),
        ("a big black cat sits on the couch", "a large black feline sits on the sofa"),
        ("a small car, very small", "a little automobile, very small"),
        ("a man is talking on a cell phone", "a guy is speaking on a mobile phone"),
        ("an elderly man begins to sing", "an old guy starts to sing"),
        ("a funny movie", "an amusing film"),
        ("he eats a hot dog", None),
        ("someone slices an onion", "somebody slices an onion"),
    ],
)
def test_synonyms(caption, expected):
    assert rewrite([caption], RULES["synonyms-all"], seed=0) == [expected]


@pytest.mark.parametrize("seed", range(10))
def test_one_synonym_is_among_all(seed):
    caption = "a woman and a kid are talking to a dog in a big car"
    one, every = (rewrite([caption], RULES[f"synonyms-{key}"], seed=seed)[0].split() for key in ("one", "all"))
    words = caption.split()
    changed = [place for place, word in enumerate(one) if word != words[place] and words[place] not in ("a", "an")]
    assert len(changed) == 1
    assert every[changed[0]] == one[changed[0]]
    assert " ".join(every) == "a lady and a child are speaking to a canine in a large automobile"
