import pyarrow as pa
import pytest

from waver.data.annotations import CAPTIONS_SCHEMA
from waver.evaluation.robustness.queries import (
    UNKNOWN_STYLE,
    Query,
    RobustnessError,
    build_queries,
    queries_digest,
    queries_to_captions,
    reference_rows,
)


def table(*rows):
    """Rows of (clip, caption, style); clips a.1 and a.2 are segments of one video. One more clip is for training."""
    counts: dict[str, int] = {}
    written = [("t", "a bird", "plain", "train"), *((*row, "test") for row in rows)]
    columns = {name: [] for name in CAPTIONS_SCHEMA.names}
    for clip, caption, style, split in written:
        index = counts.setdefault(clip, 0)
        counts[clip] += 1
        values = (clip[0], clip, f"/videos/{clip[0]}.mp4", 1.5, None, caption, index, split, style)
        for name, value in zip(CAPTIONS_SCHEMA.names, values, strict=True):
            columns[name].append(value)
    return pa.table(columns, schema=CAPTIONS_SCHEMA)


CAPTIONS = table(
    ("b", "a dog", "plain"),
    ("b", "canine", "terse"),
    ("a.2", "a cat", "plain"),
    ("a.1", "feline", "terse"),
    ("a.1", "a red cat", "plain"),
    ("a.1", "what a cat", "chatty"),
)


def build(captions=CAPTIONS, style=None, natural=True, rules=None, imported=(), controls=None):
    references = reference_rows(captions, "test", style)
    queries = build_queries(
        captions, references, natural=natural, rules=rules or {}, imported=imported, controls=controls or {}
    )
    return queries, references


def test_the_reference_is_the_first_caption_or_the_first_in_a_style():
    assert reference_rows(CAPTIONS, "test", None)["caption"].to_pylist() == ["feline", "a cat", "a dog"]
    assert reference_rows(CAPTIONS, "test", "plain")["caption"].to_pylist() == ["a red cat", "a cat", "a dog"]


def test_a_style_that_some_clip_lacks_and_an_empty_split_are_refused():
    with pytest.raises(RobustnessError, match=r"1 of 3 clips.*'terse' \(a\.2\).*chatty, plain, terse"):
        reference_rows(CAPTIONS, "test", "terse")
    with pytest.raises(RobustnessError, match="no captions of validation; choose one of test, train"):
        reference_rows(CAPTIONS, "validation", None)


def test_human_captions_are_versions_of_the_reference():
    queries, _ = build()
    assert [(row.clip_id, row.track, row.style, row.text) for row in queries.rows] == [
        ("a.1", "reference", "reference", "feline"),
        ("a.1", "natural", "chatty", "what a cat"),
        ("a.1", "natural", "plain", "a red cat"),
        ("a.2", "reference", "reference", "a cat"),
        ("b", "reference", "reference", "a dog"),
        ("b", "natural", "terse", "canine"),
    ]
    assert queries.clip_ids == ("a.1", "a.2", "b")
    assert queries.clip.tolist() == [0, 0, 0, 1, 2, 2]
    assert queries.video.tolist() == [0, 0, 0, 0, 1, 1], "segments of one video belong together"
    assert queries.reference.tolist() == [0, 0, 0, 3, 4, 4]
    assert queries.styles("natural") == [("natural", "chatty"), ("natural", "plain"), ("natural", "terse")]
    assert queries.of_style("natural", "terse").tolist() == [5]


def test_without_styles_human_captions_are_one_style():
    captions = CAPTIONS.set_column(8, "style", pa.nulls(len(CAPTIONS), pa.string()))
    assert build(captions)[0].styles("natural") == [("natural", UNKNOWN_STYLE)]


def test_rules_and_controls_follow_the_references_and_may_not_apply():
    queries, _ = build(
        natural=False,
        rules={"upper": ["FELINE", None, "A DOG"], "none": [None, None, None]},
        controls={"other": [None, "a dog", None]},
    )
    assert [row.text for row in queries.rows] == ["feline", "FELINE", "a cat", "a dog", "a dog", "A DOG"]
    assert queries.styles("rules", "control") == [("rules", "upper"), ("control", "other")]
    assert queries.reference.tolist() == [0, 0, 2, 2, 4, 4]


def test_imported_versions_of_other_captions_bring_their_originals():
    imported = [Query("a.1", "the cat is red", "imported", "llm", 1), Query("b", "some dog", "imported", "llm", 0)]
    queries, _ = build(natural=False, imported=imported)
    assert [(row.track, row.text) for row in queries.rows] == [
        ("reference", "feline"),
        ("reference", "a red cat"),
        ("imported", "the cat is red"),
        ("reference", "a cat"),
        ("reference", "a dog"),
        ("imported", "some dog"),
    ]
    assert queries.reference.tolist() == [0, 1, 1, 3, 4, 4]


def test_queries_become_captions_of_the_same_clips_in_the_same_order():
    queries, references = build(rules={"upper": ["FELINE", None, "A DOG"]})
    captions = queries_to_captions(queries, references)
    assert captions.schema.names == CAPTIONS_SCHEMA.names
    assert captions["caption"].to_pylist() == [row.text for row in queries.rows]
    assert captions["caption_index"].to_pylist() == [0, 1, 2, 3, 0, 0, 1, 2]
    in_order = captions.sort_by([("clip_id", "ascending"), ("caption_index", "ascending")])
    assert in_order.equals(captions)
    for row in captions.to_pylist():
        assert (row["path"], row["video_id"], row["start_s"]) == (
            f"/videos/{row['clip_id'][0]}.mp4",
            row["clip_id"][0],
            1.5,
        )
        assert row["split"] == "test"


def test_the_hash_knows_what_was_asked():
    assert queries_digest(build()[0]) == queries_digest(build()[0])
    assert queries_digest(build()[0]) != queries_digest(build(natural=False)[0])
