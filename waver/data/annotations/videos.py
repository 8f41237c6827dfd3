"""Finds the video files of a data set."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path

from waver.data.annotations.reading import Problems, is_text

_COMMON = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts", ".ogv")
_RARE = (".3gp", ".3gpp", ".3g2", ".mts", ".m2ts", ".qt", ".asf", ".divx")  # in DiDeMo
VIDEO_SUFFIXES = frozenset(_COMMON + _RARE)


def index_videos(videos: Path, problems: Problems, *, names: Collection[str] = ()) -> list[Path]:
    """Finds the video files in a folder and its subfolders, links included, sorted by path.

    Args:
        videos: the folder.
        problems: receives a folder that is missing, unreadable or without videos.
        names: names of files that count as videos whatever their extension.

    Returns:
        The paths of the files, sorted.
    """
    if not is_text(str(videos)):
        problems.add("folder of videos whose name is not UTF-8", "rename it", videos)
        return []
    if not videos.is_dir():
        problems.add("missing folder of videos", "put the video files there, or correct data.videos", videos)
        return []
    found, pending, visited, num_problems = [], [videos], set(), len(problems)
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
        for name, is_folder, is_file in entries:
            if is_folder:
                pending.append(folder / name)
            elif is_file and (name in names or strip_video_suffix(name) != name):
                found.append(folder / name)
    if not found and len(problems) == num_problems:
        suffixes = ", ".join(sorted(VIDEO_SUFFIXES))
        problems.add("folder without video files", f"put the video files there ({suffixes})", videos)
    return sorted(found)


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
    for path in (indexed := index_videos(videos, problems, names=clip_of_name)):
        if clip_id := clip_of_name.get(strip_video_suffix(path.name)):
            files.setdefault(clip_id, []).append(path)
    path_of = {}
    for clip_id, name in file_name_of.items():
        found = files.get(clip_id, [])
        path_of[clip_id] = str(found[0] if found else videos / name)
        # Several links to one file are fine. If the folder has no files at all, `index_videos` has reported that.
        if len(found) > 1 and len({path.resolve() for path in found}) > 1:
            relative = " and ".join(str(path.relative_to(videos)) for path in found)
            problems.add("video with several files", f"keep only one of them in {videos}", f"{clip_id}: {relative}")
        elif not is_text(path_of[clip_id]):
            problems.add("video in a folder whose name is not UTF-8", "rename the folder", path_of[clip_id])
        elif indexed and not found and not allow_missing:
            remedy = f"put them into {videos} as <id>.mp4, or set data.allow_missing_videos to count them as misses"
            problems.add("video without a file", remedy, clip_id)
    return path_of


def strip_video_suffix(name: str) -> str:
    """Removes the extension from a file name if it is one of `VIDEO_SUFFIXES`, in upper or lower case."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 - Path.suffix: Python versions differ on "name."
    return stem if suffix.lower() in VIDEO_SUFFIXES else name
