"""Damaged and hostile files: whatever stands in them, there is a table of paths below the folder of videos, or one error.

Files of each format, whole, are cut off, overwritten and changed in the middle of their structure.
"""

import csv
import gzip
import io
import json
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from waver.data.annotations import DATA_SETS, AnnotationError
from waver.data.annotations.didemo import load_didemo
from waver.data.annotations.msrvtt import load_msrvtt
from waver.data.annotations.msvd import load_msvd
from waver.data.annotations.published import PublishedPart, PublishedSplit, split_digest
from waver.data.annotations.table import load_table
from waver.data.annotations.vatex import load_vatex

HELD_OUT = {"validation_fraction": 0.05, "validation_seed": 0}
DEEP = json.loads("[" * 300 + "]" * 300)
HOSTILE = [
    "../../etc/passwd", "..", ".", "/etc/passwd", "//x", "~/x", "a/../../b", "a\\..\\b", "C:\\x", "\x00", "a\x00.mp4",
    "\ud800", "a\udfffb", "\ufeff", "\u202e", "\u2028", "-", "", " ", "\n", "video1\n", "video1/..",
    "x" * 5000, "video" + "9" * 5000,
    "-4wsuPCjDBc_5_15/..", "-4wsuPCjDBc_5_15\x00", "100@N00_1_1a.", "100@N00_1_1a.mov/../../x", "NaN", "=1+1",
    0, -1, 10**30, 1.5, float("nan"), float("inf"), True, None, [], {}, [[]], DEEP, {"enCap": 7}, {"videoID": ["x"]},
]  # fmt: skip
VIDEOS = [f"v{n}.mp4" for n in range(4)]

MSRVTT_SENTENCES = [{"video_id": f"video{n}", "caption": f"caption {n}"} for n in range(4)]
MSVD_CLIPS = ["-4wsuPCjDBc_5_15", "_UqnFL-_Q1c_0_8", "mv89psg6zh4_33_46"]
VATEX_CLIPS = [f"a-_b{n}67890x_{n:06}_{n + 10:06}" for n in range(4)]
DIDEMO_NAMES = ["100@N00_1_1a.mov", "101@N00_1_1b.", "102@N00_1_1c.avi"]


def didemo_entries(name):
    return [{"video": name, "description": text, "times": [[0, 0]]} for text in ("first.", "then.")]


def didemo_csv(name):
    return f"success,video_path,starts,ends,text,formatted_data\r\nTrue,/home/x/{name},[0],[31],first. then.,y\r\n"


ROWS = [
    {
        "video": video,
        "caption": "a dog",
        "start_s": 1.0,
        "end_s": 2.5,
        "split": "train",
        "style": "x",
        "video_id": video[:2],
    }
    for video in VIDEOS
]


def lines(*ids):
    return "".join(f"{id_}\n" for id_ in ids)


def lists(ids):
    return {"train_list.txt": lines(*ids[2:]), "val_list.txt": lines(ids[0]), "test_list.txt": lines(ids[1])}


# Format -> file -> content: text, or what a JSON file holds.
FILES = {
    "msrvtt": {
        "MSRVTT_data.json": {"videos": [{"video_id": "video0"}], "sentences": MSRVTT_SENTENCES},
        "MSRVTT_train.9k.csv": "video_id\n" + lines("video0", "video1"),
        "MSRVTT_JSFUSION_test.csv": "key,vid_key,video_id,sentence\nret0,msr2,video2,a query\nret1,msr3,video3,another\n",
    },
    "msvd": {"captions_msvd.json": {clip_id: [f"a {clip_id}", "b"] for clip_id in MSVD_CLIPS}, **lists(MSVD_CLIPS)},
    "vatex": {
        "vatex_training_v1.0.json": [
            {"videoID": clip_id, "enCap": ["a", "b"], "chCap": ["男"]} for clip_id in VATEX_CLIPS[2:]
        ],
        "vatex_validation_v1.0.json": [{"videoID": clip_id, "enCap": ["a", "b"]} for clip_id in VATEX_CLIPS[:2]],
        "test1k5_sec_list.txt": lines(VATEX_CLIPS[0]),
        **lists(VATEX_CLIPS),
    },
    "vatex, other schema": {"ref_captions.json": {clip_id: ["a"] for clip_id in VATEX_CLIPS}, **lists(VATEX_CLIPS)},
    "didemo": {
        "train_data.json": didemo_entries(DIDEMO_NAMES[2]),
        "didemo_val_label.csv": didemo_csv(DIDEMO_NAMES[0]),
        "test_data.json": didemo_entries(DIDEMO_NAMES[1]),
        **lists(DIDEMO_NAMES),
    },
    "table.jsonl": {"captions.jsonl": ROWS},
    "table.csv": {"captions.csv": ROWS},
    "table.parquet": {"captions.parquet": ROWS},
}


