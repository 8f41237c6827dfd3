"""VATEX in its original files: the lists of a split, and English captions in one of three schemas.

The official test captions are not public, so papers test on a part of the official validation set. Most use the halves of
HGR (Chen et al., CVPR 2020), some the 1,500 clips of CLIP2Video ("1k5").
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa

from waver.data.annotations.captions import caption_table
from waver.data.annotations.lists import (
    LIST_FILES,
    ORIGINAL_FILE,
    IdFormat,
    check_captions,
    check_lists,
    read_captions,
    read_list,
    youtube_captions,
)
from waver.data.annotations.options import CommonData
from waver.data.annotations.published import PublishedPart, PublishedSplit
from waver.data.annotations.reading import Problems, check_folder, find_file, read_json, report_unknown_schema
from waver.data.annotations.videos import find_videos

CAPTION_FILES = (
    ("vatex_training_v1.0.json", "vatex_validation_v1.0.json"),
    ("vatex_data.json",),
    ("ref_captions.json",),
)
"""Alternatives, each with the captions of all clips; the first whose files all exist is read."""
TEST_1K5 = "test1k5_sec_list.txt"
_PUBLIC_TEST = "vatex_public_test_english_v1.1.json"

_PUBLISHED_TRAIN = PublishedPart(25_991, 259_910, "abd0450473f9f784")
_ID = IdFormat(
    "VATEX",
    re.compile(r"[A-Za-z0-9_-]{11}_[0-9]{6}_[0-9]{6}"),
    "ids are <YouTube id>_<start>_<end>, such as Ptf_2VRj-V0_000122_000132",
)
_SCHEMAS = (
    "three schemas are understood: a list of {videoID, enCap}, an object clip -> {enCap}, "
    "an object clip -> list of captions"
)


class VatexData(CommonData):
    """VATEX in its original files: English captions and the lists of the split."""

    format: Literal["vatex"]
    split: Literal["hgr", "1k5"] = "hgr"
    """hgr and 1k5 train on the same 25,991 clips. hgr validates and tests on the halves that HGR made of the official
    validation set, 1,500 clips each; 1k5 tests on the 1,500 clips of CLIP2Video and validates on the rest."""
    published_splits: ClassVar[Mapping[str, PublishedSplit]] = {
        "hgr": PublishedSplit(
            "VATEX HGR",
            {
                "train": _PUBLISHED_TRAIN,
                "validation": PublishedPart(1500, 15_000, "561ef7c7f03a2e6e"),
                "test": PublishedPart(1500, 15_000, "5c359709225c0551"),
            },
        ),
        # Test is CLIP2Video's list; validation is the rest of the two halves of HGR.
        "1k5": PublishedSplit(
            "VATEX 1k5 (CLIP2Video)",
            {
                "train": _PUBLISHED_TRAIN,
                "validation": PublishedPart(1500, 15_000, "2d92cd2cc777f707"),
                "test": PublishedPart(1500, 15_000, "df88dab1df5fc178"),
            },
        ),
    }

    def load(self) -> pa.Table:
        """See `load_vatex`."""
        return load_vatex(
            self.annotations,
            self.videos,
            split=self.split,
            allow_missing_videos=self.allow_missing_videos,
        )


def load_vatex(
    annotations: Path, videos: Path, *, split: Literal["hgr", "1k5"], allow_missing_videos: bool
) -> pa.Table:
    """Reads the English captions of VATEX: 25,991 clips for training, 1,500 for validation and 1,500 for test.

    Every caption of a test clip is a query (15,000 queries). Captions are unchanged.

    Args:
        annotations: folder with `LIST_FILES` of HGR, for 1k5 also `TEST_1K5`, and one of `CAPTION_FILES` (also .gz).
        videos: folder with `<clip>.mp4` ..., at any depth, with any extension of `VIDEO_SUFFIXES`.
        split: hgr tests on HGR's list; 1k5 tests on CLIP2Video's list and validates on the rest of HGR's two halves.
        allow_missing_videos: whether a clip without a file gets the path `videos/<clip>.mp4` instead of an error.

    Returns:
        A table of `CAPTIONS_SCHEMA` in the order of the lists; `clip_id` is the whole id, `video_id` the YouTube id.

    Raises:
        AnnotationError: with every problem.
    """
    problems, published = Problems(), VatexData.published_splits[split]
    content = [*LIST_FILES.values(), *([TEST_1K5] if split == "1k5" else []), _caption_files()]
    check_folder(annotations, ", ".join(content), problems)
    lists = _read_lists(annotations, split, problems)
    wanted = [clip_id for clips in lists.values() for clip_id in clips]
    captions_of = _read_captions(annotations, wanted, problems)
    if captions_of is not None:
        captions = {part: {clip_id: captions_of.get(clip_id, []) for clip_id in lists[part]} for part in lists}
        check_captions(published, captions, problems)
    file_name_of = {clip_id: f"{clip_id}.mp4" for clip_id in wanted}
    path_of = find_videos(file_name_of, videos.absolute(), allow_missing=allow_missing_videos, problems=problems)
    problems.raise_if_any(annotations)

    return caption_table(youtube_captions(lists, captions_of, path_of), validation="own")


def _read_lists(folder: Path, split: str, problems: Problems) -> Mapping[str, list[str]]:
    """Returns the lists of the split that can be read; adds a problem for each that is not the published one."""
    files = dict(LIST_FILES)
    read = {part: read_list(folder / name, _ID, problems) for part, name in files.items()}
    lists = {part: clips for part, clips in read.items() if clips is not None}
    if split == "1k5":
        halves = [*lists.pop("validation", []), *lists.pop("test", [])]
        test = read_list(folder / TEST_1K5, _ID, problems)
        if test is not None:
            chosen = set(test)
            if read["validation"] is not None and read["test"] is not None:
                lists["validation"] = list(dict.fromkeys(clip_id for clip_id in halves if clip_id not in chosen))
            lists["test"] = test
        rest = f"the rest of {LIST_FILES['validation']} and {LIST_FILES['test']}"
        files |= {"validation": rest, "test": TEST_1K5}
    check_lists(VatexData.published_splits[split], lists, files, problems)
    return lists


def _caption_files() -> str:
    return ", or ".join(" and ".join(names) for names in CAPTION_FILES) + " (each also as .gz)"


def _read_captions(folder: Path, clip_ids: list[str], problems: Problems) -> dict[str, list[str]] | None:
    found_files = [[find_file(folder, [name]) for name in names] for names in CAPTION_FILES]
    complete = ([path for path in paths if path] for paths in found_files if all(paths))
    if (paths := next(complete, None)) is None:
        remedy = f"put it into {folder}"
        if find_file(folder, [_PUBLIC_TEST]):
            remedy += f"; {_PUBLIC_TEST} does not help, its 6,000 clips are in none of the lists"
        problems.add("missing file", remedy, _caption_files())
        return None
    found: dict[str, Any] = {}
    for path in paths:
        is_read, content = read_json(path, problems)
        if not is_read or not _add_clips(found, content, path, problems):
            return None
    return read_captions(clip_ids, found, " and ".join(path.name for path in paths), problems)


def _add_clips(found: dict[str, Any], content: Any, path: Path, problems: Problems) -> bool:
    """Adds clip -> value of its captions to `found`; returns whether the file has one of the schemas."""
    if isinstance(content, list):
        for number, record in enumerate(content):
            where = f"entry {number} of {path.name}"
            if not isinstance(record, dict) or not {"videoID", "enCap"} <= record.keys():
                problems.add("entry without videoID and enCap", _SCHEMAS, where)
            elif not _ID.accepts(record["videoID"]):
                _ID.reject(record["videoID"], where, problems)
            elif record["videoID"] in found:
                problems.add("video with two lists of captions", ORIGINAL_FILE, f"{where}: {record['videoID']}")
            else:
                found[record["videoID"]] = record["enCap"]
        return True
    if not isinstance(content, dict) or not any(map(_ID.accepts, content)):
        report_unknown_schema(path, content, _SCHEMAS, problems)
        return False
    for clip_id, value in content.items():
        found[clip_id] = value.get("enCap") if isinstance(value, dict) else value
    return True
