"""Odd tables as users bring them: each is read, or the message names what it is and what to do."""

import csv
import gzip
import io
import json
import re
import subprocess
import zipfile
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from waver.data.annotations import AnnotationError
from waver.data.annotations.table import load_table

NAMES = [f"video{number}.mp4" for number in range(5)]
CAPTIONS = [f"a man, {number}" for number in range(5)]
ROWS = [{"video": name, "caption": caption} for name, caption in zip(NAMES, CAPTIONS, strict=True)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)
ROW = '{"video": "video1.mp4", "caption": "a man"}'
INVISIBLE = ("\\u200b", "\\ufeff", "\\u202e\\u200f")
VATEX_ID, MSVD_ID = "Ptf_2VRj-V0_000122_000132", "-4wsuPCjDBc_5_15"


pack = partial(gzip.compress, mtime=0)
"""Without the time of day: the names of tests must be the same in all processes."""


def short_id(value):
    """Names a case by the beginning of its values; contents may be long and binary."""
    text = value if isinstance(value, str) else getattr(value, "__name__", repr(value))
    return re.sub(r"[^\x20-\x7e]+", " ", text)[:30]


def delimited(separator=",", rows=ROWS):
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=separator, lineterminator="\n")
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows)
    return stream.getvalue()


def parquet(**columns):
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream)
    return stream.getvalue()


def archive(name, content):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr(zipfile.ZipInfo(name), content)
    return stream.getvalue()


def objects(values, **options):
    return json.dumps({f"video{number}.mp4": value for number, value in enumerate(values)}, **options)


@pytest.fixture
def load(tmp_path, touch):
    """Loads a table with this name and content beside the videos of `ROWS`."""
    videos = touch(tmp_path / "videos", *NAMES)

    def load_content(name, content=None, **options):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        settings = {"validation_fraction": 0.05, "validation_seed": 0, "allow_missing_videos": False}
        return load_table(path, videos, **settings | options)

    return load_content


@pytest.fixture
def fail(load):
    def message(*arguments, **options):
        with pytest.raises(AnnotationError) as caught:
            load(*arguments, **options)
        return str(caught.value)

    return message


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.tsv", delimited("\t")),
        ("t.TSV", delimited("\t")),
        ("t.csv.gz", pack(delimited().encode())),
        ("t.tsv.gz", pack(delimited("\t").encode())),
        ("t.jsonl.gz", pack(JSONL.encode())),
        ("t.json.gz", pack(JSONL.encode())),
        ("t.csv", delimited().replace("\n", "\r")),
        ("t.csv", delimited().replace("\n", "\r\n").encode("utf-8-sig")),
        ("t.jsonl", JSONL.replace("\n", "\r")),
        ("t.csv", delimited() + "\n\n   \n"),
        (
            "t.parquet",
            parquet(video=pa.array(NAMES).dictionary_encode(), caption=pa.array(CAPTIONS, pa.large_string())),
        ),
    ],
    ids=short_id,
)
def test_tables_that_are_read(load, name, content):
    table = load(name, content)
    assert sorted(table["caption"].to_pylist()) == CAPTIONS
    assert len(set(table["path"].to_pylist())) == 5