def load(kind, folder, videos):
    if kind.startswith("table"):
        return load_table(folder / f"captions{kind[5:]}", videos, allow_missing_videos=True, **HELD_OUT)
    if kind == "msrvtt":
        return load_msrvtt(folder, videos, split="9k", allow_missing_videos=True, **HELD_OUT)
    if kind == "msvd":
        return load_msvd(folder, videos, allow_missing_videos=True)
    if kind == "didemo":
        return load_didemo(folder, videos, allow_missing_captions=True, allow_missing_videos=True)
    return load_vatex(folder, videos, split="1k5" if kind == "vatex" else "hgr", allow_missing_videos=True)


def encode(name, content):
    """The bytes of a file."""
    if name.endswith((".csv", ".parquet")) and not isinstance(content, str | list):
        content = str(content)
    if name.endswith(".csv") and not isinstance(content, str):
        stream = io.StringIO(newline="")
        writer = csv.writer(stream)
        writer.writerow(ROWS[0])
        writer.writerows(list(row.values()) if isinstance(row, dict) else [row] for row in content)
        return stream.getvalue().encode("utf-8", "surrogatepass")
    if name.endswith(".parquet"):
        stream = io.BytesIO()
        rows = [row for row in content if isinstance(row, dict)]
        columns = {key: [row.get(key) for row in rows] for row in rows for key in row}
        arrays = {}
        for key, values in columns.items():
            name_of_column = key.encode("utf-8", "replace").decode()
            try:
                arrays[name_of_column] = pa.array([None if value == {} else value for value in values])
            except (pa.ArrowException, UnicodeEncodeError, OverflowError):  # values of types that do not go together
                arrays[name_of_column] = pa.array([ascii(value) for value in values])
        pq.write_table(pa.table(arrays), stream)
        return stream.getvalue()
    if isinstance(content, str):
        return content.encode("utf-8", "surrogatepass")
    if name.endswith(".jsonl") and isinstance(content, list):
        return "\n".join(map(json.dumps, content)).encode()
    return json.dumps(content).encode()


def places(content, path=()):
    """The paths to all nodes of a structure."""
    yield path
    if isinstance(content, dict | list):
        for key in content if isinstance(content, dict) else range(len(content)):
            yield from places(content[key], (*path, key))


def replaced(content, path, value, as_key):
    """The structure with another value, or another key, at a path."""
    if not path:
        return value
    first, *rest = path
    copy = content.copy()
    if not rest and as_key and isinstance(copy, dict) and isinstance(value, str):
        copy[value] = copy.pop(first)
    else:
        copy[first] = replaced(content[first], rest, value, as_key)
    return copy


