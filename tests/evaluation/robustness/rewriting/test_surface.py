import pytest

from waver.evaluation.robustness.rewriting.rewrites import RULES
from waver.evaluation.robustness.rewriting.rule import rewrite

CAPTIONS = [
    "a man is playing a guitar on the stage",
    "the dog catches the yellow frisbee",
    "people are talking about 1234 things in 2019",
    "someone slices a very large watermelon with a knife",
]


def one(caption, key, seed=0):
    return rewrite([caption], RULES[key], seed=seed)[0]


@pytest.mark.parametrize(
    ("key", "caption", "expected"),
    [
        ("punctuation_case-upper", "a man's hat, and 2.5 eggs", "A MAN'S HAT, AND 2.5 EGGS"),
        ("punctuation_case-upper", "A MAN", None),
        ("punctuation_case-bare", "A man's hat, and 2.5 eggs!", "a man s hat and 2.5 eggs"),
        ("punctuation_case-bare", "a t-shirt 🙂...", "a t shirt 🙂"),
        ("punctuation_case-bare", "a man is singing", None),
        ("punctuation_case-bare", "?!", None),
        ("punctuation_case-sentence", "a man is singing", "A man is singing."),
        ("punctuation_case-sentence", "can i see a dog?", "Can I see a dog?"),
        ("punctuation_case-sentence", "A MAN IS SINGING", "A man is singing."),
        ("punctuation_case-sentence", "A man is singing.", None),
        ("keywords", "a man is playing a guitar on the stage", "man playing guitar stage"),
        ("keywords", "the man's dog is not in his car", "man dog not car"),
        ("keywords", "a man opens a can of beans with 2.5 spoons", "man opens can beans 2.5 spoons"),
        ("keywords", "he can see a well-known t-shirt", "see well-known t-shirt"),
        ("keywords", "it is a man", None),
        ("keywords", "man playing guitar", None),
        ("no_determiners", "a man is playing the guitar", "man is playing guitar"),
        ("no_determiners", "A man eats an apple and some bread.", "man eats apple and bread."),
        ("no_determiners", "a few of the men take vitamin a", "a few of men take vitamin a"),
        ("no_determiners", "some of his friends sing a capella", None),
        ("casual-light", "A man is playing a guitar.", "a man's playing a guitar"),
        ("casual-light", "There is a bus. It is going to fall because it is not new.",
         "there's a bus. it's gonna fall cause it isn't new"),
        ("casual-light", "two women are singing", None),
        # Not after a hiss, a plural or "which", and not before a noun.
        ("casual-light", "this bus is moving", None),
        ("casual-light", "the women is singing", None),
        ("casual-light", "a dog which is barking", None),
        ("casual-light", "the man is king", None),
        ("casual-light", "they cannot see what they are", "they can't see what they are"),
    ],
)  # fmt: skip
def test_by_hand(key, caption, expected):
    assert one(caption, key) == expected


def test_casual_heavy():
    assert one("A man is playing a guitar.", "casual-heavy") == "ok so a man's playin a guitar haha"
    openers = {one(CAPTIONS[1], "casual-heavy", seed).split(" the dog")[0] for seed in range(60)}
    assert openers == {"ok so", "so", "haha", "lol", "um so", "yo"}


def test_frames():
    light = {one("a dog runs {fast}.", "wordy-light", seed) for seed in range(60)}
    assert len(light) == 4
    assert all(text.endswith(": a dog runs {fast}") for text in light)
    heavy = {one("a dog runs", "wordy-heavy", seed) for seed in range(60)}
    assert len(heavy) == 3
    assert all(": a dog runs, " in text for text in heavy)


@pytest.mark.parametrize("caption", CAPTIONS)
@pytest.mark.parametrize("seed", range(20))
def test_typos(caption, seed):
    """One word, half of the words, all words; never numbers, short words or first letters; more severe is more."""
    levels = [one(caption, f"typos-{level}", seed).split() for level in ("light", "medium", "heavy")]
    words = caption.split()
    long = {place for place, word in enumerate(words) if len(word) > 3 and word.isalpha()}
    wrong = [{place for place, word in enumerate(words) if level[place] != word} for level in levels]
    assert [len(places) for places in wrong] == [1, (len(long) + 1) // 2, len(long)]
    assert wrong[0] <= wrong[1] <= wrong[2] == long
    for severe, mild, places in zip(levels[1:], levels, wrong, strict=False):
        assert all(severe[place] == mild[place] for place in places)
    for place in long:
        word, typed = words[place], levels[2][place]
        assert word[0] == typed[0]
        assert abs(len(word) - len(typed)) <= 1
        assert len(set(word) ^ set(typed)) <= 2


def test_every_mistake_is_made():
    made = {one("guitar", "typos-light", seed) for seed in range(300)}
    assert {"giutar", "gitar", "guuitar", "giitar", "guotar"} <= made
    assert "guitar" not in made
    assert len(made) == 4 + 4 + 4 + sum(map(len, ("yij", "uok", "ryg", "qsz")))


def test_typing_keeps_capitals():
    assert {one("GUITAR", "typos-light", seed).isupper() for seed in range(50)} == {True}


def test_nothing_to_type_wrong():
    assert [one(text, "typos-heavy") for text in ("a man is up", "2019", "наводнение", "éclair")] == [None] * 4
