"""Finds the video files of a data set."""

import logging
import os
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from waver.data.annotations.reading import Problems, is_text
from waver.data.annotations.similar_names import find_similar, is_url
from waver.data.annotations.suffixes import ANIMATED, ARCHIVES, PICTURES, VIDEO_SUFFIXES, strip_video_suffix

logger = logging.getLogger(__name__)

_MAX_KINDS = 5


@dataclass
class VideoFolder:
    """What a folder of videos and its subfolders hold."""

    path: Path
    videos: list[Path] = field(default_factory=list)
    """Files with an ending of videos, and those that were asked for by name; sorted."""
    animations: list[Path] = field(default_factory=list)
    """GIFs, unless they were asked for."""
    num_others: Counter[str] = field(default_factory=Counter)
    """Ending -> number of files, for all other files."""
    num_picture_folders: int = 0

    def __bool__(self) -> bool:
        return bool(self.videos or self.animations)

    def names(self) -> list[str]:
        """Returns the paths of all videos and GIFs relative to the folder, with slashes."""
        return [path.relative_to(self.path).as_posix() for path in (*self.videos, *self.animations)]

    def describe(self) -> str:
        """Returns how many files of each ending there are."""
        counts = Counter(path.suffix.lower() for path in (*self.videos, *self.animations)) + self.num_others
        listed = [f"{count:,} {suffix or 'without ending'}" for suffix, count in counts.most_common(_MAX_KINDS)]
        return ", ".join(listed) + (", ..." if len(counts) > _MAX_KINDS else "") or "no files"


def index_videos(videos: Path, problems: Problems, *, names: Collection[str] = ()) -> VideoFolder:
    """Lists a folder and its subfolders, links included.

    Args:
        videos: the folder.
        problems: receives a folder that is missing, unreadable or without videos.
        names: names of files that count as videos whatever their extension.

    Returns:
        What the folder holds; nothing if it cannot be read.
    """
    index = VideoFolder(videos)
    if not is_text(str(videos)):
        problems.add("folder of videos whose name is not UTF-8", "rename it", videos)
        return index
    if not videos.is_dir():
        problems.add("missing folder of videos", "put the video files there, or correct data.videos", videos)
        return index
    pending, visited, num_problems = [videos], set(), len(problems)
    while pending:
        folder = pending.pop()
        # A linked folder may contain the link itself.
        if (real := folder.resolve()) in visited:
            continue
        visited.add(real)
        try:
            with os.scandir(folder) as scan:
                entries = sorted((entry.name, entry.is_dir(), entry.is_file()) for entry in scan)
        except OSError as error:
            problems.add(
                "unreadable folder of videos", "make it readable, or remove it", f"{folder} ({error.strerror})"
            )
            continue
        pending += [folder / name for name, is_folder, _ in entries if is_folder]
        _add_files(index, folder, [name for name, _, is_file in entries if is_file], names)
    index.videos.sort()
    index.animations.sort()
    if not index and len(problems) == num_problems:
        problems.add("folder without video files", _describe_remedy(index), f"{videos} (it holds {index.describe()})")
    return index


def _add_files(index: VideoFolder, folder: Path, files: list[str], names: Collection[str]) -> None:
    """Adds the files of one folder to the index."""
    suffixes = {name: os.path.splitext(name)[1].lower() for name in files}  # noqa: PTH122 - as strip_video_suffix
    for name, suffix in suffixes.items():
        if name in names or suffix in VIDEO_SUFFIXES:
            index.videos.append(folder / name)
        elif suffix == ANIMATED:
            index.animations.append(folder / name)
        else:
            index.num_others[suffix] += 1
    index.num_picture_folders += not PICTURES.isdisjoint(suffixes.values())


def _describe_remedy(index: VideoFolder) -> str:
    """Returns what to do with a folder that has no videos."""
    most = index.num_others.most_common(1)[0][0] if index.num_others else ""
    if most in PICTURES:
        return (
            f"the pictures in {index.num_picture_folders} folders seem to be frames: make a video of each folder, such as "
            f"`ffmpeg -framerate 25 -pattern_type glob -i 'video0/*{most}' -pix_fmt yuv420p video0.mp4`"
        )
    if most in ARCHIVES:
        return f"unpack the {most} files"
    return f"put the video files there ({', '.join(sorted(VIDEO_SUFFIXES))})"


