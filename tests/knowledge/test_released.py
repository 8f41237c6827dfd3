import hashlib
import json
import os
from pathlib import Path

import pytest

from waver.data.annotations.reading import AnnotationError
from waver.knowledge.phrases import VOCABULARY_SCHEMA
from waver.knowledge.released import read_released
from waver.knowledge.store import MATCHES_SCHEMA

SHARED = Path(os.environ.get("WAVER_SHARED", Path(__file__).parents[2].parent / "shared"))
VCD = SHARED / "data" / "vcd"

LISTS = {"b": ["run", "ride a horse", "é"], "a": ["ride a horse", "sing", "run"]}
OBJECTS = {
    "b": {"vocab": ["run", "ride a horse", "é"], "vocab_idx": [7, 0, 900]},
    "a": {"vocab": ["ride a horse", "sing", "run"], "vocab_idx": [0, 3, 7]},
}


@pytest.fixture
def write(tmp_path):
    def write_file(name: str, content) -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write_file


def phrases_by_clip(dictionary, matches) -> dict[str, list[str]]:
    names = dictionary.phrases["phrase"].to_pylist()
    return {row["clip_id"]: [names[i] for i in row["phrase_ids"]] for row in matches.to_pylist()}


@pytest.mark.parametrize("content", [LISTS, OBJECTS], ids=["lists", "objects"])
def test_both_schemas_give_the_same_kind_of_table(write, content):
    dictionary, matches = read_released([write("x.json", content)], ["a", "b", "c"], 3)
    assert (dictionary.phrases.schema, matches.schema) == (VOCABULARY_SCHEMA, MATCHES_SCHEMA)
    assert phrases_by_clip(dictionary, matches) == LISTS
    assert dictionary.phrases["phrase_id"].to_pylist() == [0, 1, 2, 3]
    assert dictionary.phrases["count"].null_count == 4
    assert matches["scores"].null_count == 2
    assert dictionary.leaky
    assert (dictionary.manifest["num_phrases"], dictionary.manifest["files"]) == (4, ["x.json"])


def test_phrases_are_in_the_order_of_the_authors_index(write):
    dictionary, matches = read_released([write("x.json", OBJECTS)], ["a", "b"], 3)
    assert dictionary.phrases["phrase"].to_pylist() == ["ride a horse", "sing", "run", "é"]
    assert {row["clip_id"]: row["phrase_ids"] for row in matches.to_pylist()} == {"b": [2, 0, 3], "a": [0, 1, 2]}


def test_phrases_without_an_index_are_in_the_order_in_which_they_appear(write):
    dictionary, _ = read_released([write("x.json", LISTS)], ["a", "b"], 3)
    assert dictionary.phrases["phrase"].to_pylist() == ["run", "ride a horse", "é", "sing"]


def test_several_files_are_one_dictionary(write):
    files = [write(f"{clip}.json", {clip: OBJECTS[clip]}) for clip in ("b", "a")]
    dictionary, matches = read_released(files, ["a", "b"], 3)
    whole, _ = read_released([write("x.json", OBJECTS)], ["a", "b"], 3)
    assert dictionary.phrases.equals(whole.phrases)
    assert phrases_by_clip(dictionary, matches) == LISTS
    assert dictionary.manifest["files"] == ["b.json", "a.json"]


def test_a_clip_may_stand_in_two_files_with_the_same_phrases(write):
    files = [write("x.json", OBJECTS), write("y.json", {"a": OBJECTS["a"]})]
    _, matches = read_released(files, ["a", "b"], 3)
    assert sorted(matches["clip_id"].to_pylist()) == ["a", "b"]


@pytest.mark.parametrize("num_matches", [1, 2])
def test_the_best_phrases_are_kept(write, num_matches):
    dictionary, matches = read_released([write("x.json", OBJECTS)], ["a", "b"], num_matches)
    assert phrases_by_clip(dictionary, matches) == {clip: phrases[:num_matches] for clip, phrases in LISTS.items()}


