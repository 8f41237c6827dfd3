"""A user's own data: a table in JSONL, CSV, TSV or Parquet, one row per caption."""

import os
import re
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from waver.data.annotations.captions import Caption, caption_table, choose_validation_videos
from waver.data.annotations.options import HeldOutData
from waver.data.annotations.reading import Problems, caption_defect, excerpt, is_text
from waver.data.annotations.styles import keep_styles
from waver.data.annotations.table_files.read import Row, read_table_file
from waver.data.annotations.table_files.times import parse_segment
from waver.data.annotations.videos import VideoFolder, index_videos, report_missing, warn_of_similar

SPLIT_NAMES = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}

_MAX_NAME_BYTES = 255  # of common file systems
_LIST = re.compile(r"\s*(array\()?[\[{]\s*['\"].*['\"]\s*,?\s*[\]}].*", re.DOTALL)
"""A list or an object in the notation of Python, NumPy or JSON."""
_NO_VALUES = ("nan", "NaN", "NAN", "NaT", "None", "null", "NULL", "<NA>", "NA", "N/A", "#N/A", r"\N")
"""Texts that programs (pandas, R, databases, Excel) write in place of a missing value."""
_EXCEL_ERRORS = ("#NAME?", "#VALUE!", "#REF!", "#DIV/0!", "#NUM!", "#NULL!")
"""Texts that Excel writes in place of a formula that it cannot compute, such as a text that begins with = or -."""


@dataclass(frozen=True, slots=True)
class VideoFile:
    """A video file."""

    path: str
    """Absolute."""
    name: str
    """Path relative to the folder of videos; the absolute path if the file is elsewhere."""
    stem: str
    """The name without extension."""


@dataclass(frozen=True, slots=True)
class ParsedRow:
    """A row whose clip is known; `text` and `split` are None if they are wrong, which `Problems` has been told."""

    where: str
    video_id: str
    clip_id: str
    file: VideoFile
    start_s: float | None
    end_s: float | None
    text: str | None
    split: str | None
    style: str | None

    def caption(self) -> Caption:
        """Returns the row of the caption table; nothing may be wrong."""
        assert self.text is not None
        assert self.split is not None
        return Caption(
            self.video_id, self.clip_id, self.file.path, self.start_s, self.end_s, self.text, self.split, self.style
        )


