"""MSR-VTT in its original files.

The captions are in `MSRVTT_data.json`, which has one of two incompatible schemas: the original one (`videos`, `sentences`)
or a COCO-like one (`images`, `annotations`). CSV files list the videos of each split; that of 1k-A, the usual test set, also
gives the one caption that is the query of each of its 1,000 videos.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import pyarrow as pa

from waver.data.annotations.captions import Caption, caption_table, choose_validation_videos
from waver.data.annotations.lists import ORIGINAL_FILE, IdFormat, check_captions, check_lists, unique_ids
from waver.data.annotations.options import HeldOutData
from waver.data.annotations.published import PublishedPart, PublishedSplit
from waver.data.annotations.reading import (
    Problems,
    caption_defect,
    check_folder,
    excerpt,
    find_file,
    read_json,
    read_text,
    report_unknown_schema,
)
from waver.data.annotations.table_files.delimited import read_csv
from waver.data.annotations.videos import find_videos

CAPTION_FILES = ("MSRVTT_data.json", "MSR_VTT.json")
TEST_1K_A = "MSRVTT_JSFUSION_test.csv"
SPLIT_FILES: Mapping[str, Mapping[str, str]] = {
    "9k": {"train": "MSRVTT_train.9k.csv", "test": TEST_1K_A},
    "7k": {"train": "MSRVTT_train.7k.csv", "test": TEST_1K_A},
    "full": {
        "train": "MSRVTT_train.full.csv",
        "validation": "MSRVTT_val.full.csv",
        "test": "MSRVTT_test.full.csv",
    },
}

_PUBLISHED_1K_A = PublishedPart(1000, 1000, "49a09fb68f7ec52b")
_ID = IdFormat("MSR-VTT", re.compile(r"video[0-9]{1,4}"), "ids are video0 ... video9999")


class MsrvttData(HeldOutData):
    """MSR-VTT in its original files: `MSRVTT_data.json` and the csv files of the split."""

    format: Literal["msrvtt"]
    split: Literal["9k", "7k", "full"] = "9k"
    """9k and 7k train on 9,000 or 7,010 videos and test on 1k-A (`MSRVTT_JSFUSION_test.csv`); full is the official split of
    6,513, 497 and 2,990 videos."""
    published_splits: ClassVar[Mapping[str, PublishedSplit]] = {
        "9k": PublishedSplit(
            "MSR-VTT 1k-A, 9k train",
            {"train": PublishedPart(9000, 180_000, "7dce4e3e1af1eded"), "test": _PUBLISHED_1K_A},
        ),
        "7k": PublishedSplit(
            "MSR-VTT 1k-A, 7k train",
            {"train": PublishedPart(7010, 140_200, "81ea9208d6c64212"), "test": _PUBLISHED_1K_A},
        ),
        "full": PublishedSplit(
            "MSR-VTT full",
            {
                "train": PublishedPart(6513, 130_260, "5cac8e8a55a87350"),
                "validation": PublishedPart(497, 9_940, "be5b1994f643740b"),
                "test": PublishedPart(2990, 59_800, "916e9b2dd9a45181"),
            },
        ),
    }

    def load(self) -> pa.Table:
        """See `load_msrvtt`."""
        return load_msrvtt(
            self.annotations,
            self.videos,
            split=self.split,
            validation_fraction=self.validation_fraction,
            validation_seed=self.validation_seed,
            allow_missing_videos=self.allow_missing_videos,
        )


def load_msrvtt(
    annotations: Path,
    videos: Path,
    *,
    split: Literal["9k", "7k", "full"],
    validation_fraction: float | None,
    validation_seed: int,
    allow_missing_videos: bool,
) -> pa.Table:
    """Reads the captions of a published split of MSR-VTT.

    The split must be complete, so that results can be compared with published ones; write a part of it as a table. Captions
    are unchanged, and repeated captions of a video are kept.

    Args:
        annotations: folder with one of `CAPTION_FILES` (also .gz) and the csv files of the split (`SPLIT_FILES`).
        videos: folder with `video0.mp4` ..., at any depth, with any extension of `VIDEO_SUFFIXES`.
        split: 9k and 7k train on all captions of the videos in their csv, and test on 1k-A with one caption per video; full
            is the official split (6,513, 497 and 2,990 videos) with all captions.
        validation_fraction: share of the training videos held out for validation, None for the usual one (0.05); full
            ignores it and has its own split.
        validation_seed: seed for choosing them.
        allow_missing_videos: whether a video without a file gets the path `videos/<id>.mp4` instead of an error.

    Returns:
        A table of `CAPTIONS_SCHEMA` in the order of the csv files; `clip_id` is `video_id`, paths are absolute.

    Raises:
        AnnotationError: with every problem.
    """
    problems, published = Problems(), MsrvttData.published_splits[split]
    check_folder(annotations, f"{CAPTION_FILES[0]} and the csv files of the split", problems)
    captions_of = _read_captions(annotations, problems)
    files = SPLIT_FILES[split]
    read = {part: _read_list(annotations / name, problems) for part, name in files.items()}
    lists = {part: listed for part, listed in read.items() if listed is not None}
    check_lists(published, {part: listed.keys() for part, listed in lists.items()}, files, problems)
    captions: dict[str, dict[str, list[str]]] = {}
    if captions_of is not None:
        for part, listed in lists.items():
            captions[part] = {
                video_id: captions_of.get(video_id, []) if own_caption is None else [own_caption]
                for video_id, own_caption in listed.items()
            }
        check_captions(published, captions, problems)
    file_name_of = {video_id: f"{video_id}.mp4" for listed in lists.values() for video_id in listed}
    path_of = find_videos(file_name_of, videos.absolute(), allow_missing=allow_missing_videos, problems=problems)
    problems.raise_if_any(annotations)

    split_of = {video_id: part for part, listed in lists.items() for video_id in listed}
    if "validation" not in lists:
        chosen = choose_validation_videos(lists["train"], validation_fraction, validation_seed)
        split_of.update(dict.fromkeys(chosen, "validation"))
    rows = (
        Caption(video_id, video_id, path_of[video_id], None, None, caption, split_of[video_id], None)
        for listed in captions.values()
        for video_id, own_captions in listed.items()
        for caption in own_captions
    )
    return caption_table(rows, validation="own" if "validation" in lists else "held out of train")


def _read_captions(folder: Path, problems: Problems) -> dict[str, list[str]] | None:
    """Returns the captions by video, in file order, or None if they cannot be read."""
    path = find_file(folder, CAPTION_FILES)
    if path is None:
        problems.add("missing file", f"put it into {folder}", f"{' or '.join(CAPTION_FILES)} (each also as .gz)")
        return None
    is_read, content = read_json(path, problems)
    if not is_read:
        return None
    entries, id_key = _find_entries(content)
    if entries is None:
        remedy = (
            "two schemas are understood: an object with a list `sentences` of {video_id, caption} (beside `videos`), "
            "or with a list `annotations` of {image_id, caption} (beside `images`)"
        )
        report_unknown_schema(path, content, remedy, problems)
        return None
    captions_of: dict[str, list[str]] = {}
    for number, entry in enumerate(entries):
        where = f"entry {number} of {path.name}"
        video_id, caption = (entry.get(id_key), entry.get("caption")) if isinstance(entry, dict) else (None, None)
        if not _ID.accepts(video_id):
            _ID.reject(video_id, f"{where}, {id_key}", problems)
        elif kind := caption_defect(caption):
            problems.add(kind, ORIGINAL_FILE, f"{where}: {video_id} {excerpt(caption)}")
        else:
            captions_of.setdefault(video_id, []).append(caption)
    return captions_of


def _find_entries(content: Any) -> tuple[list | None, str]:
    """Returns the list of captions, in either schema, and the key of the video id in its entries."""
    for name, id_key in (("sentences", "video_id"), ("annotations", "image_id")):
        if isinstance(content, dict) and isinstance(content.get(name), list):
            return content[name], id_key
    return None, ""


def _read_list(path: Path, problems: Problems) -> dict[str, str | None] | None:
    """Returns the videos of a csv file, in order: id -> caption for 1k-A, else None. Returns None if it cannot be read."""
    if not path.is_file():
        problems.add("missing file", f"put it into {path.parent}", path.name)
        return None
    if (text := read_text(path, problems)) is None:
        return None
    header, rows = read_csv(text, problems, path.name)
    needed = ["video_id", "sentence"] if path.name == TEST_1K_A else ["video_id"]
    if absent := [column for column in needed if column not in header]:
        found = f"{', '.join(absent)} in {path.name} (found: {', '.join(header)})"
        problems.add("missing column", f"{ORIGINAL_FILE}, header included", found)
        return None
    listed: dict[str, str | None] = dict.fromkeys(
        unique_ids(((where, row["video_id"]) for where, row in rows), _ID, problems)
    )
    if path.name == TEST_1K_A:
        for where, row in rows:
            if kind := caption_defect(row["sentence"]):
                problems.add(kind, ORIGINAL_FILE, f"{where}: {row['video_id']}")
            elif row["video_id"] in listed:
                listed[row["video_id"]] = row["sentence"]
    return listed