@st.composite
def damaged(draw, files):
    """A file of the format, and what stands in it now; it may also be compressed."""
    name = draw(st.sampled_from(sorted(files)))
    content, how = files[name], draw(st.sampled_from(["structure", "structure", "lines", "cut", "bytes", "gone"]))
    if how == "gone":
        return name, None
    hostile = st.sampled_from(HOSTILE) | st.text(max_size=20)
    if how == "structure" and not isinstance(content, str):
        for _ in range(draw(st.integers(1, 2))):
            place = draw(st.sampled_from(list(places(content))))
            content = replaced(content, place, draw(hostile), draw(st.booleans()))
    data = encode(name, content)
    if how == "lines" or (how == "structure" and isinstance(content, str)):
        parts = data.split(b"\n")
        line = str(draw(hostile)).encode("utf-8", "surrogatepass")
        parts[draw(st.integers(0, len(parts) - 1))] = line
        data = b"\n".join(parts)
    if how == "cut":
        data = data[: draw(st.integers(0, len(data)))]
    if how == "bytes":
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.binary(min_size=1, max_size=8)) + data[at + draw(st.integers(0, 8)) :]
    if name.endswith(".json") and draw(st.integers(0, 5)) == 0:
        packed = gzip.compress(data)
        return f"{name}.gz", packed[: draw(st.sampled_from([len(packed), len(packed) // 2]))]
    return name, data


def publish_the_lists(monkeypatch, folder):
    """Publishes the lists as they are, so that ids are rejected only for their format."""

    def publish(data_set, split, parts):
        monkeypatch.setitem(DATA_SETS[data_set].published_splits, split, PublishedSplit("a protocol", parts))

    def read_part(names, cut=lambda line: line):
        text = "".join((folder / name).read_text(errors="replace") for name in names if (folder / name).is_file())
        ids = {cut(line.strip()) for line in text.split("\n") if line.strip()}
        digest = split_digest(id_.encode("utf-8", "replace").decode() for id_ in ids)
        return PublishedPart(len(ids), None, digest)

    parts = {"train": "train_list.txt", "validation": "val_list.txt", "test": "test_list.txt"}
    stem = {"didemo": lambda line: os.path.splitext(line)[0]}  # noqa: PTH122
    for key in (("msvd", "official"), ("vatex", "hgr"), ("didemo", "official")):
        published = {part: read_part([name], stem.get(key[0], lambda line: line)) for part, name in parts.items()}
        publish(*key, published)
    ids = {"train": ["video0", "video1"], "test": ["video2", "video3"]}
    published = {part: PublishedPart(2, None, split_digest(listed)) for part, listed in ids.items()}
    publish("msrvtt", "9k", published)
    ids = {"train": VATEX_CLIPS[2:], "validation": VATEX_CLIPS[1:2], "test": VATEX_CLIPS[:1]}
    published = {part: PublishedPart(len(listed), None, split_digest(listed)) for part, listed in ids.items()}
    publish("vatex", "1k5", published)


def outcome(kind, files):
    """The table that was read from these files, checked, or the message, checked."""
    with tempfile.TemporaryDirectory() as base, pytest.MonkeyPatch.context() as monkeypatch:
        folder, videos = Path(base, "annotations"), Path(base, "videos")
        folder.mkdir()
        videos.mkdir()
        (videos / VIDEOS[0]).touch()
        for name, data in files.items():
            (folder / name).write_bytes(data)
        publish_the_lists(monkeypatch, folder)
        try:
            table = load(kind, folder, videos)
        except AnnotationError as error:
            message = str(error)
            assert message.startswith(f"{folder}")
            assert message.encode().decode() == message
            assert " problem" in message
            assert "Traceback" not in message
            assert len(message) < 20_000
            return message
        for path in set(table["path"].to_pylist()):
            assert "\x00" not in path
            # One's own table may name a file elsewhere by its absolute path, if it is there.
            elsewhere = kind.startswith("table") and Path(path).is_file()
            assert elsewhere or os.path.normpath(path).startswith(f"{videos}{os.sep}")
        return table


@pytest.mark.parametrize("kind", FILES)
def test_whole_files_are_read(kind):
    table = outcome(kind, {name: encode(name, content) for name, content in FILES[kind].items()})
    assert isinstance(table, pa.Table), table


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_damaged_files_give_a_table_or_an_error(kind):
    whole = {name: encode(name, content) for name, content in FILES[kind].items()}

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(damage=damaged(FILES[kind]))
    def check(damage):
        name, data = damage
        files = {other: content for other, content in whole.items() if other != name.removesuffix(".gz")}
        outcome(kind, files if data is None else {**files, name: data})

    check()


MONSTERS = {
    "deep list": b"[" * 100_000,
    "deep object": b'{"a":' * 100_000,
    "long number": b"1" * 100_000,
    "long string": b'["' + b"x" * 3_000_000 + b'"]',
    "NaN": b"NaN",
    "half a character": b'"\\ud800"',
    "UTF-16": b"\xff\xfe",
}


@pytest.mark.parametrize("kind", ["msrvtt", "msvd", "vatex", "didemo"])
@pytest.mark.parametrize("monster", MONSTERS)
def test_extreme_json_is_an_error(kind, monster):
    whole = {name: encode(name, content) for name, content in FILES[kind].items()}
    name = next(name for name in whole if name.endswith(".json"))
    message = outcome(kind, {**whole, name: MONSTERS[monster]})
    kinds = (
        "unreadable JSON file",
        "unknown JSON schema",
        "entry without videoID and enCap",
        "id that is not of DiDeMo",
    )
    assert any(f"1 x {kind}: " in message for kind in kinds)


@pytest.mark.parametrize("kind", ["msvd", "vatex", "didemo"])
@pytest.mark.parametrize("id_", [value for value in HOSTILE if isinstance(value, str) and value.strip()])
def test_hostile_ids_are_rejected_even_in_a_published_list(kind, id_):
    """In a list, and in the file of captions as well."""
    whole = dict(FILES[kind])
    name = next(name for name in whole if name.endswith(".json"))
    whole["train_list.txt"] += f"{id_}\n"
    key = {"msvd": None, "vatex": "videoID", "didemo": "video"}[kind]
    if key:
        whole[name] = [*whole[name], {**whole[name][0], key: id_}]
    else:
        whole[name] = {**whole[name], id_: ["a caption"]}
    message = outcome(kind, {name: encode(name, content) for name, content in whole.items()})
    if id_ == "100@N00_1_1a." and kind == "didemo":  # the name of another video, without its ending
        assert "1 x video in two splits: 100@N00_1_1a (train, validation)\n" in message
    else:
        assert " x id that is not of " in message
