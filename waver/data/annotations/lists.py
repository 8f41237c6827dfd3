"""Reads the lists of a published split, and compares them and their captions with what is published."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waver.data.annotations.captions import Caption
from waver.data.annotations.published import PublishedSplit, split_digest
from waver.data.annotations.reading import Problems, caption_defect, excerpt, read_text

LIST_FILES: Mapping[str, str] = {"train": "train_list.txt", "validation": "val_list.txt", "test": "test_list.txt"}
"""Part of the split -> name of its list file in MSVD, VATEX and DiDeMo."""

ORIGINAL_FILE = "take the original file"


@dataclass(frozen=True, slots=True)
class IdFormat:
    """The format of a data set's ids; no id of this format can be a path that leaves the folder of videos."""

    data_set: str
    pattern: re.Pattern
    description: str

    def accepts(self, value: Any) -> bool:
        """Returns whether a value from a file is an id of this format."""
        return isinstance(value, str) and self.pattern.fullmatch(value) is not None

    def reject(self, value: Any, where: str, problems: Problems) -> None:
        """Adds the problem that a value is not an id of this format."""
        problems.add(f"id that is not of {self.data_set}", self.description, f"{where}: {excerpt(value)}")


def read_list(path: Path, id_format: IdFormat, problems: Problems) -> list[str] | None:
    """Reads a text file with one id per line; returns None if it cannot be read."""
    if not path.is_file():
        problems.add("missing file", f"put it into {path.parent}", path.name)
        return None
    if (text := read_text(path, problems)) is None:
        return None
    lines = ((f"line {number} of {path.name}", line.strip()) for number, line in enumerate(text.split("\n"), 1))
    return unique_ids(((where, line) for where, line in lines if line), id_format, problems)


def unique_ids(entries: Iterable[tuple[str, str]], id_format: IdFormat, problems: Problems) -> list[str]:
    """Returns the ids among (place in the file, value), in order; adds a problem for each duplicate or malformed id."""
    found: dict[str, None] = {}
    for where, value in entries:
        if not id_format.accepts(value):
            id_format.reject(value, where, problems)
        elif value in found:
            problems.add("video listed twice", ORIGINAL_FILE, f"{where}: {value}")
        else:
            found[value] = None
    return list(found)


def read_captions(
    clip_ids: Iterable[str], found: Mapping[str, Any], source: str, problems: Problems
) -> dict[str, list[str]]:
    """Checks the captions of some clips.

    Args:
        clip_ids: the clips.
        found: clip -> its value in the file, which should be a list of strings.
        source: name of the file.
        problems: receives each value that is not a list, and each caption that is empty or not text.

    Returns:
        Clip -> its valid captions, for the clips in both `clip_ids` and `found`.
    """
    captions_of: dict[str, list[str]] = {}
    for clip_id in clip_ids:
        captions = found.get(clip_id)
        if captions is None:
            continue
        if not isinstance(captions, list):
            problems.add("captions that are not a list", ORIGINAL_FILE, f"{clip_id} in {source}: {excerpt(captions)}")
            continue
        captions_of[clip_id] = []
        for number, caption in enumerate(captions):
            if kind := caption_defect(caption):
                problems.add(kind, ORIGINAL_FILE, f"number {number} of {clip_id} in {source}: {excerpt(caption)}")
            else:
                captions_of[clip_id].append(caption)
    return captions_of


def check_lists(
    published: PublishedSplit, lists: Mapping[str, Collection[str]], files: Mapping[str, str], problems: Problems
) -> None:
    """Compares the lists of a split with the published ones: each must have the same clips, in any order.

    Args:
        published: the published split.
        lists: part of the split -> clips; parts whose list could not be read are absent.
        files: part of the split -> name of the file with its list.
        problems: receives each list that differs, and each clip in two lists.
    """
    remedy = f"{ORIGINAL_FILE} (to use only a part of the data set, write it as a table)"
    split_of: dict[str, str] = {}
    for part, clips in lists.items():
        for clip_id in sorted(split_of.keys() & clips):
            problems.add("video in two splits", remedy, f"{clip_id} ({split_of[clip_id]}, {part})")
        split_of.update(dict.fromkeys(clips, part))
        expected = published.parts[part]
        if len(clips) != expected.num_clips:
            found = f"{files[part]} has {len(clips)} videos instead of {expected.num_clips}"
        elif split_digest(clips) != expected.digest:
            found = f"{files[part]} has {len(clips)} videos, but not the published ones"
        else:
            continue
        problems.add(f"list that differs from the published one of {published.protocol}", remedy, found)


def check_captions(
    published: PublishedSplit, lists: Mapping[str, Mapping[str, Sequence[str]]], problems: Problems
) -> None:
    """Finds clips without captions; if there is no other problem, compares the number of captions with the published one.

    Args:
        published: the published split.
        lists: part of the split -> clip -> captions.
        problems: receives each clip without captions, and each part with another number of captions.
    """
    for clips in lists.values():
        for clip_id, captions in clips.items():
            if not captions:
                remedy = "the caption file does not cover this split; take the complete one"
                problems.add("video without captions", remedy, clip_id)
    if problems:
        return
    for part, clips in lists.items():
        expected = published.parts[part].num_captions
        num_captions = sum(map(len, clips.values()))
        if expected is not None and num_captions != expected:
            remedy = f"{ORIGINAL_FILE} of captions (to use other captions, write them as a table)"
            found = f"{part} has {num_captions} captions instead of {expected}"
            problems.add("number of captions that differs from the published one", remedy, found)


def youtube_captions(
    lists: Mapping[str, Sequence[str]], captions_of: Mapping[str, Sequence[str]], path_of: Mapping[str, str]
) -> Iterator[Caption]:
    """Yields the captions of clips named `<YouTube id>_<start>_<end>`, each of which is a video file of its own.

    Args:
        lists: part -> its clips.
        captions_of: clip -> its captions.
        path_of: clip -> its file.
    """
    for part, clips in lists.items():
        for clip_id in clips:
            video_id = clip_id.rsplit("_", 2)[0]
            for caption in captions_of[clip_id]:
                yield Caption(video_id, clip_id, path_of[clip_id], None, None, caption, part, None)
