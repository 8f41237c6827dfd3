import json
import os
from pathlib import Path

import pytest

from waver.evaluation.robustness.rewriting.controls import CONTROLS
from waver.evaluation.robustness.rewriting.rewrites import RULES
from waver.evaluation.robustness.rewriting.rule import parse_captions, rewrite

SHARED = Path(os.environ.get("WAVER_SHARED", Path(__file__).parents[4].parent / "shared"))

# Shares of the captions of MSVD to which rules apply.
COVERAGE = {
    "punctuation_case-sentence": 1.0,
    "punctuation_case-bare": 0.0,
    "punctuation_case-upper": 1.0,
    "typos-light": 0.999,
    "typos-medium": 0.999,
    "typos-heavy": 0.999,
    "keywords": 0.991,
    "no_determiners": 0.937,
    "wordy-light": 1.0,
    "wordy-heavy": 1.0,
    "casual-light": 0.514,
    "casual-heavy": 1.0,
    "synonyms-one": 0.721,
    "synonyms-all": 0.721,
    "passive": 0.321,
    "clause_order": 0.109,
    "negation": 0.896,
    "swapped_object": 0.742,
    "swapped_direction": 0.078,
}

pytestmark = pytest.mark.xdist_group("vocabulary")


@pytest.fixture
def put(parser):
    """What a rule makes of a caption."""

    def put(caption, rule):
        return rewrite([caption], rule, seed=0, docs=parse_captions([caption], parser))[0]

    return put


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        # tense and number
        ("a man is cutting an onion", "an onion is being cut by a man"),
        ("a man is slicing potatoes", "potatoes are being sliced by a man"),
        ("two men are playing the guitar", "the guitar is being played by two men"),
        ("the man was playing a guitar", "a guitar was being played by the man"),
        ("a man plays guitar", "guitar is played by a man"),
        ("several dogs follow a person", "a person is followed by several dogs"),
        ("he drew a beautiful picture", "a beautiful picture was drawn by him"),
        ("the man put the lizard into a plastic box", "the lizard was put into a plastic box by the man"),
        ("a woman pours water and flour into a bowl", "water and flour are poured into a bowl by a woman"),
        ("a man has eaten two bananas", "two bananas have been eaten by a man"),
        ("a man can lift a car", "a car can be lifted by a man"),
        # without a finite verb
        ("a lady playing violin", "violin being played by a lady"),
        ("man eating banana", "banana being eaten by man"),
        # particles, adverbs, what stands behind the object
        ("a woman holds up a leather jacket", "a leather jacket is held up by a woman"),
        ("a man is slowly cutting a cucumber into slices", "a cucumber is being slowly cut into slices by a man"),
        ("a woman is slicing parsley with a knife", "parsley is being sliced with a knife by a woman"),
        # case of letters and of pronouns
        ("The man opens the drawer.", "The drawer is opened by the man."),
        ("A girl is kissing him.", "He is being kissed by a girl."),
        # left alone: no object, no passive, whose is it, several verbs, what belongs to the object, punctuation
        ("a man is singing", None),
        ("a man has a dog", None),
        ("a man is a singer", None),
        ("a man is brushing his hair", None),
        ("a man is picking up a ball and throwing it", None),
        ("the adventurer opens the door to a house", None),
        ("the man touches the boy with the green shirt", None),
        ("a man takes place", None),
        ("a video shows a man", None),
        ("a man, alone, is cutting an onion", None),
        ("a man is giving a woman a flower", None),
        ("an onion is cut by a man", None),
        ("a woman in a pink shirt shakes a pan and talks to people", None),
        ("girl wearing jersey moves out of frame", None),
        ("a man is pulling a dog s tail", None),
        ("a man is not cutting an onion", None),
        ("the potato", None),
    ],
)
def test_passive(caption, expected, put):
    assert put(caption, RULES["passive"]) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a man is singing on the stage", "on the stage, a man is singing"),
        ("A dog runs across a yard.", "Across a yard, a dog runs."),
        ("a man and woman are dancing outside", "outside, a man and woman are dancing"),
        ("a man plays the guitar while looking up.", "while looking up, a man plays the guitar."),
        ("a man is singing as he walks down a street", "as he walks down a street, a man is singing"),
        ("a bridge is seen in the background", "in the background, a bridge is seen"),
        ("girls riding scooters outside", "outside, girls riding scooters"),
        # left alone: where it goes, what is aimed at, of what, nothing behind the verb, two verbs, punctuation
        ("a woman pours milk in a bowl", None),
        ("a man jumps in a pool", None),
        ("a boy is looking at the camera", None),
        ("a man is eating a bowl of rice", None),
        ("a man is singing", None),
        ("a dog licks a man on the face", None),
        ("the man raises his hands and spins in circles", None),
        ("a man is cutting an onion in half", None),
        ("in a kitchen, a man is cooking in a pan", None),
        ("people are cheering on a team", None),
        ("a dog in a park", None),
        ("a woman talks to the people in the audience", None),
        ("a man is speaking in a microphone", None),
    ],
)
def test_clause_order(caption, expected, put):
    assert put(caption, RULES["clause_order"]) == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a man is playing a guitar", "a man is not playing a guitar"),
        ("a man riding a horse", "a man not riding a horse"),
        ("The man plays a guitar.", "The man does not play a guitar."),
        ("two dogs run outside", "two dogs do not run outside"),
        ("someone tore a paper into quarters", "someone did not tear a paper into quarters"),
        ("a man can lift a car", "a man can not lift a car"),
        ("an onion is being cut by a man", "an onion is not being cut by a man"),
        ("the man is a singer", "the man is not a singer"),
        ("a man is not singing", None),
        ("a man walks without shoes", None),
        ("a man picks up a ball and throws it", None),
        ("there are two dogs in the park", "there are not two dogs in the park"),
        ("cheese burgers showcased", None),
        ("a guitar", None),
    ],
)
def test_negation(caption, expected, put):
    assert put(caption, CONTROLS["negation"]) == expected


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data/annotations/msvd").is_dir(), reason="without the captions of MSVD")
def test_coverage_of_msvd(parser):
    """The figures that were looked at, on the first captions of the clips of test: rules that slip do not go unseen."""
    folder = SHARED / "data/annotations/msvd"
    clips = json.loads((folder / "captions_msvd.json").read_text())
    captions = [caption for clip in (folder / "test_list.txt").read_text().split() for caption in clips[clip][:3]]
    docs = parse_captions(captions, parser)
    found = {}
    for rule in [*RULES.values(), *CONTROLS.values()]:
        results = rewrite(captions, rule, seed=0, docs=docs)
        assert all(result is None or result.isascii() for result in results)
        found[rule.key] = sum(result is not None for result in results) / len(captions)
    assert found == pytest.approx(COVERAGE, abs=0.01)
