"""MSR-VTT in its original files.

The captions are in `MSRVTT_data.json`, a name that two incompatible schemas share: the original one (`videos`,
`sentences`) and a COCO-like one (`images`, `annotations`). Which videos train and test is in csv files; the one of
"1k-A", the usual test set, also has the one caption with which each of its 1,000 videos is searched.
"""

import gzip
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from waver.annotations.captions import Caption, caption_table, held_out
from waver.annotations.reading import Problems, index_videos, is_text, read_csv, read_text

CAPTION_FILES = ("MSRVTT_data.json", "MSRVTT_data.json.gz", "MSR_VTT.json", "MSR_VTT.json.gz")


@dataclass(frozen=True)
class SplitFile:
    """One csv file of a split: `num_videos` videos, numbered from `first` up to but not including `end`."""

    name: str
    num_videos: int
    first: int
    end: int


# A list with the right number of different videos from its range, disjoint from the other lists, is the official one:
# every list but 1k-A fills its range, or (9k) what 1k-A leaves of it.
_TEST_1K_A = SplitFile("MSRVTT_JSFUSION_test.csv", 1000, 7010, 10000)
SPLIT_FILES: Mapping[str, Mapping[str, SplitFile]] = {
    "9k": {"train": SplitFile("MSRVTT_train.9k.csv", 9000, 0, 10000), "test": _TEST_1K_A},
    "7k": {"train": SplitFile("MSRVTT_train.7k.csv", 7010, 0, 7010), "test": _TEST_1K_A},
    "full": {
        "train": SplitFile("MSRVTT_train.full.csv", 6513, 0, 6513),
        "validation": SplitFile("MSRVTT_val.full.csv", 497, 6513, 7010),
        "test": SplitFile("MSRVTT_test.full.csv", 2990, 7010, 10000),
    },
}

_FOREIGN_ID = ("id that is not an MSR-VTT one", "ids are video0 ... video9999")
_ORIGINAL_FILE = "take the original file"


def load_msrvtt(
    annotations: Path,
    videos: Path,
    *,
    split: Literal["9k", "7k", "full"],
    validation_fraction: float,
    validation_seed: int,
    allow_missing_videos: bool,
) -> pa.Table:
    """Reads the captions of an official split of MSR-VTT.

    The split must be complete, since its figures are compared with published ones; `load_table` reads a part of one.
    Captions are as they stand in the files. Equal captions of one video occur in MSR-VTT and are kept.

    Args:
        annotations: folder with one of `CAPTION_FILES` and the csv files of the split (`SPLIT_FILES`).
        videos: folder with `video0.mp4` ..., at any depth, in any container of `VIDEO_SUFFIXES`.
        split: 9k and 7k train on all captions of the videos in their csv, and are tested on 1k-A, one caption a video;
            full is the official 6,513/497/2,990, all with all captions.
        validation_fraction: share of the training videos held out for validation; unused by full, which has its own.
        validation_seed: which ones.
        allow_missing_videos: give a video that is not on disk the path `videos/<id>.mp4`, instead of failing.

    Returns:
        A table of `CAPTIONS_SCHEMA` in the order of the csv files; `clip_id` is `video_id`, paths are absolute.

    Raises:
        AnnotationError: with everything that is wrong.
    """
    problems = Problems()
    if annotations.is_file():
        remedy = f"it holds {CAPTION_FILES[0]} and the csv files of the split"
        problems.add("file where the folder of annotations should be", remedy, annotations)
        problems.raise_if_any(annotations)
    captions_of = _read_captions(annotations, problems)
    read = {name: _read_list(annotations, file, problems) for name, file in SPLIT_FILES[split].items()}
    lists = {name: listed for name, listed in read.items() if listed is not None}
    _check_split(split, lists, problems)
    if captions_of is not None:
        for video_id, own_caption in (item for listed in lists.values() for item in listed.items()):
            if own_caption is None and video_id not in captions_of:
                remedy = "the file of captions is not the one of this split; take the complete one (10,000 videos)"
                problems.add("video without captions", remedy, video_id)
    wanted = [video_id for listed in lists.values() for video_id in listed]
    path_of = _find_videos(wanted, videos.absolute(), allow_missing_videos, problems)
    problems.raise_if_any(annotations)

    split_of = {video_id: name for name, listed in lists.items() for video_id in listed}
    if "validation" not in lists:
        chosen = held_out(lists["train"], validation_fraction, validation_seed)
        split_of.update(dict.fromkeys(chosen, "validation"))
    rows = (
        Caption(video_id, video_id, str(path_of[video_id]), None, None, caption, split_of[video_id], None)
        for listed in lists.values()
        for video_id, own_caption in listed.items()
        for caption in (captions_of[video_id] if own_caption is None else [own_caption])
    )
    return caption_table(rows, validation="own" if "validation" in lists else "held out of train")


