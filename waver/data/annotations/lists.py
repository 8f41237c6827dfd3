"""The lists of a published split: reading them, and comparing them and their captions with what is published."""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waver.data.annotations.captions import Caption
from waver.data.annotations.published import PublishedSplit, split_digest
from waver.data.annotations.reading import Problems, caption_defect, excerpt, read_text

LIST_FILES: Mapping[str, str] = {"train": "train_list.txt", "validation": "val_list.txt", "test": "test_list.txt"}
"""Names that MSVD, VATEX and DiDeMo share."""

ORIGINAL_FILE = "take the original file"


@dataclass(frozen=True, slots=True)
class IdForm:
    """What the ids of a data set look like; none of them can lead out of the folder of videos."""

    data_set: str
    pattern: re.Pattern
    description: str

    def accepts(self, value: Any) -> bool:
        """Whether a value from a file is an id of this form."""
        return isinstance(value, str) and self.pattern.fullmatch(value) is not None

    def reject(self, value: Any, where: str, problems: Problems) -> None:
        """Notes that a value is not one."""
        problems.add(f"id that is not of {self.data_set}", self.description, f"{where}: {excerpt(value)}")


def read_list(path: Path, form: IdForm, problems: Problems) -> list[str] | None:
    """The ids of a text file, one a line; None if there is nothing to read."""
    if not path.is_file():
        problems.add("missing file", f"put it into {path.parent}", path.name)
        return None
    if (text := read_text(path, problems)) is None:
        return None
    lines = ((f"line {number} of {path.name}", line.strip()) for number, line in enumerate(text.split("\n"), 1))
    return unique_ids(((where, line) for where, line in lines if line), form, problems)


def unique_ids(entries: Iterable[tuple[str, str]], form: IdForm, problems: Problems) -> list[str]:
    """The ids among (where, value), in order; an id that is listed again, or is none, is a problem."""
    found: dict[str, None] = {}
    for where, value in entries:
        if not form.accepts(value):
            form.reject(value, where, problems)
        elif value in found:
            problems.add("video listed twice", ORIGINAL_FILE, f"{where}: {value}")
        else:
            found[value] = None
    return list(found)


def read_captions(
    clip_ids: Iterable[str], found: Mapping[str, Any], source: str, problems: Problems
) -> dict[str, list[str]]:
    """The captions of some clips that can be used: clip -> its captions.

    Args:
        clip_ids: the clips; those that `found` does not have are left out.
        found: clip -> what stands in the file, which should be a list of strings; other clips are ignored.
        source: name of the file.
        problems: receives what is wrong.
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
        problems: receives what is wrong.
    """
    remedy = f"{ORIGINAL_FILE} (a part of the data set is written as a table)"
    split_of: dict[str, str] = {}
    for part, clips in lists.items():
        for clip_id in sorted(split_of.keys() & clips):
            problems.add("video in two splits", remedy, f"{clip_id} ({split_of[clip_id]}, {part})")
        split_of.update(dict.fromkeys(clips, part))
        expected = published.parts[part]
        if len(clips) != expected.num_clips:
            found = f"{files[part]} has {len(clips)} videos instead of {expected.num_clips}"
        elif split_digest(clips) != expected.digest:
            found = f"{files[part]} has {len(clips)} videos, but other ones"
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
        problems: receives what is wrong.
    """
    for clips in lists.values():
        for clip_id, captions in clips.items():
            if not captions:
                remedy = "the file of captions is not the one of this split; take the complete one"
                problems.add("video without captions", remedy, clip_id)
    if problems:
        return
    for part, clips in lists.items():
        expected = published.parts[part].num_captions
        num_captions = sum(map(len, clips.values()))
        if expected is not None and num_captions != expected:
            remedy = f"{ORIGINAL_FILE} of captions (a variation of the data set is written as a table)"
            found = f"{part} has {num_captions} captions instead of {expected}"
            problems.add("number of captions that differs from the published one", remedy, found)


def youtube_captions(
    lists: Mapping[str, Sequence[str]], captions_of: Mapping[str, Sequence[str]], path_of: Mapping[str, str]
) -> Iterator[Caption]:
    """All captions of clips whose ids are `<YouTube id>_<start>_<end>` and whose files are those segments already.

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
