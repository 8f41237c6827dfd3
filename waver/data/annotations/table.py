"""A user's own data: a table in JSONL, CSV or Parquet, one row per caption."""

import difflib
import math
import os
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from waver.data.annotations.captions import Caption, caption_table, choose_validation_videos
from waver.data.annotations.options import HeldOutData
from waver.data.annotations.reading import MAX_BYTES, Problems, excerpt, is_text, read_csv, read_jsonl, read_text
from waver.data.annotations.videos import index_videos

REQUIRED = ("video", "caption")
OPTIONAL = ("start_s", "end_s", "split", "style", "video_id")
SPLIT_NAMES = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}
_EXAMPLE = '{"video": ..., "caption": ...}'

_ROWS_AT_A_TIME = 256
_MAX_ROWS = 20_000_000
_MAX_NAME_BYTES = 255  # of common file systems

Row = Mapping[str, Any]


@dataclass(frozen=True)
class VideoFile:
    """A video file: its absolute path, and its name relative to the folder of videos (the path if it is elsewhere)."""

    path: str
    name: str


class TableData(HeldOutData):
    """The user's own data: a table with one row per caption, in JSONL, CSV or Parquet."""

    format: Literal["table"]

    def load(self) -> pa.Table:
        """See `load_table`."""
        return load_table(
            self.annotations,
            self.videos,
            validation_fraction=self.validation_fraction,
            validation_seed=self.validation_seed,
            allow_missing_videos=self.allow_missing_videos,
        )


def load_table(
    annotations: Path, videos: Path, *, validation_fraction: float, validation_seed: int, allow_missing_videos: bool
) -> pa.Table:
    """Reads a user's own data from a `.jsonl` (or `.json`, one object per line), `.csv` or `.parquet` file.

    Columns:
        video: path of the file, relative to `videos`, or absolute if the file exists.
        caption: description of the clip; kept unchanged.
        start_s, end_s (optional): segment of the video, in seconds; a missing start is the beginning, a missing end the end.
        split (optional): train, validation (or val), test. Without this column every row is in train, validation is held out
            of it, and there is no test split.
        style (optional): writing style of the caption, a label of the user's choice.
        video_id (optional): by default `video` without its extension. Segments of a video share its id.

    Empty values are nulls. A clip is a video or a segment of one: its `clip_id` is `video_id`, or
    `{video_id}@{start}-{end}`. Video files that no row names are ignored.

    Args:
        annotations: the file.
        videos: folder of the video files.
        validation_fraction: share of the training videos held out for validation, with all their clips, if no row has
            that split.
        validation_seed: seed for choosing them; the order of the rows does not matter.
        allow_missing_videos: whether a relative path without a file is allowed.

    Returns:
        A table of `CAPTIONS_SCHEMA` in the order of the file; paths are absolute.

    Raises:
        AnnotationError: with every problem.
    """
    problems = Problems()
    videos = videos.absolute()
    files = index_videos(videos, problems)
    columns, rows = _read_rows(annotations, problems)
    captions: list[tuple[str, Caption]] = []
    if _check_columns(columns, bool(rows), problems):
        file_of = _locate_videos(rows, videos, files, allow_missing_videos, problems)
        parsed = ((where, _parse(where, row, "split" in columns, file_of, problems)) for where, row in rows)
        captions = [(where, caption) for where, caption in parsed if caption]
        _check_identities(captions, {file.path: file.name for file in file_of.values()}, problems)
        _check_train_size(rows, file_of, problems)
    problems.raise_if_any(annotations)

    result = [caption for _, caption in captions]
    validation = "own"
    if not any(caption.split == "validation" for caption in result):
        validation = "held out of train"
        train = (caption.video_id for caption in result if caption.split == "train")
        chosen = choose_validation_videos(train, validation_fraction, validation_seed)
        result = [
            replace(caption, split="validation") if caption.split == "train" and caption.video_id in chosen else caption
            for caption in result
        ]
    return caption_table(result, validation=validation)


def _read_rows(path: Path, problems: Problems) -> tuple[list[str], list[tuple[str, Row]]]:
    """Returns the columns, and every row with its place in the file ("line 2")."""
    suffix = path.suffix.lower()
    num_problems = len(problems)
    columns: list[str] = []
    rows: list[tuple[str, Row]] = []
    if suffix not in (".jsonl", ".json", ".csv", ".parquet"):
        problems.add("unknown kind of file", "JSONL (.jsonl), CSV (.csv) and Parquet (.parquet) are read", path.name)
    elif suffix == ".parquet":
        columns, rows = _read_parquet(path, problems)
    elif (text := read_text(path, problems)) is not None:
        if suffix == ".csv":
            columns, found = read_csv(text, problems)
        else:
            columns, found = read_jsonl(text, _EXAMPLE, problems)
        rows = list(found)
    if not rows and len(problems) == num_problems:
        problems.add("table without rows", f"write one row per caption, with {' and '.join(REQUIRED)}", path.name)
    return columns, rows


