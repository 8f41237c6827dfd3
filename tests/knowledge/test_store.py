import json
import os
import threading
from pathlib import Path

import pyarrow as pa
import pytest
import torch

from waver.knowledge.errors import KnowledgeError
from waver.knowledge.phrases import VOCABULARY_SCHEMA
from waver.knowledge.store import (
    MATCHES_SCHEMA,
    Dictionary,
    Knowledge,
    build_dictionary,
    create_knowledge,
    mark_complete,
    read_dictionary,
    write_dictionary,
    write_embeddings,
    write_matches,
)
from waver.tools.object_store import local_copy, remove

SETTINGS = {"source": "matched", "teacher": "abc", "num_matches": 3}


def dictionary_of(*phrases: str, leaky: bool = False, **source) -> Dictionary:
    columns = [range(len(phrases)), phrases, [7] * len(phrases)]
    table = pa.table([pa.array(column) for column in columns], names=VOCABULARY_SCHEMA.names)
    return build_dictionary(table.cast(VOCABULARY_SCHEMA), leaky=leaky, **source)


def matches_of(rows: dict[str, list[int]]) -> pa.Table:
    scores = [0.75, 0.5, 0.25]
    return pa.Table.from_pylist([{"clip_id": clip, "phrase_ids": ids, "scores": scores} for clip, ids in rows.items()])


FIVE = dictionary_of("riding a horse", "playing a guitar", "é", "running", "eating a cake", splits=["train"])


@pytest.fixture
def folder(tmp_path) -> Path:
    """Knowledge of three clips in five phrases."""
    path = tmp_path / "knowledge"
    create_knowledge(path, FIVE, **SETTINGS)
    write_matches(path, matches_of({"c": [4, 0, 2], "a": [1, 2, 3]}))
    write_matches(path, matches_of({"b": [0, 3, 1]}))
    return path


def test_dictionary_round_trip(tmp_path):
    write_dictionary(tmp_path / "d", FIVE)
    again = read_dictionary(tmp_path / "d")
    assert again.phrases.equals(FIVE.phrases)
    assert again.manifest == FIVE.manifest
    assert (again.manifest["num_phrases"], again.manifest["splits"]) == (5, ["train"])
    assert not list(tmp_path.glob("**/*.part"))


def test_a_dictionary_of_released_phrases_has_no_counts(tmp_path):
    columns = [pa.array([0, 1], pa.int32()), pa.array(["a", "b"]), pa.nulls(2, pa.int64())]
    dictionary = build_dictionary(pa.table(columns, schema=VOCABULARY_SCHEMA), leaky=True)
    write_dictionary(tmp_path, dictionary)
    assert read_dictionary(tmp_path).phrases["count"].null_count == 2


def test_the_digest_is_of_the_phrases_in_their_order():
    base = dictionary_of("a", "b")
    assert base.digest == dictionary_of("a", "b", leaky=True, parser="x").digest
    assert (
        len({base.digest, dictionary_of("b", "a").digest, dictionary_of("a").digest, dictionary_of("a b").digest}) == 4
    )


def test_missing_dictionary_error_has_a_remedy(tmp_path):
    with pytest.raises(KnowledgeError, match=r"no dictionary in .*none: run `waver vocabulary CONFIG` first"):
        read_dictionary(tmp_path / "none")
    with pytest.raises(KnowledgeError, match=r"no knowledge in .*none: run `waver match CONFIG` first"):
        Knowledge(tmp_path / "none")


@pytest.mark.parametrize("name", ["manifest.json", "phrases.parquet"])
def test_damaged_dictionary_is_named(tmp_path, name):
    write_dictionary(tmp_path, FIVE)
    os.truncate(tmp_path / name, 20)
    with pytest.raises(KnowledgeError, match=rf"{name} cannot be read \(.*delete"):
        read_dictionary(tmp_path)


def test_a_dictionary_without_its_phrases_is_named(tmp_path):
    write_dictionary(tmp_path, FIVE)
    (tmp_path / "phrases.parquet").unlink()
    with pytest.raises(KnowledgeError, match=r"phrases.parquet cannot be read"):
        read_dictionary(tmp_path)


