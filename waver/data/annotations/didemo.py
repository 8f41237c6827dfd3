"""DiDeMo in its original files, for paragraph-to-video retrieval.

The one caption of a video is all its descriptions, in file order, joined by spaces; the clip is its first 31 seconds
(CLIP4Clip, arXiv 2104.08860; annotators saw 30 seconds at most). The descriptions are in the original JSON files or, already
joined, in the csv files of T-MASS.
"""

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa

from waver.data.annotations.captions import Caption, caption_table
from waver.data.annotations.lists import LIST_FILES, ORIGINAL_FILE, IdFormat, check_lists, read_list
from waver.data.annotations.options import CommonData
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

CAPTION_FILES: Mapping[str, tuple[str, str]] = {
    "train": ("train_data.json", "didemo_train_label.csv"),
    "validation": ("val_data.json", "didemo_val_label.csv"),
    "test": ("test_data.json", "didemo_test_label.csv"),
}
"""Part of the split -> (original file, file of T-MASS); the original one is preferred."""

NUM_LEFT_OUT: Mapping[str, int] = {"train": 30, "validation": 3, "test": 0}
"""Part of the split -> number of its videos that the files of T-MASS lack."""

_NAME = IdFormat(
    "DiDeMo",
    # 193 names in the lists end with a dot.
    re.compile(r"[0-9]{1,20}@N[0-9]{2}_[0-9]{1,20}_[0-9a-f]{1,20}\.[0-9a-z]{0,8}"),
    "file names are <user>@N<number>_<photo>_<secret>.<extension>, such as 100233434@N08_9622921646_c39ac10ea3.mp4",
)


class DidemoData(CommonData):
    """DiDeMo in its original files: all descriptions of a video form one query; its first 31 seconds are the clip."""

    format: Literal["didemo"]
    split: Literal["official"] = "official"
    """8,392 videos for training, 1,065 for validation and 1,004 for test."""
    allow_missing_captions: bool = False
    """Only for the csv files of T-MASS, which lack 30 videos of train and 3 of validation. true: these videos are left out.
    false: they are an error; the original `train_data.json` and `val_data.json` have them."""
    clip_rule: ClassVar[str | None] = "first 31 seconds"
    # The digests are of file names without extension.
    published_splits: ClassVar[Mapping[str, PublishedSplit]] = {
        "official": PublishedSplit(
            "DiDeMo paragraph-to-video",
            {
                "train": PublishedPart(8392, 8392, "d9b1e3175d28def3"),
                "validation": PublishedPart(1065, 1065, "c1939b35c9e675a6"),
                "test": PublishedPart(1004, 1004, "57c0b06b28455cd3"),
            },
        )
    }

    def load(self) -> pa.Table:
        """See `load_didemo`."""
        return load_didemo(
            self.annotations,
            self.videos,
            allow_missing_captions=self.allow_missing_captions,
            allow_missing_videos=self.allow_missing_videos,
        )


def load_didemo(
    annotations: Path, videos: Path, *, allow_missing_captions: bool, allow_missing_videos: bool
) -> pa.Table:
    """Reads DiDeMo: 8,392 videos for training, 1,065 for validation and 1,004 for test, each with one paragraph.

    Args:
        annotations: folder with `LIST_FILES` and, for each part, one of `CAPTION_FILES` (JSON also as .gz). Videos that are
            in no list are ignored.
        videos: folder with the files, at any depth, with the listed extension or another one: `a.mov` in the list may be
            `a.mp4` or `a.mov.mp4` on disk, and `a.` may be `a`, `a.mp4` or `a..mp4`.
        allow_missing_captions: whether to leave out the training and validation videos that the files of T-MASS lack.
        allow_missing_videos: whether a video without a file gets the path `videos/<name in the list>` instead of an error.

    Returns:
        A table of `CAPTIONS_SCHEMA` in the order of the lists; `clip_id` and `video_id` are the name without extension.

    Raises:
        AnnotationError: with every problem.
    """
    problems, published = Problems(), DidemoData.published_splits["official"]
    files = [*LIST_FILES.values(), *(" or ".join(names) for names in CAPTION_FILES.values())]
    check_folder(annotations, ", ".join(files), problems)
    read = {part: read_list(annotations / name, _NAME, problems) for part, name in LIST_FILES.items()}
    lists = {part: {_clip_id(name): name for name in names} for part, names in read.items() if names is not None}
    check_lists(published, {part: clips.keys() for part, clips in lists.items()}, LIST_FILES, problems)
    captions_of: dict[str, str] = {}
    for part, clips in lists.items():
        found = _read_captions(annotations, CAPTION_FILES[part], clips, problems)
        if found is not None:
            captions_of |= found
            absent = [clip_id for clip_id in clips if clip_id not in found]
            _check_missing_captions(absent, part, allow_missing_captions, problems)
    name_of = {clip_id: name for clips in lists.values() for clip_id, name in clips.items()}
    path_of = find_videos(name_of, videos.absolute(), allow_missing=allow_missing_videos, problems=problems)
    problems.raise_if_any(annotations)

    rows = (
        # A video may be shorter than its segment.
        Caption(clip_id, clip_id, path_of[clip_id], 0.0, 31.0, captions_of[clip_id], part, None)
        for part, clips in lists.items()
        for clip_id in clips
        if clip_id in captions_of
    )
    return caption_table(rows, validation="own")