def report_missing(
    kind: str, missing: Mapping[str, str], index: VideoFolder, *, correct: str, put: str, problems: Problems
) -> None:
    """Adds a problem for each video without a file; those that are there under a similar name are told apart.

    Args:
        kind: of the problem.
        missing: name that was looked for -> the text that shows it and its place.
        index: what the folder holds.
        correct: what to do with a video that is there under another name.
        put: what to do with a video that is not there.
        problems: receives the problems.
    """
    for name, remedy, file in explain_missing(missing, index, correct=correct, put=put):
        problems.add(kind, remedy, f"{missing[name]} ({file!r} is there)" if file else missing[name])


def describe_similar(missing: Collection[str], index: VideoFolder) -> list[str]:
    """Returns such as "10 of 10 are there with .mp4 added ('video0.mp4' for 'video0')", for each way in which names differ.

    Args:
        missing: names that were looked for.
        index: what the folder holds.
    """
    similar = find_similar(missing, index.names())
    counts = Counter(found.difference for found in similar.values())
    first = {found.difference: f"{found.file!r} for {name!r}" for name, found in reversed(similar.items())}
    return [
        f"{count:,} of {len(missing):,} are there {difference} ({first[difference]})"
        for difference, count in counts.most_common()
    ]


def warn_of_similar(missing: Collection[str], index: VideoFolder) -> None:
    """Logs which of the videos that are allowed to be missing are there under a similar name."""
    for sentence in describe_similar(missing, index):
        logger.warning(
            f"of the videos that are missing in {index.path}, {sentence}: as long as the names differ, their captions "
            "count as misses"
        )


def explain_missing(
    missing: Collection[str], index: VideoFolder, *, correct: str, put: str
) -> list[tuple[str, str, str | None]]:
    """Returns for each missing video its name, what to do, and the file of a similar name; arguments: `report_missing`."""
    similar = find_similar(missing, index.names())
    counts = Counter(found.difference for found in similar.values())
    explained: list[tuple[str, str, str | None]] = []
    for name in missing:
        if found := similar.get(name):
            remedy = f"{counts[found.difference]:,} of {len(missing):,} are there {found.difference}: {correct}"
            explained.append((name, remedy, found.file))
        elif is_url(name):
            explained.append((name, f"download them into {index.path}: waver reads files, no addresses", None))
        else:
            remedy = f"{put}, or set data.allow_missing_videos to count them as misses"
            explained.append((name, f"{remedy} (the folder holds {index.describe()})", None))
    return explained


def find_videos(
    file_name_of: Mapping[str, str], videos: Path, *, allow_missing: bool, problems: Problems
) -> dict[str, str]:
    """Finds the video file of each clip, in a folder and its subfolders.

    A file belongs to a clip if its name without an extension of `VIDEO_SUFFIXES` is the clip's id or published file name:
    `a.mov` may be `a.mp4` or `a.mov.mp4` on disk.

    Args:
        file_name_of: clip id -> published name of its file. No name is another clip's id.
        videos: the folder, absolute.
        allow_missing: whether a clip without a file is allowed.
        problems: receives clips with several files and, unless allowed, clips without a file.

    Returns:
        Clip id -> path of its file; for a clip without a file, the path of its published name in the folder.
    """
    clip_of_name = {name: clip_id for clip_id, name in file_name_of.items()}
    clip_of_name |= {clip_id: clip_id for clip_id in file_name_of}
    files: dict[str, list[Path]] = {}
    index = index_videos(videos, problems, names=clip_of_name)
    for path in index.videos:
        if clip_id := clip_of_name.get(strip_video_suffix(path.name)):
            files.setdefault(clip_id, []).append(path)
    path_of, missing = {}, {}
    for clip_id, name in file_name_of.items():
        found = files.get(clip_id, [])
        path_of[clip_id] = str(found[0] if found else videos / name)
        # Several links to one file are fine. If the folder has no files at all, `index_videos` has reported that.
        if len(found) > 1 and len({path.resolve() for path in found}) > 1:
            relative = " and ".join(str(path.relative_to(videos)) for path in found)
            problems.add("video with several files", f"keep only one of them in {videos}", f"{clip_id}: {relative}")
        elif not is_text(path_of[clip_id]):
            problems.add("video in a folder whose name is not UTF-8", "rename the folder", path_of[clip_id])
        elif index and not found:
            missing[name] = clip_id
    if allow_missing:
        warn_of_similar(missing, index)
    else:
        correct, put = "rename the files, or link to them", f"put them into {videos} as <id>.mp4"
        report_missing("video without a file", missing, index, correct=correct, put=put, problems=problems)
    return path_of