def test_knowledge_round_trip(folder):
    knowledge = Knowledge(folder)
    assert knowledge.phrases == FIVE.phrases["phrase"].to_pylist()
    assert knowledge.num_phrases == 5
    assert knowledge.matches["clip_id"].to_pylist() == ["a", "b", "c"]
    assert knowledge.matches["phrase_ids"].to_pylist() == [[1, 2, 3], [0, 3, 1], [4, 0, 2]]
    assert knowledge.matches["scores"].to_pylist() == [[0.75, 0.5, 0.25]] * 3
    assert {name: knowledge.manifest[name] for name in SETTINGS} == SETTINGS
    assert not list(folder.glob("**/*.part"))


def test_phrases_come_in_the_order_asked_for_and_the_best_first(folder):
    knowledge = Knowledge(folder)
    ids = knowledge.phrase_ids(["b", "c", "b", "a"], top_k=2)
    assert ids.dtype == torch.int64
    assert ids.tolist() == [[0, 3], [4, 0], [0, 3], [1, 2]]
    assert knowledge.phrase_ids(["c"], top_k=3).tolist() == [[4, 0, 2]]
    assert knowledge.phrase_ids(["c", "a"], top_k=0).shape == (2, 0)
    assert knowledge.phrase_ids([], top_k=2).shape == (0, 2)


def test_unmatched_clips(folder):
    assert Knowledge(folder).unmatched_clips(["z", "a", "y", "c"]) == ["z", "y"]
    assert Knowledge(folder).unmatched_clips([]) == []


def test_new_knowledge_has_no_matches(tmp_path):
    knowledge = create_knowledge(tmp_path, FIVE, **SETTINGS)
    assert knowledge.unmatched_clips(["a", "b"]) == ["a", "b"]
    assert len(knowledge.matches) == 0
    assert knowledge.embedded_parts() == set()


def test_clip_written_twice_is_one_row(folder):
    write_matches(folder, matches_of({"c": [4, 0, 2], "d": [2, 1, 0]}))
    write_matches(folder, matches_of({"a": [1, 2, 3], "c": [4, 0, 2]}))
    knowledge = mark_complete(folder)
    assert knowledge.matches["clip_id"].to_pylist() == ["a", "b", "c", "d"]
    assert knowledge.phrase_ids(["c", "d", "a", "b"], 3).tolist() == [[4, 0, 2], [2, 1, 0], [1, 2, 3], [0, 3, 1]]
    assert knowledge.manifest["num_clips"] == 4


def test_concurrent_writers_lose_nothing(tmp_path):
    def work(worker: int) -> None:
        create_knowledge(tmp_path, FIVE, **SETTINGS)
        for number in range(5):
            write_matches(
                tmp_path, matches_of({f"{worker}-{number}": [worker, number, 0], f"both-{number}": [0, 1, 2]})
            )

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    knowledge = mark_complete(tmp_path)
    assert len(knowledge.matches) == 4 * 5 + 5
    assert knowledge.phrase_ids(["3-4", "both-0"], 3).tolist() == [[3, 4, 0], [0, 1, 2]]


def test_parts_of_embeddings_are_joined_in_order(folder):
    embeddings = torch.randn(5, 8)
    for first, last in ((4, 5), (0, 2), (2, 4)):
        write_embeddings(folder, first, embeddings[first:last])
    assert torch.equal(Knowledge(folder).phrase_embeddings(), embeddings)
    assert Knowledge(folder).embedded_parts() == {0, 2, 4}


def test_parts_are_in_the_order_of_numbers_not_of_words(tmp_path):
    dictionary = dictionary_of(*(f"phrase {number}" for number in range(12)))
    create_knowledge(tmp_path, dictionary, **SETTINGS)
    embeddings = torch.randn(12, 4)
    for first in (10, 2, 0):
        write_embeddings(tmp_path, first, embeddings[first : {0: 2, 2: 10, 10: 12}[first]])
    assert torch.equal(Knowledge(tmp_path).phrase_embeddings(), embeddings)