def _read_captions(folder: Path, problems: Problems) -> dict[str, list[str]] | None:
    """Captions by video, in file order; None if there is nothing to read them from."""
    path = next((folder / name for name in CAPTION_FILES if (folder / name).is_file()), None)
    if path is None:
        problems.add("missing file", f"put it into {folder}", f"{CAPTION_FILES[0]} (or {', '.join(CAPTION_FILES[1:])})")
        return None
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        content = json.loads(data.decode("utf-8-sig"))
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        problems.add("unreadable JSON file", "copy or download it again", f"{path.name} ({error})")
        return None
    entries, id_key = _entries(content)
    if entries is None:
        keys = f"keys {', '.join(content) or '(none)'}" if isinstance(content, dict) else type(content).__name__
        remedy = (
            "two schemas are understood, an object with a list `sentences` of {video_id, caption} (beside `videos`) "
            "or with a list `annotations` of {image_id, caption} (beside `images`)"
        )
        problems.add("unknown JSON schema", remedy, f"{path.name} has {keys}")
        return None
    captions_of: dict[str, list[str]] = {}
    for number, entry in enumerate(entries):
        video_id, caption = (entry.get(id_key), entry.get("caption")) if isinstance(entry, dict) else (None, None)
        if not _is_video_id(video_id):
            problems.add(*_FOREIGN_ID, f"entry {number} of {path.name}: {id_key} {video_id!r}")
        elif kind := _defect(caption):
            problems.add(kind, _ORIGINAL_FILE, f"entry {number} of {path.name}: {video_id} {caption!r}")
        else:
            captions_of.setdefault(video_id, []).append(caption)
    return captions_of


def _entries(content: Any) -> tuple[list | None, str]:
    """The list of captions in either schema, and the key of the video in its entries."""
    for name, id_key in (("sentences", "video_id"), ("annotations", "image_id")):
        if isinstance(content, dict) and isinstance(content.get(name), list):
            return content[name], id_key
    return None, ""


def _read_list(folder: Path, file: SplitFile, problems: Problems) -> dict[str, str | None] | None:
    """Videos of a csv file in its order, with the captions of 1k-A or None beside them; None if it cannot be read."""
    path = folder / file.name
    if not path.is_file():
        problems.add("missing file", f"put it into {folder}", file.name)
        return None
    if (text := read_text(path, problems)) is None:
        return None
    header, rows = read_csv(text, problems, f" of {file.name}")
    needed = ["video_id", "sentence"] if file is _TEST_1K_A else ["video_id"]
    if absent := [column for column in needed if column not in header]:
        found = f"{', '.join(absent)} in {file.name} (found: {', '.join(header)})"
        problems.add("missing column", f"{_ORIGINAL_FILE}, header included", found)
        return None
    listed: dict[str, str | None] = {}
    for where, row in rows:
        video_id = row["video_id"]
        if not _is_video_id(video_id):
            problems.add(*_FOREIGN_ID, f"{where}: {video_id!r}")
        elif video_id in listed:
            problems.add("video listed twice", _ORIGINAL_FILE, f"{where}: {video_id}")
        else:
            listed[video_id] = row.get("sentence")
            if file is _TEST_1K_A and (kind := _defect(row["sentence"])):
                problems.add(kind, _ORIGINAL_FILE, f"{where}: {video_id}")
    return listed


def _check_split(split: str, lists: Mapping[str, Mapping[str, Any]], problems: Problems) -> None:
    """Compares the lists that could be read with the official split."""
    remedy = f"{_ORIGINAL_FILE} (a part of MSR-VTT of one's own is written as a table)"
    split_of: dict[str, str] = {}
    for name, listed in lists.items():
        file = SPLIT_FILES[split][name]
        official = [f"video{number}" for number in range(file.first, file.end)]
        for video_id in sorted(listed.keys() - official):
            problems.add(f"video that is not in the official {name} split", remedy, f"{video_id} in {file.name}")
        for video_id in sorted(listed.keys() & split_of.keys()):
            problems.add("video in two splits", remedy, f"{video_id} ({split_of[video_id]}, {name})")
        split_of.update(dict.fromkeys(listed, name))
        if len(listed) != file.num_videos:
            others = {video_id for other in lists if other != name for video_id in lists[other]}
            absent = [video_id for video_id in official if video_id not in listed and video_id not in others]
            # Which are absent is known only where the lists of the split cover the range.
            named = f", without {', '.join(absent[:5])}" if len(absent) == file.num_videos - len(listed) else ""
            found = f"{file.name} has {len(listed)} videos instead of {file.num_videos}{named}"
            problems.add(f"list that differs from the official {split} split", remedy, found)


def _find_videos(wanted: list[str], videos: Path, allow_missing: bool, problems: Problems) -> dict[str, Path]:
    files: dict[str, list[Path]] = {}
    for path in index_videos(videos, problems):
        files.setdefault(path.stem, []).append(path)
    path_of = {}
    for video_id in wanted:
        found = files.get(video_id, [])
        path_of[video_id] = found[0] if found else videos / f"{video_id}.mp4"
        # Links to one file are not ambiguous. If no file was found at all, that has been reported.
        if len(found) > 1 and len({path.resolve() for path in found}) > 1:
            relative = " and ".join(str(path.relative_to(videos)) for path in found)
            problems.add("video with several files", f"leave one of them in {videos}", f"{video_id}: {relative}")
        elif files and not found and not allow_missing:
            remedy = f"put them into {videos} as <id>.mp4, or set allow_missing_videos and they count as misses"
            problems.add("video without a file", remedy, video_id)
    return path_of


def _is_video_id(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"video[0-9]+", value) is not None


def _defect(caption: Any) -> str | None:
    if not is_text(caption):
        return "caption that is not text"
    return None if caption.strip() else "empty caption"
