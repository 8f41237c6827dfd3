"""MSVD in its original files: three lists of clips, and their captions."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

import pyarrow as pa

from waver.data.annotations.captions import caption_table
from waver.data.annotations.lists import (
    LIST_FILES,
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

CAPTION_FILE = "captions_msvd.json"
PICKLE = "raw-captions.pkl"

_ID = IdFormat(
    "MSVD",
    # YouTube ids may contain - and _, also at the beginning.
    re.compile(r"[A-Za-z0-9_-]{11}_[0-9]{1,6}_[0-9]{1,6}"),
    "ids are <YouTube id>_<start>_<end>, such as -4wsuPCjDBc_5_15",
)
_CONVERT = (
    "import json, pickle; clips = pickle.load(open('raw-captions.pkl', 'rb')); "
    "json.dump({clip: [' '.join(words) for words in captions] for clip, captions in clips.items()}, "
    "open('captions_msvd.json', 'w'))"
)


class MsvdData(CommonData):
    """MSVD in its original files: `captions_msvd.json` and three lists."""

    format: Literal["msvd"]
    split: Literal["official"] = "official"
    """1,200 clips for training, 100 for validation and 670 for test; every caption of a test clip is a query."""
    published_splits: ClassVar[Mapping[str, PublishedSplit]] = {
        "official": PublishedSplit(
            "MSVD official, all captions",
            {
                "train": PublishedPart(1200, 48_774, "223a750f33fcec3c"),
                "validation": PublishedPart(100, 4_290, "0e6b31c93757d251"),
                "test": PublishedPart(670, 27_763, "8d2c6c42af984fd0"),
            },
        )
    }

    def load(self) -> pa.Table:
        """See `load_msvd`."""
        return load_msvd(
            self.annotations,
            self.videos,
            allow_missing_videos=self.allow_missing_videos,
        )


def load_msvd(annotations: Path, videos: Path, *, allow_missing_videos: bool) -> pa.Table:
    """Reads MSVD: 1,200 clips for training, 100 for validation and 670 for test, with all their captions.

    Every caption of a test clip is a query, as in CLIP4Clip (27,763 queries). Captions are unchanged.

    Args:
        annotations: folder with `LIST_FILES` and `captions_msvd.json` (or .json.gz), an object clip -> list of captions.
        videos: folder with `<clip>.avi` ..., at any depth, with any extension of `VIDEO_SUFFIXES`.
        allow_missing_videos: whether a clip without a file gets the path `videos/<clip>.avi` instead of an error.

    Returns:
        A table of `CAPTIONS_SCHEMA` in the order of the lists; `clip_id` is the whole id, `video_id` the YouTube id.

    Raises:
        AnnotationError: with every problem.
    """
    problems, published = Problems(), MsvdData.published_splits["official"]
    check_folder(annotations, f"{CAPTION_FILE}, {', '.join(LIST_FILES.values())}", problems)
    read = {part: read_list(annotations / name, _ID, problems) for part, name in LIST_FILES.items()}
    lists = {part: clips for part, clips in read.items() if clips is not None}
    check_lists(published, lists, LIST_FILES, problems)
    wanted = [clip_id for clips in lists.values() for clip_id in clips]
    captions_of = _read_captions(annotations, wanted, problems)
    if captions_of is not None:
        captions = {part: {clip_id: captions_of.get(clip_id, []) for clip_id in lists[part]} for part in lists}
        check_captions(published, captions, problems)
    file_name_of = {clip_id: f"{clip_id}.avi" for clip_id in wanted}
    path_of = find_videos(file_name_of, videos.absolute(), allow_missing=allow_missing_videos, problems=problems)
    problems.raise_if_any(annotations)

    return caption_table(youtube_captions(lists, captions_of, path_of), validation="own")


def _read_captions(folder: Path, clip_ids: list[str], problems: Problems) -> dict[str, list[str]] | None:
    path = find_file(folder, [CAPTION_FILE])
    if path is None:
        remedy = f"put it into {folder}"
        if (folder / PICKLE).is_file():
            remedy += (
                f"; {PICKLE} is not read, because a pickle can run any program: if you trust it, run this in the folder:\n"
                f'      python -c "{_CONVERT}"'
            )
        problems.add("missing file", remedy, f"{CAPTION_FILE} (or {CAPTION_FILE}.gz)")
        return None
    is_read, content = read_json(path, problems)
    if not is_read:
        return None
    if not isinstance(content, dict) or not any(map(_ID.accepts, content)):
        report_unknown_schema(path, content, "an object clip -> list of captions is understood", problems)
        return None
    return read_captions(clip_ids, content, path.name, problems)
