import json
from dataclasses import asdict

import pyarrow as pa
import pytest

from waver.data.annotations import CAPTIONS_SCHEMA, AnnotationError
from waver.evaluation.robustness.rewriting.imported import ImportedRewrite, Provenance, read_rewrites

BY = {"by": "a reader"}


@pytest.fixture
def references():
    rows = [("v1", 0, "a dog  runs"), ("v1", 1, "the dog is fast"), ("v2@0-5", 0, "a cat sleeps")]
    return pa.Table.from_pylist(
        [
            {"video_id": clip.split("@")[0], "clip_id": clip, "path": "/x.mp4", "caption": caption}
            | {"caption_index": index, "split": "test"}
            for clip, index, caption in rows
        ],
        schema=CAPTIONS_SCHEMA,
    )


def line(**fields):
    return {"clip_id": "v1", "caption_index": 0, "text": "a hound races", "style": "short", "provenance": BY} | fields


def write(path, lines):
    path.write_text("\n".join(text if isinstance(text, str) else json.dumps(text) for text in lines) + "\n")
    return path


def test_rewrites(tmp_path, references):
    full = {"by": "a model, version 3", "how": "Say it shorter.", "when": "2026-11-24", "checked_by": "two readers"}
    path = write(
        tmp_path / "rewrites.jsonl",
        [
            line(clip_id="v2@0-5", text=" there is a\tcat that sleeps ", provenance=full, caption="a cat sleeps"),
            "",
            line(caption="a dog runs"),
            line(style="long"),
            line(caption_index=1, text="наводнение \u2028 ”", provenance=BY | {"when": None}),
        ],
    )
    found = read_rewrites(path, references)
    assert found[0] == ImportedRewrite("v2@0-5", 0, "there is a cat that sleeps", "short", Provenance(**full))
    assert asdict(found[1]) == {
        "clip_id": "v1",
        "caption_index": 0,
        "text": "a hound races",
        "style": "short",
        "provenance": {"by": "a reader", "how": None, "when": None, "checked_by": None},
    }
    assert [(rewrite.clip_id, rewrite.caption_index, rewrite.style) for rewrite in found[2:]] == [
        ("v1", 0, "long"),
        ("v1", 1, "short"),
    ]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "1 x line that is not JSON: line 2"),
        ("[1]", "1 x line that is not a JSON object: line 2"),
        (line(clip_id="v9"), "1 x clip that is not in the split: line 2: v9"),
        (line(caption_index=2), "1 x caption that the clip does not have: line 2: v1, caption 2"),
        (line(caption_index=True), "1 x caption_index that is not a number: line 2: True"),
        (line(caption_index="0"), "1 x caption_index that is not a number: line 2: '0'"),
        (line(caption_index=-1), "1 x caption_index that is not a number: line 2: -1"),
        (line(text=" "), "1 x empty text: line 2"),
        (line(text=None), "1 x text that is not text: line 2: null"),
        (line(text="\ud800"), r'1 x text that is not text: line 2: "\ud800"'),
        (line(style=""), "1 x empty style: line 2"),
        (line(clip_id=3), "1 x clip_id that is not text: line 2: 3"),
        (line(clip_id=["v1"]), '1 x clip_id that is not text: line 2: ["v1"]'),
        (line(text="a dog runs"), "1 x rewrite that is the caption itself: line 2: v1, caption 0"),
        (
            line(caption="a cat runs"),
            "1 x caption that differs from that of the split: line 2: v1, caption 0: 'a cat runs'",
        ),
        (line(caption=3), "1 x caption that is not text: line 2"),
        (line(provenance="me"), "1 x provenance that is not a JSON object: line 2: 'me'"),
        (line(provenance={}), "1 x missing field of provenance by: line 2"),
        (line(provenance={"by": " "}), "1 x empty by: line 2"),
        (line(provenance=BY | {"checked": "x"}), "line 2: 'checked' (did you mean checked_by?)"),
        (line(provenance=BY | {"how": 3}), "1 x how that is not text: line 2: 3"),
        (line(txt="x"), "1 x unknown field: line 2: 'txt' (did you mean text?)"),
        ({"clip_id": "v1"}, "1 x missing field provenance: line 2"),
        (line(caption_index=1), "1 x caption rewritten twice in one style: line 2 and line 1: v1, caption 1, short"),
    ],
)
def test_what_is_wrong(bad, message, tmp_path, references):
    path = write(tmp_path / "rewrites.jsonl", [line(caption_index=1), bad])
    with pytest.raises(AnnotationError) as caught:
        read_rewrites(path, references)
    assert message in str(caught.value)


def test_everything_at_once(tmp_path, references):
    path = write(tmp_path / "rewrites.jsonl", [line(clip_id="v9"), line(text=""), line(clip_id="v8"), "no", line()])
    with pytest.raises(AnnotationError) as caught:
        read_rewrites(path, references)
    assert str(caught.value).splitlines()[0].endswith("rewrites.jsonl: 4 problems")
    assert "2 x clip that is not in the split: line 1: v9, line 3: v8" in str(caught.value)
    assert "1 x empty text: line 2" in str(caught.value)


def test_no_file_and_an_empty_one(tmp_path, references):
    with pytest.raises(AnnotationError, match="1 x unreadable file"):
        read_rewrites(tmp_path / "none.jsonl", references)
    with pytest.raises(AnnotationError, match="1 x file without rewrites"):
        read_rewrites(write(tmp_path / "empty.jsonl", [""]), references)
    with pytest.raises(AnnotationError, match="1 x JSON array"):
        read_rewrites(write(tmp_path / "array.jsonl", ["[", "]"]), references)