NOT_PHRASES = "neither a list of phrases nor an object with vocab and vocab_idx"


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        (
            [LISTS | {"z": ["run"] * 3, "y": ["run"] * 3}],
            "2 x clip that the data set does not have: z in 0.json, y in 0",
        ),
        (["{"], r"1 x file that cannot be read: .*0.json \(Expecting"),
        ([["run"]], "1 x file without clips: .*0.json"),
        ([{"a": "run"}], f"1 x {NOT_PHRASES}: a in 0.json"),
        ([{"a": None, "b": 3}], f"2 x {NOT_PHRASES}: a in 0.json, b in 0.json"),
        ([{"a": []}], f"1 x {NOT_PHRASES}"),
        ([{"a": ["run", 3, "sing"]}], f"1 x {NOT_PHRASES}"),
        ([{"a": {"vocab": LISTS["a"]}}], f"1 x {NOT_PHRASES}"),
        ([{"a": {"vocab": LISTS["a"], "vocab_idx": [1, 2]}}], f"1 x {NOT_PHRASES}"),
        ([{"a": {"vocab": LISTS["a"], "vocab_idx": [1, 2, "3"]}}], f"1 x {NOT_PHRASES}"),
        ([{"a": {"vocab": LISTS["a"], "vocab_idx": [1, 2, True]}}], f"1 x {NOT_PHRASES}"),
        ([{"a": {"vocab": "run", "vocab_idx": [1, 2, 3]}}], f"1 x {NOT_PHRASES}"),
        ([{"a": {"vocab": None, "vocab_idx": []}}], f"1 x {NOT_PHRASES}"),
        ([{"a": {"vocab": LISTS["a"], "vocab_idx": None}}], f"1 x {NOT_PHRASES}"),
        ([{"a": {"vocab": 3, "vocab_idx": [1, 2, 3]}}], f"1 x {NOT_PHRASES}"),
        ([{"a": ["run", "\ud800", "sing"]}], f"1 x {NOT_PHRASES}"),
        ([OBJECTS, {"c": {"vocab": ["run", "x", "y"], "vocab_idx": [8, 20, 21]}}], "1 x phrase with two places.*'run'"),
        ([OBJECTS, {"c": ["run", "x", "y"]}], "1 x phrase with two places in the dictionary: 'run'"),
        (
            [OBJECTS, {"c": {"vocab": ["hop", "x", "y"], "vocab_idx": [7, 20, 21]}}],
            "1 x place for two phrases: 7 in vocab_",
        ),
        (
            [LISTS | {"c": ["run", "sing"], "d": ["run"]}],
            "2 x clip with fewer than 3 phrases: c, d\n      lower knowledge",
        ),
        ([LISTS, {"a": ["run", "sing", "é"]}], "1 x clip with other phrases in another file: a"),
    ],
)
def test_invalid_files_are_errors(write, contents, expected):
    files = [write(f"{number}.json", content) for number, content in enumerate(contents)]
    with pytest.raises(AnnotationError, match=expected):
        read_released(files, ["a", "b", "c", "d"], 3)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(AnnotationError, match=r"1 x file that cannot be read: .*none.json"):
        read_released([tmp_path / "none.json"], ["a"], 3)


def test_everything_is_reported_at_once_with_counts(write):
    unknown = {f"z{number}": ["run"] * 3 for number in range(8)}
    files = [
        write("0.json", OBJECTS | unknown),
        write("1.json", {"a": ["other", "x", "y"], "c": {"vocab": ["sing", "hop"], "vocab_idx": [4, 0]}, "d": 5}),
        write("2.json", "[]"),
    ]
    with pytest.raises(AnnotationError) as caught:
        read_released(files, ["a", "b", "c", "d"], 3)
    message = str(caught.value)
    for expected in (
        "14 problems",
        "8 x clip that the data set does not have: z0 in 0.json, z1 in 0.json, z2 in 0.json, z3 in 0.json, z4 in 0.json,",
        "1 x clip with other phrases in another file: a",
        "1 x clip with fewer than 3 phrases: c",
        "1 x phrase with two places in the dictionary: 'sing'",
        "1 x place for two phrases: 0 in vocab_idx",
        f"1 x {NOT_PHRASES}: d in 1.json",
        "1 x file without clips",
    ):
        assert expected in message


def released(data_set: str, split: str) -> Path:
    if not VCD.is_dir():
        pytest.skip(f"{VCD} is not there: set WAVER_SHARED")
    (path,) = (VCD / data_set).glob(f"{data_set}_{split}_*.json")
    return path


def test_the_released_files_of_msvd():
    """Both splits share one dictionary of 21,168 phrases, of which 13,740 are visible."""
    train, test = released("msvd", "train"), released("msvd", "test")
    content = {path: json.loads(path.read_text()) for path in (train, test)}
    assert hashlib.sha256(test.read_bytes()).hexdigest().startswith("9fc2f47bbf08")
    assert [len(content[path]) for path in (train, test)] == [1200, 670]
    everything = content[train] | content[test]
    dictionary, matches = read_released([train, test], list(everything), 30)
    assert (len(dictionary.phrases), len(matches)) == (13740, 1870)
    assert dictionary.leaky
    assert dictionary.phrases["phrase"].to_pylist()[:3] == ["riding a horse", "playing a guitar", "playing guitar"]
    assert phrases_by_clip(dictionary, matches) == {clip: value["vocab"] for clip, value in everything.items()}
    by_index = {i: p for value in everything.values() for i, p in zip(value["vocab_idx"], value["vocab"], strict=True)}
    assert dictionary.phrases["phrase"].to_pylist() == [by_index[i] for i in sorted(by_index)]


def test_the_released_file_of_msrvtt():
    path = released("msrvtt", "test")
    content = json.loads(path.read_text())
    dictionary, matches = read_released([path], list(content), 10)
    assert (len(content), len(matches)) == (1000, 1000)
    assert phrases_by_clip(dictionary, matches) == {clip: phrases[:10] for clip, phrases in content.items()}
    assert len(dictionary.phrases) == len({phrase for phrases in content.values() for phrase in phrases})
    with pytest.raises(AnnotationError, match=r"1000 x clip with fewer than 31 phrases"):
        read_released([path], list(content), 31)