class TableData(HeldOutData):
    """The user's own data: a table with one row per caption, in JSONL, CSV, TSV or Parquet."""

    format: Literal["table"]
    train_styles: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Writing styles that training reads: train and validation keep their captions in these styles only, and so does the
    dictionary. Clips without such a caption are not trained on. Test keeps all captions, and tables say which styles were
    seen in training. null: all styles."""

    @field_validator("train_styles")
    @classmethod
    def _in_one_order(cls, styles: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if styles is None else tuple(sorted(set(styles)))

    def load(self) -> pa.Table:
        """See `load_table`."""
        return load_table(
            self.annotations,
            self.videos,
            validation_fraction=self.validation_fraction,
            validation_seed=self.validation_seed,
            allow_missing_videos=self.allow_missing_videos,
            train_styles=self.train_styles,
        )


def load_table(
    annotations: Path,
    videos: Path,
    *,
    validation_fraction: float | None,
    validation_seed: int,
    allow_missing_videos: bool,
    train_styles: Collection[str] | None = None,
) -> pa.Table:
    """Reads a user's own data from a file that `read_table_file` understands.

    Columns:
        video: path of the file, relative to `videos`, or absolute if the file exists.
        caption: description of the clip; kept unchanged.
        start_s, end_s (optional): segment of the video, in seconds; a missing start is the beginning, a missing end the end.
        split (optional): train, validation (or val), test. Without this column every row is in train, validation is held out
            of it, and there is no test split. If every row is in test, the table serves `waver evaluate` alone.
        style (optional): writing style of the caption, a label of the user's choice.
        video_id (optional): by default `video` without its extension. Segments of a video share its id.

    Empty values are nulls. A clip is a video or a segment of one: its `clip_id` is `video_id`, or
    `{video_id}@{start}-{end}`. Video files that no row names are ignored.

    Args:
        annotations: the file.
        videos: folder of the video files.
        validation_fraction: share of the training videos held out for validation, with all their clips, if no row has
            that split; None for the usual one, see `choose_validation_videos`.
        validation_seed: seed for choosing them; the order of the rows does not matter.
        allow_missing_videos: whether a relative path without a file is allowed.
        train_styles: styles whose captions train and validation keep; None for all. The choice of the videos held out for
            validation does not depend on it.

    Returns:
        A table of `CAPTIONS_SCHEMA` in the order of the file; paths are absolute.

    Raises:
        AnnotationError: with every problem.
    """
    problems = Problems()
    columns, rows = read_table_file(annotations, problems)
    # Files that a row names count as videos whatever their ending.
    names = {os.path.basename(row["video"]) for _, row in rows if is_text(row.get("video"))}  # noqa: PTH119
    index = index_videos(videos.absolute(), problems, names=names)
    file_of = _locate_videos(rows, index, allow_missing_videos, problems)
    parsed = [_parse(where, row, columns, file_of, problems) for where, row in rows]
    _check_identities([row for row in parsed if row], problems)
    if "video" in columns:
        _check_train_size(rows, file_of, problems)
    problems.raise_if_any(annotations)

    result, validation = _hold_out([row.caption() for row in parsed if row], validation_fraction, validation_seed)
    if train_styles is None:
        return caption_table(result, validation=validation)
    kept = keep_styles(result, train_styles, problems)
    problems.raise_if_any(annotations)
    left_out = len({caption.clip_id for caption in result}) - len({caption.clip_id for caption in kept})
    return caption_table(kept, validation=validation, left_out=left_out)


def _hold_out(
    captions: list[Caption], fraction: float | None, seed: int
) -> tuple[list[Caption], Literal["own", "held out of train"]]:
    """Returns the captions with a validation split, and its origin: videos of train are held out if the table has none."""
    if any(caption.split == "validation" for caption in captions):
        return captions, "own"
    train = (caption.video_id for caption in captions if caption.split == "train")
    chosen = choose_validation_videos(train, fraction, seed)
    held_out = [
        replace(caption, split="validation") if caption.split == "train" and caption.video_id in chosen else caption
        for caption in captions
    ]
    return held_out, "held out of train"


def _locate_videos(
    rows: Iterable[tuple[str, Row]], index: VideoFolder, allow_missing: bool, problems: Problems
) -> dict[str, VideoFile]:
    """Returns the file of each different value of `video` that is a valid path; adds a problem once for each other value."""
    videos, indexed = index.path, set(index.videos)
    file_of: dict[str, VideoFile] = {}
    missing: dict[str, dict[str, str]] = {"video without a file": {}, "absolute path without a file": {}}
    seen: set[str] = set()
    for where, row in rows:
        video = row.get("video")
        if not is_text(video) or not video.strip() or video in seen:
            continue
        seen.add(video)
        path, where = videos / video, f"{where}: {excerpt(video)}"  # an absolute `video` replaces the folder
        parts = Path(video).parts
        if not parts or "\x00" in video or max(len(os.fsencode(part)) for part in parts) > _MAX_NAME_BYTES:
            problems.add("video that is not a file path", f"write paths below {videos}", where)
            continue
        if ".." in parts:
            problems.add("path that leaves the folder of videos", f"write paths below {videos}, without ..", where)
            continue
        if path not in indexed and not path.is_file():
            kind = "absolute path without a file" if Path(video).is_absolute() else "video without a file"
            missing[kind][video] = where
        name = path.relative_to(videos) if path.is_relative_to(videos) else path
        # Not Path.suffix: Python versions differ on "name.".
        file_of[video] = VideoFile(str(path), name.as_posix(), os.path.splitext(name.as_posix())[0])  # noqa: PTH122
    # If the folder has no files at all, `index_videos` has reported that.
    for kind, names in missing.items():
        correct, put = "write them so in the column video", f"put them into {videos} under this path"
        if kind.startswith("absolute"):
            put = f"write paths relative to {videos}"
        elif allow_missing:
            warn_of_similar(names, index)
            continue
        elif not index:
            continue
        report_missing(kind, names, index, correct=correct, put=put, problems=problems)
    return file_of


def _parse(
    where: str, row: Row, columns: Collection[str], file_of: Mapping[str, VideoFile], problems: Problems
) -> ParsedRow | None:
    """Parses one row; returns None if its clip cannot be known."""
    video = _text(row, "video", where, problems) if "video" in columns else None
    if video is not None and not video.strip():
        problems.add("empty video", "fill it in, or delete the row", where)
    text = _caption(row, where, problems) if "caption" in columns else None
    split = _split(row, where, problems) if "split" in columns else "train"
    style, own_id = (_text(row, name, where, problems) if name in columns else "" for name in ("style", "video_id"))
    num_problems = len(problems)
    start_s, end_s = parse_segment(row, columns, where, problems)
    file = file_of.get(video or "")
    if file is None or own_id is None or len(problems) > num_problems:
        return None
    video_id = own_id or file.stem
    clip_id = video_id if start_s is None else f"{video_id}@{_format_seconds(start_s)}-{_format_seconds(end_s)}"
    return ParsedRow(where, video_id, clip_id, file, start_s, end_s, text, split, style or None)


def is_caption(text: str) -> bool:
    """Returns whether a table may hold a text as a caption: it shows something, and is no list or missing value."""
    return _caption({"caption": text}, "", Problems()) is not None


def _caption(row: Row, where: str, problems: Problems) -> str | None:
    """Returns the caption; None (a problem) if it is no text, or shows nothing, or stands for something else."""
    value = row.get("caption")
    if isinstance(value, list | tuple | dict) or (isinstance(value, str) and _LIST.fullmatch(value)):
        remedy = "write one row for each caption"
        problems.add("caption that holds a list", remedy, f"{where}: {excerpt(value)}")
    elif kind := caption_defect("" if value is None else value):
        remedy = "write a string" if kind.endswith("not text") else "fill it in, or delete the row"
        problems.add(kind, remedy, where if kind == "empty caption" else f"{where}: {excerpt(value)}")
    elif value in _NO_VALUES:
        remedy = "fill it in, or delete the row: programs write such a text for a missing value"
        problems.add("caption that is a missing value", remedy, f"{where}: {value}")
    elif value in _EXCEL_ERRORS:
        remedy = "fill it in, or delete the row: Excel writes such a text for a formula that it cannot compute"
        problems.add("caption that is an error of Excel", remedy, f"{where}: {value}")
    else:
        return value
    return None


def _split(row: Row, where: str, problems: Problems) -> str | None:
    split = _text(row, "split", where, problems)
    if split == "":
        problems.add("row without split", "fill in the split of every row, or delete the column", where)
    elif split is not None and split not in SPLIT_NAMES:
        problems.add("unknown split", f"it is one of {', '.join(SPLIT_NAMES)}", f"{where}: {split!r}")
    return SPLIT_NAMES.get(split or "")


def _text(row: Row, column: str, where: str, problems: Problems) -> str | None:
    """Returns the string of a column, empty for null, or None (a problem) if the value is not text."""
    value = row.get(column)
    if value is None:
        return ""
    if not is_text(value):
        is_number = column in ("video", "video_id") and isinstance(value, int | float) and not isinstance(value, bool)
        remedy = "write a string" + (": as numbers, names lose their leading zeros (0007 is 7)" if is_number else "")
        problems.add(f"{column} that is not text", remedy, f"{where}: {excerpt(value)}")
        return None
    if "\x00" in value and column != "video":  # `_locate_videos` reports that
        problems.add(f"{column} with a NUL character", "delete the character", f"{where}: {excerpt(value)}")
        return None
    if value in _NO_VALUES and column != "video":  # a file may have this name
        remedy = "fill it in, or leave it empty: programs write such a text for a missing value"
        problems.add(f"{column} that is a missing value", remedy, f"{where}: {value}")
        return None
    return value


def _format_seconds(seconds: float | None) -> str:
    return "" if seconds is None else repr(seconds).removesuffix(".0")


def _check_identities(rows: list[ParsedRow], problems: Problems) -> None:
    """Finds ambiguous ids and clips in two splits."""

    def check(kind: str, remedy: str, pairs: Iterable[tuple[Hashable, Hashable]]) -> None:
        values: dict[Hashable, dict[Hashable, str]] = {}
        for row, (key, value) in zip(rows, pairs, strict=True):
            if value is not None:
                values.setdefault(key, {}).setdefault(value, row.where)
        for key, places in values.items():
            if len(places) > 1:
                named = ", ".join(f"{value} ({where})" for value, where in list(places.items())[:2])
                problems.add(kind, remedy, f"{key}: {named}")

    ids = "give every file one video_id of its own"
    check("video_id of two files", ids, ((row.video_id, row.file.name) for row in rows))
    check("file with two video_ids", ids, ((row.file.name, row.video_id) for row in rows))
    segments = ((row.clip_id, (row.video_id, row.start_s, row.end_s)) for row in rows)
    check("clip_id of two clips", "change the video_id that has the form of a segment's clip_id", segments)
    check("clip in two splits", "keep all captions of a clip in one split", ((row.clip_id, row.split) for row in rows))


def _check_train_size(rows: list[tuple[str, Row]], file_of: Mapping[str, VideoFile], problems: Problems) -> None:
    """Adds a problem if train has fewer than 2 videos; rows with other problems count, since they may be corrected.

    A table of test rows alone is a test set, for models that were trained on other data.
    """
    if all(row.get("split") == "test" for _, row in rows):
        return
    train = {
        file_of.get(video, video) if isinstance(video, str) else where
        for where, row in rows
        if (video := row.get("video")) is not None and row.get("split") not in ("validation", "val", "test")
    }
    if len(train) < 2:
        remedy = "training needs at least 2 videos, to hold one out for validation and to have negatives"
        problems.add("train split that is too small", remedy, "1 video" if train else "no video")