def test_a_part_written_twice_counts_once(folder):
    embeddings = torch.randn(5, 8)
    for _ in range(2):
        write_embeddings(folder, 0, embeddings)
    assert torch.equal(Knowledge(folder).phrase_embeddings(), embeddings)
    assert len(list((folder / "embeddings").iterdir())) == 1


def test_a_missing_part_is_an_error_with_its_remedy(folder):
    write_embeddings(folder, 0, torch.randn(2, 8))
    write_embeddings(folder, 4, torch.randn(1, 8))
    with pytest.raises(
        KnowledgeError, match=r"embeddings of 3 of 5 phrases: run `waver match CONFIG`, which computes what"
    ):
        Knowledge(folder).phrase_embeddings()


def test_no_embeddings_at_all_are_an_error_with_its_remedy(folder):
    with pytest.raises(KnowledgeError, match=r"embeddings of 0 of 5 phrases: run `waver match CONFIG`"):
        Knowledge(folder).phrase_embeddings()


def test_damaged_files_are_named(folder):
    write_embeddings(folder, 0, torch.randn(5, 8))
    (part,) = (folder / "embeddings").iterdir()
    os.truncate(part, 60)
    with pytest.raises(KnowledgeError, match=r"embeddings has a file that cannot be read .*`waver match CONFIG`"):
        Knowledge(folder).phrase_embeddings()
    os.truncate(sorted((folder / "matches").iterdir())[1], 60)
    with pytest.raises(KnowledgeError, match=r"matches has a file that cannot be read .*delete the file and run"):
        _ = Knowledge(folder).matches
    os.truncate(folder / "manifest.json", 10)
    with pytest.raises(KnowledgeError, match=r"manifest.json cannot be read .*delete the folder and run `waver match"):
        Knowledge(folder)


def test_values_that_are_not_finite_are_named(folder):
    embeddings = torch.ones(2, 4)
    write_embeddings(folder, 0, embeddings)
    embeddings[1, 3] = torch.inf
    write_embeddings(folder, 3, embeddings[:1].expand(1, 4))
    write_embeddings(folder, 2, embeddings[1:])
    write_embeddings(folder, 4, embeddings[:1])
    message = r"embeddings/000000002.safetensors has values .* for 1 of 1 phrases \(the first: 'é'\): delete the file"
    with pytest.raises(KnowledgeError, match=message):
        Knowledge(folder).phrase_embeddings()
    scores = {"clip_id": "d", "phrase_ids": [0, 1, 2], "scores": [float("nan"), 0.5, 0.2]}
    write_matches(folder, pa.Table.from_pylist([scores]))
    with pytest.raises(KnowledgeError, match=r"matches/.*parquet has scores that are NaN"):
        _ = Knowledge(folder).matches
    (folder / "matches" / sorted(path.name for path in (folder / "matches").iterdir())[-1]).unlink()
    write_matches(folder, pa.Table.from_pylist([{**scores, "scores": [None, None, None]}], MATCHES_SCHEMA))
    assert len(Knowledge(folder).matches) == 4, "released matches have no scores"


def test_same_dictionary_and_settings_open_existing_knowledge(folder):
    again = create_knowledge(folder, FIVE, **SETTINGS)
    assert again.unmatched_clips(["a", "b", "c"]) == []
    mark_complete(folder)
    assert create_knowledge(folder, FIVE, **SETTINGS).manifest["complete"]


def test_another_dictionary_is_refused(folder):
    other = dictionary_of("riding a horse", "playing a guitar")
    with pytest.raises(KnowledgeError) as caught:
        create_knowledge(folder, other, **SETTINGS)
    message = str(caught.value)
    assert f"dictionary: {FIVE.digest} in the folder, {other.digest} now" in message
    assert "teacher" not in message
    assert "delete the folder and match again" in message
    assert Knowledge(folder).phrases == FIVE.phrases["phrase"].to_pylist()


@pytest.mark.parametrize(("name", "value"), [("teacher", "xyz"), ("num_matches", 4), ("source", "released")])
def test_another_teacher_or_setting_is_refused(folder, name, value):
    with pytest.raises(KnowledgeError, match=rf"\({name}: {SETTINGS[name]} in the folder, {value} now\)"):
        create_knowledge(folder, FIVE, **(SETTINGS | {name: value}))