def _clip_id(name: str) -> str:
    return os.path.splitext(name)[0]  # noqa: PTH122 - Path.stem: Python versions differ on "name."


def _check_missing_captions(absent: list[str], part: str, allowed: bool, problems: Problems) -> None:
    """Adds a problem for each listed video without captions, unless it is allowed and T-MASS's files lack as many."""
    original, labels = CAPTION_FILES[part]
    num_left_out = NUM_LEFT_OUT[part]
    if not num_left_out:
        remedy = f"the gallery must be complete: take the original {original} or {labels}"
    elif len(absent) > num_left_out:
        remedy = f"take the original {original}, which has all of them, or {labels}, which lacks {num_left_out}"
    elif allowed:
        return
    else:
        remedy = f"take the original {original}, or set data.allow_missing_captions to leave them out"
    for clip_id in absent:
        problems.add(f"video of {part} without captions", remedy, clip_id)


def _read_captions(
    folder: Path, names: tuple[str, str], clips: Collection[str], problems: Problems
) -> dict[str, str] | None:
    """Returns clip -> paragraph, for the clips in the file; None if it cannot be read."""
    original, labels = names
    if path := find_file(folder, [original]):
        return _read_json(path, clips, problems)
    if (folder / labels).is_file():
        return _read_labels(folder / labels, clips, problems)
    problems.add("missing file", f"put it into {folder}", f"{original} (or {original}.gz, {labels})")
    return None


def _read_json(path: Path, clips: Collection[str], problems: Problems) -> dict[str, str] | None:
    is_read, content = read_json(path, problems)
    if not is_read:
        return None
    if not isinstance(content, list):
        report_unknown_schema(path, content, "a list of {video, description} is understood", problems)
        return None
    descriptions_of: dict[str, list[str]] = {}
    for number, entry in enumerate(content):
        where = f"entry {number} of {path.name}"
        name, description = (entry.get("video"), entry.get("description")) if isinstance(entry, dict) else (None, None)
        if not _NAME.accepts(name):
            _NAME.reject(name, where, problems)
        elif (clip_id := _clip_id(name)) in clips:
            if kind := caption_defect(description):
                problems.add(kind, ORIGINAL_FILE, f"{where}: {clip_id} {excerpt(description)}")
            else:
                descriptions_of.setdefault(clip_id, []).append(description)
    return {clip_id: " ".join(descriptions) for clip_id, descriptions in descriptions_of.items()}


def _read_labels(path: Path, clips: Collection[str], problems: Problems) -> dict[str, str] | None:
    if (text := read_text(path, problems)) is None:
        return None
    header, rows = read_csv(text, problems, path.name)
    if absent := [column for column in ("video_path", "text") if column not in header]:
        found = f"{', '.join(absent)} in {path.name} (found: {', '.join(header)})"
        problems.add("missing column", f"{ORIGINAL_FILE}, header included", found)
        return None
    captions_of: dict[str, str] = {}
    for where, row in rows:
        # `video_path` is a path on the authors' machine.
        name = row["video_path"].rpartition("/")[2]
        if not _NAME.accepts(name):
            _NAME.reject(name, where, problems)
        elif (clip_id := _clip_id(name)) not in clips:
            continue
        elif kind := caption_defect(row["text"]):
            problems.add(kind, ORIGINAL_FILE, f"{where}: {clip_id}")
        elif captions_of.setdefault(clip_id, row["text"]) != row["text"]:
            problems.add("video with two paragraphs", ORIGINAL_FILE, f"{where}: {clip_id}")
    return captions_of
