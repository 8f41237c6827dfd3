"""Reads a table that lists videos, or segments of videos; it needs no captions, and captions are ignored."""

from dataclasses import dataclass
from pathlib import Path

from waver.data.annotations.reading import Problems, excerpt, is_text
from waver.data.annotations.table_files.read import read_table_file
from waver.data.annotations.table_files.times import parse_segment

TABLE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz", ".tsv.gz")


@dataclass(frozen=True)
class ListedVideo:
    """A video that a table lists."""

    video: str
    """Its path as the table has it."""
    path: Path
    segments: tuple[tuple[float, float | None], ...]
    """Start and end of each segment that is listed, in seconds, sorted; an end of None is the end of the video. Empty if the
    whole video is listed."""


def load_video_list(table: Path) -> list[ListedVideo]:
    """Reads a list of videos, with the columns `video` and, for segments, `start_s` and `end_s`.

    Args:
        table: a file that `read_table_file` understands, such as a caption table. Relative paths in its column `video` are
            relative to its folder.

    Raises:
        AnnotationError: with all mistakes in the table.
    """
    problems = Problems()
    columns, rows = read_table_file(table, problems, required=("video",))
    segments: dict[str, set[tuple[float, float | None] | None]] = {}
    for where, row in rows:
        video = row.get("video")
        if not is_text(video) or not video.strip() or "\x00" in video:
            problems.add(
                "video that is not a file path", "write a path, or delete the row", f"{where}: {excerpt(video)}"
            )
            continue
        start_s, end_s = parse_segment(row, columns, where, problems)
        segments.setdefault(video, set()).add(None if start_s is None else (start_s, end_s))
    for video, listed in segments.items():
        if not (table.parent / video).is_file():
            problems.add("video without a file", f"write paths relative to {table.parent}", video)
        if None in listed and len(listed) > 1:
            problems.add("video listed whole and in segments", "fill in start_s and end_s in all its rows", video)
    problems.raise_if_any(table)
    return [
        ListedVideo(
            video,
            table.parent / video,
            tuple(sorted((span for span in listed if span), key=lambda span: (span[0], span[1] or float("inf")))),
        )
        for video, listed in segments.items()
    ]