def _read_parquet(path: Path, problems: Problems) -> tuple[list[str], list[tuple[str, Row]]]:
    try:
        with pq.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            known = [name for name in columns if name in (*REQUIRED, *OPTIONAL)]
            if len(set(known)) < len(known) or not {*REQUIRED} <= {*known}:  # `_check_columns` reports it
                return columns, []
            _check_declared_size(file.metadata)
            repeating = [name for name in known if name not in _delta_encoded_columns(file.metadata)]
        # Dictionaries keep equal texts once: a small file can repeat a long text millions of times.
        rows, size = [], 0
        with pq.ParquetFile(path, read_dictionary=repeating) as file:
            for batch in file.iter_batches(batch_size=_ROWS_AT_A_TIME, columns=known):
                values = {
                    name: _as_python(column) for name, column in zip(batch.schema.names, batch.columns, strict=True)
                }
                size += sum(
                    len(value) if isinstance(value, str) else 8 for column in values.values() for value in column
                )
                if size > MAX_BYTES:
                    raise ValueError(f"it unpacks to more than {MAX_BYTES // 2**20} MiB")
                rows += [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
        return columns, [(f"row {number}", row) for number, row in enumerate(rows, 1)]
    # ValueError: text that is not UTF-8. OverflowError: years that Python cannot represent.
    except (OSError, pa.ArrowException, ValueError, OverflowError) as error:
        problems.add("unreadable file", "the file must exist, be readable and be Parquet", f"{path} ({error})")
        return [], []


def _check_declared_size(metadata: pq.FileMetaData) -> None:
    """Raises ValueError if the metadata declares a file that is too large; reading it stops at the same size anyway."""
    size = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    if size > MAX_BYTES or metadata.num_rows > _MAX_ROWS:
        raise ValueError(
            f"its {metadata.num_rows} rows unpack to {size // 2**20} MiB; at most {_MAX_ROWS} rows and "
            f"{MAX_BYTES // 2**20} MiB are read"
        )


def _delta_encoded_columns(metadata: pq.FileMetaData) -> set[str]:
    """Returns the columns with a delta encoding (texts stored as differences), which Arrow cannot read as a dictionary."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    columns = (group.column(number) for group in groups for number in range(group.num_columns))
    return {column.path_in_schema for column in columns if any(name.startswith("DELTA") for name in column.encodings)}


def _as_python(column: pa.Array) -> list[Any]:
    """Returns the values; equal values of a dictionary-encoded column are one object."""
    if not pa.types.is_dictionary(column.type):
        return column.to_pylist()
    values = column.dictionary.to_pylist()
    return [None if index is None else values[index] for index in column.indices.to_pylist()]


def _check_columns(columns: list[str], has_rows: bool, problems: Problems) -> bool:
    """Adds a problem for each unknown, repeated or missing column; returns whether the required columns exist."""
    known = [*REQUIRED, *OPTIONAL]
    for column, count in Counter(columns).items():
        if column not in known:
            near = difflib.get_close_matches(column, known, 1)
            hint = f"{column!r} (did you mean {near[0]}?)" if near else repr(column)
            problems.add("unknown column", f"known columns: {', '.join(known)}", hint)
        elif count > 1:
            problems.add("repeated column", "keep one of them", column)
    absent = [column for column in REQUIRED if column not in columns]
    for column in absent if columns or has_rows else ():
        problems.add("missing column", "a table needs video (path) and caption", column)
    return not absent


def _locate_videos(
    rows: Iterable[tuple[str, Row]], videos: Path, files: list[Path], allow_missing: bool, problems: Problems
) -> dict[str, VideoFile]:
    """Returns the file of each different value of `video` that is a valid path; adds a problem once for each other value."""
    indexed = set(files)
    file_of: dict[str, VideoFile] = {}
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
        is_there = path in indexed or path.is_file()
        if Path(video).is_absolute() and not is_there:
            problems.add("absolute path without a file", f"write paths relative to {videos}", where)
        elif files and not is_there and not allow_missing:
            remedy = f"put them into {videos} under this path, or set data.allow_missing_videos to count them as misses"
            problems.add("video without a file", remedy, where)
        name = path.relative_to(videos) if path.is_relative_to(videos) else path
        file_of[video] = VideoFile(str(path), name.as_posix())
    return file_of


def _parse(
    where: str, row: Row, has_splits: bool, file_of: Mapping[str, VideoFile], problems: Problems
) -> Caption | None:
    """Parses one row; returns None if it has a problem."""
    num_problems = len(problems)
    text = {name: _text(row, name, where, problems) for name in ("video", "caption", "split", "style", "video_id")}
    for column in REQUIRED:
        if (value := text[column]) is not None and not value.strip():
            problems.add(f"empty {column}", "fill it in, or delete the row", where)
    split = text["split"] if has_splits else "train"
    if split == "":
        problems.add("row without split", "fill in the split of every row, or delete the column", where)
    elif split is not None and split not in SPLIT_NAMES:
        problems.add("unknown split", f"it is one of {', '.join(SPLIT_NAMES)}", f"{where}: {split!r}")
    start_s, end_s = (_seconds(row, name, where, problems) for name in ("start_s", "end_s"))
    if start_s is None and end_s is not None:
        start_s = 0.0
    if start_s is not None and start_s < 0:
        problems.add("negative start_s", "seconds count from the beginning of the video", f"{where}: {start_s:g}")
    elif start_s is not None and end_s is not None and start_s >= end_s:
        segment = f"{where}: {start_s:g} to {end_s:g}"
        problems.add("segment that ends before it starts", "end_s must be after start_s", segment)
    file, caption = file_of.get(text["video"] or ""), text["caption"]
    if file is None or caption is None or split is None or len(problems) > num_problems:
        return None
    # Not Path.suffix: Python versions differ on "name.".
    video_id = text["video_id"] or os.path.splitext(file.name)[0]  # noqa: PTH122
    clip_id = video_id if start_s is None else f"{video_id}@{_format_seconds(start_s)}-{_format_seconds(end_s)}"
    return Caption(video_id, clip_id, file.path, start_s, end_s, caption, SPLIT_NAMES[split], text["style"] or None)


def _text(row: Row, column: str, where: str, problems: Problems) -> str | None:
    """Returns the string of a column, empty for null, or None (a problem) if the value is not text."""
    value = row.get(column)
    if value is None:
        return ""
    if is_text(value):
        return value
    problems.add(f"{column} that is not text", "write a string", f"{where}: {excerpt(value)}")
    return None


def _seconds(row: Row, column: str, where: str, problems: Problems) -> float | None:
    value = row.get(column)
    if value is None or value == "":
        return None
    try:
        seconds = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if math.isfinite(seconds):
        return seconds + 0.0  # -0.0 becomes 0.0
    problems.add(f"{column} that is not a number", "write seconds, or nothing", f"{where}: {excerpt(value)}")
    return None


def _format_seconds(seconds: float | None) -> str:
    return "" if seconds is None else repr(seconds).removesuffix(".0")


def _check_identities(captions: list[tuple[str, Caption]], name_of: Mapping[str, str], problems: Problems) -> None:
    """Finds ambiguous ids and clips in two splits; `name_of` maps paths to the names to show."""

    def check(kind: str, remedy: str, pairs: Iterable[tuple[Hashable, Hashable]]) -> None:
        values: dict[Hashable, dict[Hashable, str]] = {}
        for (where, _), (key, value) in zip(captions, pairs, strict=True):
            values.setdefault(key, {}).setdefault(value, where)
        for key, places in values.items():
            if len(places) > 1:
                named = ", ".join(f"{value} ({where})" for value, where in list(places.items())[:2])
                problems.add(kind, remedy, f"{key}: {named}")

    rows = [caption for _, caption in captions]
    ids = "give every file one video_id of its own"
    check("video_id of two files", ids, ((row.video_id, name_of[row.path]) for row in rows))
    check("file with two video_ids", ids, ((name_of[row.path], row.video_id) for row in rows))
    segments = ((row.clip_id, (row.video_id, row.start_s, row.end_s)) for row in rows)
    check("clip_id of two clips", "change the video_id that has the form of a segment's clip_id", segments)
    check("clip in two splits", "keep all captions of a clip in one split", ((row.clip_id, row.split) for row in rows))


def _check_train_size(rows: list[tuple[str, Row]], file_of: Mapping[str, VideoFile], problems: Problems) -> None:
    """Adds a problem if train has fewer than 2 videos; rows with other problems count, since they may be corrected."""
    train = {
        file_of.get(video, video) if isinstance(video, str) else where
        for where, row in rows
        if (video := row.get("video")) is not None and row.get("split") not in ("validation", "val", "test")
    }
    if rows and len(train) < 2:
        remedy = "training needs at least 2 videos, to hold one out for validation and to have negatives"
        problems.add("train split that is too small", remedy, "1 video" if train else "no video")
