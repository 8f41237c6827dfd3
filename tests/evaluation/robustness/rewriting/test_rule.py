import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from waver.evaluation.robustness.rewriting.controls import CONTROLS
from waver.evaluation.robustness.rewriting.rewrites import RULES
from waver.evaluation.robustness.rewriting.rule import (
    available_rules,
    choose,
    hash_to_int,
    parse_captions,
    rewrite,
    rules_by_key,
    shuffle,
)
from waver.evaluation.robustness.rewriting.words import word_set

ALL = RULES | CONTROLS
UNPARSED, PARSED = available_rules(ALL.values(), parsed=False)
ODD = [
    "",
    "   ",
    ".",
    "...",
    "?!",
    "a",
    "A",
    "a a a",
    "the",
    "not",
    "🙂",
    "a 🙂 man is riding a 🐎 in the park",
    "наводнение в городе",
    "街の洪水",
    "เด็กเล่นกีตาร์",
    "un homme joue de la guitare à l'école",
    "İSTANBUL ǆ ß ﬁ",
    'he says "hi", then "bye"',
    "a dog s ear, it's tail; she'll (maybe) go -- 2.5 m / 3,000",
    "a man is cutting {an onion} %s \\1 \\g<1>",
    "a man\tis\n\nplaying   a guitar ",
    "A MAN IS PLAYING A GUITAR",
    "a man is playing a guitar. a woman is singing.",
    "a man is playing a guitar on the stage while a woman is singing " * 9,
    "x" * 400,
    "is is is not not to to the the",
    "\ud800 half a character",
]
WORDS = st.sampled_from(
    sorted(
        word_set(
            "a an the man woman dog is are was playing plays cut guitar onion into out of on in up down left right his her "
            "and while not with he him it table big small . , ! 's s 3 two Two Dog PLAYS can been has"
        )
    )
)
CAPTIONS = st.one_of(st.text(max_size=60), st.lists(WORDS, max_size=12).map(" ".join))


def check(rule, captions, docs):
    results = rewrite(captions, rule, seed=3, docs=docs)
    for caption, result in zip(captions, results, strict=True):
        if result is not None:
            assert result
            assert result == " ".join(result.split())
            assert result != " ".join(caption.split())
    return results


@pytest.mark.slow
@pytest.mark.parametrize("rule", UNPARSED, ids=lambda rule: rule.key)
@given(captions=st.lists(CAPTIONS, max_size=5))
@settings(max_examples=60, deadline=None)
def test_any_text_and_no_order(rule, captions):
    results = check(rule, captions, None)
    assert rewrite(captions[::-1], rule, seed=3) == results[::-1]
    assert [rewrite([caption], rule, seed=3)[0] for caption in captions] == results


@pytest.mark.slow
@pytest.mark.xdist_group("vocabulary")
@given(captions=st.lists(CAPTIONS, max_size=5))
@settings(max_examples=60, deadline=None)
def test_any_parse_and_no_order(captions, parser):
    captions = [caption for caption in captions if caption.isprintable()]
    docs = parse_captions(captions, parser)
    for rule in PARSED:
        assert rewrite(captions[::-1], rule, seed=3, docs=docs[::-1]) == check(rule, captions, docs)[::-1]


@pytest.mark.parametrize("rule", UNPARSED, ids=lambda rule: rule.key)
def test_odd_captions(rule):
    results = check(rule, ODD, None)
    assert results[:2] == [None, None]
    assert rewrite([], rule, seed=0) == []


@pytest.mark.xdist_group("vocabulary")
def test_odd_captions_are_parsed(parser):
    odd = [caption for caption in ODD if "\ud800" not in caption]
    docs = parse_captions(odd, parser)
    for rule in PARSED:
        assert check(rule, odd, docs)[:2] == [None, None]


def test_white_space_counts_for_nothing():
    for rule in UNPARSED:
        one, other = rewrite(["a man is  riding\ta big horse ", "a man is riding a big horse"], rule, seed=0)
        assert one == other


def test_seeds_and_what_they_decide():
    captions = [f"a woman with a kid is cutting {number} onions on a table in the kitchen" for number in range(30)]
    for rule in UNPARSED:
        assert rewrite(captions, rule, seed=1) == rewrite(captions, rule, seed=1)
    chosen = {rule.name for rule in UNPARSED if rewrite(captions, rule, seed=1) != rewrite(captions, rule, seed=2)}
    assert chosen == {"typos", "wordy", "casual", "synonyms", "swapped_object"}


@pytest.mark.slow
def test_choices_are_the_same_in_every_process():
    """They are stored with results, so that they may not change."""
    assert hash_to_int("7/typos/a man") == 13876962455299517994
    code = (
        "from waver.evaluation.robustness.rewriting.rule import *; "
        "print(hash_to_int('é'), choose('abc', 'x'), shuffle([1, 2, 3, 4], 'y'))"
    )
    run = [
        subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": s},
        )
        for s in "12"
    ]
    assert run[0].stdout == run[1].stdout == f"{hash_to_int('é')} {choose('abc', 'x')} {shuffle([1, 2, 3, 4], 'y')}\n"


def test_rules_are_named_once():
    assert list(ALL) == [rule.key for rule in ALL.values()]
    assert not set(RULES) & set(CONTROLS)
    with pytest.raises(AssertionError, match="two rules with one key"):
        rules_by_key(*RULES.values(), replace(RULES["keywords"]))


def test_available_rules():
    assert [rule.key for rule in PARSED] == ["passive", "clause_order", "negation"]
    assert available_rules(ALL.values(), parsed=True) == (list(ALL.values()), [])
    with pytest.raises(AssertionError, match="passive needs parses"):
        rewrite(["a man is cutting an onion"], RULES["passive"], seed=0)


def test_nothing_is_imported_for_the_rules_that_need_no_parse():
    code = (
        "import sys; sys.modules['spacy'] = sys.modules['torch'] = sys.modules['ray'] = None\n"
        "from waver.evaluation.robustness.rewriting.rewrites import RULES\n"
        "from waver.evaluation.robustness.rewriting.controls import CONTROLS\n"
        "from waver.evaluation.robustness.rewriting.rule import available_rules, rewrite\n"
        "import waver.evaluation.robustness.rewriting.imported\n"
        "rules, missing = available_rules((RULES | CONTROLS).values(), parsed=False)\n"
        "unchanged = [rule.key for rule in rules if rewrite(['There is a cat on the left.'], rule, seed=0) == [None]]\n"
        "print(*unchanged, len(missing))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "punctuation_case-sentence 3\n"


@pytest.mark.xdist_group("vocabulary")
def test_captions_are_parsed_once(parser):
    docs = parse_captions(["a dog  runs", "a cat", "a dog runs "], parser)
    assert [doc.text for doc in docs] == ["a dog runs", "a cat", "a dog runs"]
    assert docs[0] is docs[2]
    with pytest.raises(AssertionError, match="a parse of another caption"):
        rewrite(["a bird"], RULES["passive"], seed=0, docs=docs[:1])