WHOLE_FILES = {
    # T2 of the list of cases that once were wrong
    "list in Parquet": (
        "t.parquet",
        parquet(video=NAMES, caption=[[c, c] for c in CAPTIONS]),
        "column that holds lists",
    ),
    # T6
    "semicolons": ("t.csv", delimited(";"), "table separated by ;"),
    "semicolons after a byte order mark": ("t.csv", delimited(";").encode("utf-8-sig"), "table separated by ;"),
    "first line of Excel": ("t.csv", "sep=;\n" + delimited(";"), "table separated by ;"),
    "bars": ("t.csv", delimited("|"), "table separated by |"),
    # T7
    "UTF-16": ("t.csv", delimited().encode("utf-16"), "file in UTF-16 instead of UTF-8"),
    "UTF-16 without a mark": ("t.csv", delimited().encode("utf-16-le"), "file in UTF-16LE instead of UTF-8"),
    "Windows-1252": ("t.csv", delimited().replace("man", "señor").encode("cp1252"), "line that is not UTF-8"),
    # T8
    "array": ("t.json", json.dumps(ROWS, indent=1), "JSON array"),
    "packed array": ("t.json.gz", pack(json.dumps(ROWS).encode()), "JSON array"),
    "array of arrays": ("t.json", json.dumps([[*row.values()] for row in ROWS]), "JSON array of arrays"),
    "array of arrays with a header": (
        "t.json",
        json.dumps([["caption", "video"], *([row["caption"], row["video"]] for row in ROWS)]),
        "JSON array of arrays",
    ),
    "object with a list": ("t.json", json.dumps({"info": {}, "annotations": ROWS}, indent=1), "the list 'annotations'"),
    "video: captions": ("t.json", objects([c, c] for c in CAPTIONS), "JSON object {video: [captions]}"),
    "video: captions, indented": ("t.json", objects(([c] for c in CAPTIONS), indent=1), "{video: [captions]}"),
    "video: caption": ("t.jsonl", objects(CAPTIONS), "JSON object {video: caption}"),
    "video: object": ("t.json", objects({"caption": c} for c in CAPTIONS), "JSON object {video: object}"),
    "video: objects": ("t.json", objects([{"caption": c}] for c in CAPTIONS), "JSON object {video: [objects]}"),
    "ActivityNet": ("t.json", objects({"timestamps": [[0, 2]], "sentences": [c]} for c in CAPTIONS), "ActivityNet"),
    "column: values": ("t.json", json.dumps({"video": NAMES, "caption": CAPTIONS}), "JSON object {column: values}"),
    "column: index: value": (
        "t.json",
        json.dumps({"video": dict(enumerate(NAMES)), "caption": dict(enumerate(CAPTIONS))}),
        "JSON object {column: values}",
    ),
    "split: objects": ("t.json", json.dumps({"train": ROWS[:3], "test": ROWS[3:]}), "JSON object {split: [objects]}"),
    "split: video: captions": (
        "t.json",
        json.dumps({"train": {name: [c] for name, c in zip(NAMES, CAPTIONS, strict=True)}, "val": {}}),
        "JSON object {split: {video: ...}}",
    ),
    "COCO's form": (
        "t.json",
        json.dumps(
            {
                "images": [{"id": number, "file_name": name} for number, name in enumerate(NAMES)],
                "annotations": [{"id": 7, "image_id": n, "caption": c} for n, c in enumerate(CAPTIONS)],
            }
        ),
        "JSON object with the list 'annotations'",
    ),
    "objects of several lines": (
        "t.jsonl",
        "".join(json.dumps(row, indent=1) for row in ROWS),
        "of several lines each",
    ),
    # T10
    "more columns": (
        "t.csv",
        delimited(rows=[{**row, "id": 1, "url": "x"} for row in ROWS]),
        "unknown column: 'id', 'url'",
    ),
    "more columns, TSV": ("t.tsv", delimited("\t", [{**row, "id": 1} for row in ROWS]), "unknown column: 'id'"),
    "more columns, JSONL": ("t.jsonl", JSONL.replace("{", '{"id": "07", '), "unknown column: 'id'"),
    "more columns, packed": ("t.jsonl.gz", pack(JSONL.replace("{", '{"id": 1, ').encode()), "unknown column"),
    "more columns, Parquet": ("t.parquet", parquet(video=NAMES, caption=CAPTIONS, x=NAMES), "unknown column: 'x'"),
    "index of pandas": ("t.csv", delimited(rows=[{"": 1, **row} for row in ROWS]), "unless index=False"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE_FILES)
def test_the_command_in_a_message_writes_a_table_that_is_read(name, load, fail, tmp_path):
    file, content, expected = WHOLE_FILES[name]
    message = fail(file, content)
    assert expected in message
    assert message.count("\n") == 2, "one problem, and one thing to do"
    command = re.search(r"(python -c|iconv|gunzip|cat) .*", message)[0]
    subprocess.run(["bash", "-c", command], check=True, cwd=tmp_path)
    (written,) = (path for path in tmp_path.iterdir() if path.is_file() and path.name != file)
    table = load(written.name)
    assert set(table["video_id"].to_pylist()) == {f"video{number}" for number in range(5)}
    assert {re.sub("señor", "man", caption) for caption in table["caption"].to_pylist()} == set(CAPTIONS)


@pytest.mark.parametrize(
    ("name", "content", "expected", "remedy"),
    [
        ("t.csv", delimited("\t"), "table separated by tabs", "give it the name t.tsv"),
        ("t.tsv", delimited(), "table separated by ,", "give it the name t.csv"),
        ("t.csv", "sep=,\n" + delimited(), "first line `sep=...` of Excel", "delete the first line"),
        ("t.txt", delimited(), "table in a .txt file", "give it the name t.csv"),
        ("t.jsonl", delimited(), "table in a .jsonl file", "give it the name t.csv"),
        ("t.csv", JSONL, "file that holds JSON Lines", "give it the name t.jsonl"),
        ("t.csv", parquet(video=NAMES, caption=CAPTIONS), "file that is a Parquet file", "give it the name t.parquet"),
        ("t.csv", pack(delimited().encode()), "file that is a gzip file", "give it the name t.csv.gz"),
        ("t.csv.gz", pack(delimited().encode())[:50], "unreadable file", "exist and be readable"),
        ("t.csv", "".join(f"{row['video']},a man\n" for row in ROWS), "table without a header", "video,caption"),
        ("t.csv", "video0,a man\nvideo1,a dog\n", "table without a header", "video,caption"),
        ("t.tsv", "video0\ta man\nvideo1\ta dog\n", "table without a header", "video,caption"),
        (
            "t.csv",
            "# made by hand\n" + delimited(),
            "table whose header is not its first line",
            "delete the line before",
        ),
        ("t.csv", "\ufeffMy table,\n,\n" + delimited(), "table whose header is not", "delete the lines before it"),
        ("t.csv", '<?xml version="1.0"?>\n<rows></rows>', "file that is an XML file", "in JSONL, CSV, TSV or Parquet"),
        ("t.csv", "<table><tr><td>video</td></tr></table>", "file that is a web page", "download the file itself"),
        ("t.xlsx", archive("xl/workbook.xml", "x"), "file that is an Excel workbook", "save it as CSV UTF-8"),
        ("t.csv", archive("xl/workbook.xml", "x"), "file that is an Excel workbook", "save it as CSV UTF-8"),
        ("t.csv", archive("t.csv", delimited()), "file that is a ZIP archive", "unpack it"),
        ("t.csv", "<!DOCTYPE html>\n<html>", "file that is a web page", "download the file itself"),
        (
            "t.csv",
            "version https://git-lfs.github.com/spec/v1\nsize 12\n",
            "file that is a pointer of Git LFS",
            "git lfs pull",
        ),
        ("t.pkl", b"\x80\x04\x95abc", "file that is a pickle", "JSON Lines"),
        ("t.json", json.dumps(ROWS)[:100], "JSON that ends in the middle, in line 1", "download it again"),
        ("t.json", json.dumps(ROWS).replace("}, {", "} {"), "JSON array with a mistake", "correct it"),
        ("t.json", "[1, 2]", "JSON array without objects", "one object a line"),
        ("t.csv.gz", pack(b""), "empty file", "write one row per caption"),
        # T9
        (
            "MSRVTT_data.json",
            json.dumps({"videos": [{"video_id": "video0"}], "sentences": [{"video_id": "video0", "caption": "x"}]}),
            "original file of MSR-VTT",
            "use format: msrvtt",
        ),
        (
            "t.json",
            json.dumps({"images": [{"id": "video0"}], "annotations": [{"image_id": "video0", "caption": "x"}]}),
            "original file of MSR-VTT",
            "use format: msrvtt",
        ),
        ("t.csv", "key,vid_key,video_id,sentence\nret0,msr1,video1,a\n", "original file of MSR-VTT", "format: msrvtt"),
        ("t.csv", "video_id\nvideo0\nvideo1\n", "original file of MSR-VTT", "use format: msrvtt"),
        ("t.json", json.dumps([{"videoID": VATEX_ID, "enCap": ["a"]}]), "original file of VATEX", "use format: vatex"),
        ("t.json", json.dumps({VATEX_ID: {"enCap": ["a"]}}), "original file of VATEX", "use format: vatex"),
        ("t.json", json.dumps({MSVD_ID: ["a"]}), "original file of MSVD", "use format: msvd"),
        ("t.txt", f"{MSVD_ID}\n{MSVD_ID}\n", "list of the clips of MSVD, VATEX or DiDeMo", "use the format of that"),
        (
            "t.json",
            json.dumps([{"video": "x", "description": "a", "times": [[0, 0]]}]),
            "original file of DiDeMo",
            "use format: didemo",
        ),
    ],
    ids=short_id,
)
def test_files_that_are_something_else(fail, name, content, expected, remedy):
    message = fail(name, content)
    assert "1 problem\n" in message
    assert f" x {expected}" in message
    assert remedy in message


def test_a_folder_is_named(fail, tmp_path, touch):
    assert "1 x folder instead of a file" in fail("videos")
    touch(tmp_path / "msrvtt", "MSRVTT_data.json")
    assert "use format: msrvtt" in fail("msrvtt")
    touch(tmp_path / "own", "captions.csv")
    assert "such as captions.csv" in fail("own")


MISTAKES = {
    # T4, T5
    "quote that swallows rows: line 2, up to line 4: ": (
        ("t.csv", 'video,caption\nvideo1.mp4,"5 inch\nvideo2.mp4,b\nvideo3.mp4,d"\n'),
        ("t.csv", 'caption,video\n"5 inch,video1.mp4\nb,video2.mp4\nd",video3.mp4\n'),
        ("t.tsv", 'video\tcaption\nvideo1\t"5 inch\nvideo2\tb\nvideo3\td"\n'),
    ),
    "quote that swallows rows: line 2, up to line 3: ": (
        ("t.csv", 'video,caption,split\na.mp4,"5 inch,train\nb.mp4,c",train\n'),
    ),
    "quote that is never closed: line 3: ": (
        ("t.csv", 'video,caption\nvideo1.mp4,a\nvideo2.mp4,"b\n' + "video3.mp4,some words\n" * 9998),
        ("t.csv", 'video,caption\nvideo1.mp4,a\nvideo2.mp4,"b\n'),
    ),
    "quote in the middle of a field: line 2: ": (
        ("t.csv", 'video,caption\nvideo1.mp4,"a "big" dog"\n'),
        ("t.csv", 'video,caption\nvideo1.mp4,"a \\"big\\" dog"\n'),
    ),
    "header in the middle of the file: line 7\n": (
        ("t.csv", delimited() + delimited()),
        ("t.csv", delimited() + "\ufeff" + delimited()),  # two files that were joined
    ),
    "record that cannot be read: line 2 (field larger than field limit (131072)): ": (
        ("t.csv", "video,caption\nvideo1.mp4," + "x" * 140_000),
    ),
    "start_s that is not a number: line 2: '1_0'\n": (("t.csv", "video,caption,start_s\nvideo1.mp4,a,1_0\n"),),
    "line with more than one object: line 6\n": (("t.jsonl", JSONL + ROW + ROW), ("t.jsonl", f"{JSONL}{ROW}, {ROW}")),
    "line that ends with a comma: line 1, line 2,": (("t.jsonl", JSONL.replace("}\n", "},\n")),),
    "line in Python's notation: line 1, line 2,": (("t.jsonl", "".join(f"{row}\n" for row in ROWS)),),
    "object with a key twice: line 6 ('caption')\n": (("t.jsonl", JSONL + ROW.replace("}", ', "caption": "b"}')),),
    "line that is not JSON: line 6 (Invalid control character at)\n": (
        ("t.jsonl", JSONL + ROW.replace("a m", "a\tm")),
    ),
    # T10
    "column with another name: 'file_path' (video), 'sentence' (caption)\n": (
        ("t.jsonl", JSONL.replace('"caption"', '"sentence"').replace('"video"', '"file_path"')),
        ("t.csv", delimited().replace("video,caption", "file_path,sentence")),
    ),
    "column with another name: ' Video ' (video), ' Caption' (caption)\n": (
        ("t.csv", delimited().replace("video,caption", " Video , Caption")),
    ),
    "unknown column: 'start_ms' (start_s and end_s are in seconds)\n": (
        ("t.csv", "video,caption,start_ms\nvideo1.mp4,a,3\n"),
    ),
    "missing column: video\n      a table needs video (path) and caption; if video_id has the names": (
        ("t.csv", "video_id,caption\nvideo1.mp4,a\n"),
    ),
    "repeated column: caption\n": (("t.csv", "video,caption,caption\nvideo1.mp4,a,b\n"),),
    # T2
    "column that holds structs: start_s (struct<a: double>)\n": (
        ("t.parquet", parquet(video=NAMES, caption=CAPTIONS, start_s=[{"a": 1.0}] * 5)),
    ),
    "video that is not text: row 1: 7, row 2: 8\n      write a string: as numbers, names lose their leading zeros": (
        ("t.parquet", parquet(video=[7, 8], caption=["a", "b"])),
    ),
    # T3, T13
    "caption that holds a list: line 2: ": (
        ("t.csv", "video,caption\nvideo1.mp4,\"['a man', 'b 0']\"\n"),
        ("t.csv", 'video,caption\nvideo1.mp4,"[""a"", ""b""]"\n'),
        ("t.csv", "video,caption\nvideo1.mp4,array(['a'])\n"),
        ("t.jsonl", JSONL.replace('"a man, 1"', '["a man"]')),
    ),
    "caption that is a missing value: line 2: nan, line 3: None\n": (
        ("t.csv", "video,caption\nvideo1.mp4,nan\nvideo2.mp4,None\n"),
    ),
    "caption that is a missing value: line 2: NA, line 3: \\N\n": (
        ("t.tsv", "video\tcaption\nvideo1.mp4\tNA\nvideo2.mp4\t\\N\n"),
    ),
    "caption that is an error of Excel: line 2: #NAME?\n": (("t.csv", "video,caption\nvideo1.mp4,#NAME?\n"),),
    "style that is a missing value: line 2: nan\n": (("t.csv", "video,caption,style\nvideo1.mp4,a,nan\n"),),
    "video_id that is a missing value: line 2: NaN\n": (("t.csv", "video,caption,video_id\nvideo1.mp4,a,NaN\n"),),
    "split that is a missing value: line 2: NA\n": (("t.csv", "video,caption,split\nvideo1.mp4,a,NA\n"),),
    "end_s that is not a number: line 2: '1,200'\n": (("t.csv", 'video,caption,end_s\nvideo1.mp4,a,"1,200"\n'),),
    "end_s that is not in seconds: line 2: '0,200' (0.2)\n": (
        ("t.csv", 'video,caption,end_s\nvideo1.mp4,a,"0,200"\n'),
    ),
    "quote after a blank: line 2\n      delete the blanks between the comma and the quote": (
        ("t.csv", 'video,caption\nvideo1.mp4, "a dog"\n'),
        ("t.csv", 'video,caption\nvideo1.mp4, "a dog, running"\n'),
    ),
    "row with a wrong number of fields: line 2 (3)\n": (("t.csv", 'video,caption\nvideo1.mp4,a dog, "Rex" by name\n'),),
    "object with a comma after its last value: line 6\n": (("t.jsonl", JSONL + ROW.replace("}", ",}")),),
    "caption of invisible characters only: line 2: '\\u200b', line 3: '\\ufeff', line 4: '\\u202e\\u200f'\n": (
        ("t.jsonl", f"{JSONL.splitlines()[0]}\n" + "".join(ROW.replace("a man", c) + "\n" for c in INVISIBLE)),
    ),
    "caption with a NUL character: line 2: 'a \\x00'\n": (("t.jsonl", JSONL.replace("a man, 1", "a \\u0000")),),
}


@pytest.mark.slow
@pytest.mark.parametrize("expected", MISTAKES)
def test_mistakes_in_lines_and_columns(fail, expected):
    for name, content in MISTAKES[expected]:
        assert f" x {expected}" in fail(name, content)


def test_line_breaks_in_captions_are_no_swallowed_rows(load):
    captions = ["over\ntwo lines", "a list:\n1, one\n2, two", "v1.0\r\nv2.0, final", "one,\n\ntwo", 'he said "a,\nb"']
    rows = [dict(row, caption=caption) for row, caption in zip(ROWS, captions, strict=True)]
    assert set(load("t.csv", delimited(rows=rows))["caption"].to_pylist()) == set(captions)


def test_one_mistake_hides_no_other(fail):
    """The case of item 20: an empty caption hid the unknown split, and that a clip is in two splits."""
    table = "video,{caption},split\nvideo1.mp4,a,train\nvideo1.mp4,,test\nvideo2.mp4,,dev\nvideo3,x,train\n"
    expected = (
        "2 x empty caption: line 3, line 4\n",
        "1 x unknown split: line 4: 'dev'\n",
        "1 x clip in two splits: video1: train (line 2), test (line 3)\n",
        "1 x video without a file: line 5: 'video3' ('video3.mp4' is there)\n",
    )
    for caption in ("caption", "title"):
        message = fail("t.csv", table.format(caption=caption))
        assert all(problem in message for problem in expected)
    assert "1 x column with another name: 'title' (caption)\n" in message


def test_a_file_with_many_wrong_quotes_is_given_up(fail):
    message = fail("t.csv", "video,caption\n" + 'video1.mp4,"a "b" c"\n' * 100)
    assert "20 x quote in the middle of a field: line 2: " in message
    assert "1 x rest of a file that was not read: from line 22 on\n" in message


@pytest.mark.parametrize(
    ("value", "meant"),
    [("0:01:30", "90"), ("01:30", "90"), ("1:00:00.5", "3600.5"), ("00:00:02,5", "2.5"), ("2,5", "2.5"), ("3 s", "3")],
    ids=short_id,
)
def test_times_that_are_not_in_seconds_are_refused_with_what_to_write(fail, value, meant):
    rows = [dict(row, end_s=value) for row in ROWS]
    message = fail("t.csv", delimited(rows=rows))
    assert f"5 x end_s that is not in seconds: line 2: '{value}' ({meant}), line 3" in message
    assert "write the number in brackets\n" in message + "\n"


def test_durations_in_parquet_are_refused_with_what_to_write(fail):
    message = fail("t.parquet", parquet(video=NAMES, caption=CAPTIONS, start_s=pa.array([1500] * 5, pa.duration("ms"))))
    assert (
        "5 x start_s that is not in seconds: row 1: datetime.timedelta(seconds=1, microseconds=500000) (1.5)" in message
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        # T11; test_similar_names.py has every difference
        (lambda name: name.removesuffix(".mp4"), "5 of 5 are there with .mp4 added: write them so in the column video"),
        (lambda name: f"videos/{name}", "5 of 5 are there without 'videos/' in front: write them so"),
        (lambda name: f"/old/{name}", "5 of 5 are there without '/old/' in front: write them so"),
        (lambda name: f"https://example.org/watch?v={name}", "download them into "),
        (
            lambda name: f"other {name}",
            "under this path, or set data.allow_missing_videos to count them as misses (the ",
        ),
    ],
    ids=short_id,
)
def test_missing_videos_are_compared_with_what_is_there(load, fail, caplog, change, expected):
    table = delimited(rows=[dict(row, video=change(row["video"])) for row in ROWS])
    message = fail("t.csv", table)
    assert "5 problems\n" in message
    assert expected in message
    if not change("x.mp4").startswith("/"):
        load("t.csv", table, allow_missing_videos=True)
        assert caplog.text.count(", 5 of 5 are there with") == expected.startswith("5 of 5"), "not in silence"


def test_gifs_are_videos_where_the_table_names_them(tmp_path, load, fail, touch):
    for name in NAMES:
        (tmp_path / "videos" / name).unlink()
    touch(tmp_path / "videos", *(name.replace("mp4", "gif") for name in NAMES))
    assert load("t.csv", delimited().replace(".mp4", ".gif")).num_rows == 5
    assert "5 of 5 are there with .gif in place of .mp4" in fail("t.csv", delimited())
