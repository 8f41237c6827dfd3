"""Lists the videos to index, or the segments of videos, and cuts films into windows of time."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from waver.data.annotations.suffixes import VIDEO_SUFFIXES
from waver.data.annotations.video_list import TABLE_SUFFIXES, load_video_list
from waver.tools.errors import WaverError
from waver.tools.names import abbreviate

_ROUNDING_S = 1e-3


class VideosError(WaverError):
    """The videos to index cannot be listed."""


@dataclass(frozen=True)
class VideoFile:
    """A video to index."""

    video_id: str
    """Path relative to the folder that the user named, with slashes; for a file that the user named, its name; for one that
    a table names, as it stands there."""
    path: Path
    """Absolute."""
    segments: tuple[tuple[float, float | None], ...] = ()
    """Start and end, in seconds, of the segments that a table names; an end of None is the end of the video. Each is one
    window. If there are none, the video is cut into windows."""


@dataclass(frozen=True)
class Windows:
    """How films are cut into windows, which overlap if the stride is shorter than the window."""

    window_s: float | None
    """Length of a window, seconds; None for one window per video, of any length."""
    stride_s: float
    """Seconds from the start of a window to that of the next."""

    def has(self, start_s: float | None, end_s: float | None) -> bool:
        """Returns whether some video has a window with this start and end."""
        if self.window_s is None or start_s is None or end_s is None:
            return (start_s, end_s) == self.first()
        number = round(start_s / self.stride_s)
        return (
            abs(number * self.stride_s - start_s) < _ROUNDING_S and abs(start_s + self.window_s - end_s) < _ROUNDING_S
        )

    def first(self) -> tuple[float | None, float | None]:
        """Returns start and end of the first window of a video whose length is not known yet; None for no limit."""
        return (None, None) if self.window_s is None else (0.0, self.window_s)

    def later(self, video_s: float | None) -> Iterator[tuple[float, float]]:
        """Yields start and end of the other windows of a video.

        A window starts every `stride_s` until one reaches the end. A video that is not longer than a window has one window.

        Args:
            video_s: length of the video, seconds; None if it is not known.
        """
        if self.window_s is None or video_s is None:
            return
        number, start = 0, 0.0
        while start + self.window_s < video_s - _ROUNDING_S:
            number += 1
            start = round(number * self.stride_s, 6)  # a sum of strides would drift
            yield start, round(start + self.window_s, 6)


def find_videos(places: Sequence[Path]) -> list[VideoFile]:
    """Lists videos, by the endings of their files, in folders and their subfolders; links are followed.

    Args:
        places: folders, tables (see `load_video_list`), and files; any other file counts as a video, whatever its ending is.

    Raises:
        VideosError: if a place does not exist or holds no video, or two places have videos of the same name.
        AnnotationError: if a table is wrong.
    """
    problems, found = [], {}
    for place in places:
        if not place.exists():
            problems.append(f"{place} does not exist")
            continue
        videos = list(_videos_of(place))
        if odd := [ascii(video.video_id) for video in videos if not _is_unicode(str(video.path))]:
            problems.append(
                f"{len(odd)} videos of {place} have names that are not UTF-8 ({abbreviate(odd)}): rename them"
            )
        if not videos:
            problems.append(
                f"{place} has no videos (no files that end in {', '.join(sorted(VIDEO_SUFFIXES)[:4])}, ...)"
            )
        for video in videos:
            other = found.setdefault(video.video_id, {}).setdefault(video.path, video)
            if other.segments != video.segments:
                problems.append(f"{video.video_id} is named whole and in segments, or in different segments")
    if doubles := [name for name, videos in found.items() if len(videos) > 1]:
        problems.append(
            f"{len(doubles)} videos have names that occur in several of these places ({abbreviate(doubles)}): name a "
            "folder above them"
        )
    if problems:
        raise VideosError("these videos cannot be indexed:\n  " + "\n  ".join(problems))
    return [next(iter(videos.values())) for _, videos in sorted(found.items())]


def _videos_of(place: Path) -> Iterator[VideoFile]:
    """Yields the videos of a folder, a table or a file."""
    if place.is_dir():
        for name in sorted(_video_names(place)):
            yield VideoFile(name, _absolute(place / name))
    elif place.name.lower().endswith(TABLE_SUFFIXES):
        for listed in load_video_list(place):
            yield VideoFile(listed.video, _absolute(listed.path), listed.segments)
    else:
        yield VideoFile(place.name, _absolute(place))


def _is_unicode(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100  keeps links


def _video_names(folder: Path) -> Iterator[str]:
    for path, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not _leads_back(Path(path, name), folder)]
        for file in files:
            if Path(file).suffix.lower() in VIDEO_SUFFIXES:
                yield (Path(path) / file).relative_to(folder).as_posix()


def _leads_back(path: Path, folder: Path) -> bool:
    """Returns whether a path below `folder` is a link to a folder that it lies in, whose videos would be listed again."""
    if not path.is_symlink():
        return False
    target, inside = path.resolve(), path.relative_to(folder).parents  # of a/b/link: a/b, a, and `folder` itself
    return any((folder / above).resolve().is_relative_to(target) for above in inside)
