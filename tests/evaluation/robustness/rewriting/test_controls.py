import pytest

from waver.evaluation.robustness.rewriting.controls import CONTROLS
from waver.evaluation.robustness.rewriting.rule import rewrite


def one(caption, key, seed=0):
    return rewrite([caption], CONTROLS[key], seed=seed)[0]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a man is singing", "a woman is singing"),
        ("Someone is cutting a potato.", "Someone is cutting an onion."),
        ("someone eats an apple", "someone eats a banana"),
        ("Dogs and more dogs", "Cats and more cats"),
        ("people are playing soccer", "people are playing tennis"),
        # What it could become is there already, or someone is he or she elsewhere.
        ("a man and a woman are singing", None),
        ("a man washes his hair", None),
        ("a hot dog", None),
        ("donald duck is singing", None),
        ("someone is singing", None),
    ],
)
def test_swapped_object(caption, expected):
    assert one(caption, "swapped_object") == expected


def test_one_thing_at_a_time():
    caption = "a man is riding a horse with a dog and another man"
    assert {one(caption, "swapped_object", seed) for seed in range(40)} == {
        "a woman is riding a horse with a dog and another woman",
        "a man is riding a cow with a dog and another man",
        "a man is riding a horse with a cat and another man",
    }


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a man turns to the left", "a man turns to the right"),
        ("the camera pans right.", "the camera pans left."),
        ("a woman raises her left hand", {"a woman raises her right hand", "a woman lowers her left hand"}),
        ("it moves from left to right", "it moves from right to left"),
        ("a man climbs up a ladder", "a man climbs down a ladder"),
        ("a man is walking upstairs", "a man is walking downstairs"),
        ("a man pours milk into a bowl", "a man pours milk out of a bowl"),
        ("a dog climbed out of a box", "a dog climbed into a box"),
        ("a cat jumps off a table", "a cat jumps onto a table"),
        ("A man opens the door.", "A man closes the door."),
        ("a girl is putting on her red hat", "a girl is taking off her red hat"),
        ("he eats before singing", "he eats after singing"),
        ("a woman stands behind him", "a woman stands in front of him"),
        ("a dog runs away from a man", "a dog runs towards a man"),
        ("a boy is pushing a car", "a boy is pulling a car"),
        ("a box under the table", "a box on top of the table"),
        # Another sense, no change for certain, or both at once.
        ("a man left the room", None),
        ("that is the right way", None),
        ("a man picks up a ball", None),
        ("a man is cutting a potato into pieces", None),
        ("a car is driving down the road", None),
        ("a woman walks up to the camera", None),
        ("a man jumps up and down", None),
        ("a man gets out of the way", None),
        ("one hand is on the left, one on the right", None),
        ("a man does push ups", None),
        ("an open field in front", None),
        ("pandas pile on top of each other", None),
    ],
)
def test_swapped_direction(caption, expected):
    found = {one(caption, "swapped_direction", seed) for seed in range(20)}
    assert found == (expected if isinstance(expected, set) else {expected})