def test_all_differences_are_in_one_error(folder):
    with pytest.raises(
        KnowledgeError,
        match=r"\(dictionary: .*; teacher: abc in the folder, xyz now; num_matches: 3 in the folder, 2 now\)",
    ):
        create_knowledge(folder, dictionary_of("x"), source="matched", teacher="xyz", num_matches=2)


def test_same_phrases_from_other_captions_keep_matches(tmp_path):
    """Captions were changed and give the same phrases: what was matched stays good, and now belongs to the new captions."""
    create_knowledge(tmp_path, dictionary_of("a", "b", captions="old"), **SETTINGS)
    write_matches(tmp_path, matches_of({"c": [1, 0, 1]}))
    mark_complete(tmp_path)
    knowledge = create_knowledge(tmp_path, dictionary_of("a", "b", captions="new", leaky=True), **SETTINGS)
    assert knowledge.manifest["dictionary"]["captions"] == "new"
    assert knowledge.leaky
    assert knowledge.unmatched_clips(["c"]) == []


def test_complete_only_after_mark_complete(folder):
    assert Knowledge(folder).manifest["complete"] is False
    knowledge = mark_complete(folder)
    assert (knowledge.manifest["complete"], knowledge.manifest["num_clips"]) == (True, 3)
    on_disk = json.loads((folder / "manifest.json").read_text())
    assert on_disk == knowledge.manifest
    assert {name: on_disk[name] for name in SETTINGS} == SETTINGS


@pytest.mark.parametrize("leaky", [True, False])
def test_leaky_is_inherited_from_the_dictionary(tmp_path, leaky):
    write_dictionary(tmp_path / "d", dictionary_of("a", "b", leaky=leaky))
    dictionary = read_dictionary(tmp_path / "d")
    create_knowledge(tmp_path / "k", dictionary, **SETTINGS)
    knowledge = mark_complete(tmp_path / "k")
    assert (dictionary.leaky, knowledge.leaky, knowledge.summary()["leaky"]) == (leaky, leaky, leaky)


def test_summary(folder):
    expected = {"num_phrases": 5, "leaky": False, "digest": FIVE.digest, "source": "matched"}
    assert Knowledge(folder).summary() == expected


# ---- in an object store


def test_knowledge_in_an_object_store_is_read_from_another_machine(s3, tmp_path):
    here, there = (local_copy(s3, tmp_path / machine) for machine in ("here", "there"))
    write_dictionary(here / "words", FIVE)
    dictionary = read_dictionary(there / "words")
    assert dictionary.phrases.equals(FIVE.phrases)
    create_knowledge(here / "known", dictionary, **SETTINGS)
    write_matches(here / "known", matches_of({"b": [1, 2, 3]}))
    write_embeddings(here / "known", 0, torch.ones(2, 4))
    assert create_knowledge(there / "known", dictionary, **SETTINGS).embedded_parts() == {0}
    write_embeddings(there / "known", 2, torch.zeros(3, 4))  # another machine goes on
    write_matches(there / "known", matches_of({"a": [0, 4, 2]}))
    for folder in (here / "known", there / "known"):
        knowledge = mark_complete(folder)
        assert knowledge.manifest["num_clips"] == 2
        assert knowledge.phrases == FIVE.phrases["phrase"].to_pylist()
        assert knowledge.phrase_ids(["b", "a"], 2).tolist() == [[1, 2], [0, 4]]
        assert knowledge.phrase_embeddings().sum() == 8


def test_rebuilt_knowledge_replaces_the_local_copy(s3, tmp_path):
    here, there = (local_copy(s3, tmp_path / machine) for machine in ("here", "there"))
    for value in (1, 2):
        remove(here)
        create_knowledge(here, FIVE, **SETTINGS)
        write_embeddings(here, 0, torch.full((5, value), float(value)))
        write_matches(here, matches_of({"a": [value, 0, 4]}))
        knowledge = mark_complete(there)
        assert knowledge.phrase_embeddings().tolist() == [[value] * value] * 5
        assert knowledge.phrase_ids(["a"], 1).tolist() == [[value]]
