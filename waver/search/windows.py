"""Lists the videos to index, or segments of them, and cuts videos into windows of time."""

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
    """Its path relative to the folder that the user named, with slashes. If the user named the file itself, its name. If a
    table lists it, the path as the table has it."""
    path: Path
    """Absolute."""
    segments: tuple[tuple[float, float | None], ...] = ()
    """Start and end, in seconds, of the segments that a table lists; an end of None is the end of the video. Each segment
    is one window. If there are none, the video is cut into windows."""


@dataclass(frozen=True)
class Windows:
    """How videos are cut into windows, which overlap if the stride is shorter than the window."""

    window_s: float | None
    """Length of a window, seconds; None for one window per video, of any length."""
    stride_s: float
    """Seconds from the start of a window to that of the next."""

    def has(self, start_s: float | None, end_s: float | None) -> bool:
        """Returns whether a long enough video has a window with this start and end."""
        if self.window_s is None or start_s is None or end_s is None:
            return (start_s, end_s) == self.first()
        number = round(start_s / self.stride_s)
        return (
            abs(number * self.stride_s - start_s) < _ROUNDING_S and abs(start_s + self.window_s - end_s) < _ROUNDING_S
        )

    def first(self) -> tuple[float | None, float | None]:
        """Returns start and end, in seconds, of the first window of any video; (None, None) for the whole video."""
        return (None, None) if self.window_s is None else (0.0, self.window_s)

    def later(self, video_s: float | None) -> Iterator[tuple[float, float]]:
        """Yields start and end, in seconds, of the windows of a video after the first one.

        A window starts every `stride_s` seconds, until one reaches the end of the video. A video that is not longer than a
        window has only the first one.

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
    """Lists the videos to index, sorted by name.

    In folders and their subfolders, videos are known by the endings of their files, and links are followed. A file that is
    named itself counts as a video, whatever its ending is, unless it is a table.

    Args:
        places: folders, files, and tables of videos (see `load_video_list`).

    Raises:
        VideosError: if a place does not exist or has no videos, if two videos have the same name, or if a name is not UTF-8.
        AnnotationError: if a table has mistakes.
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
                problems.append(
                    f"{video.video_id} is named twice, whole and in segments, or in different segments: name it once"
                )
    if doubles := [name for name, videos in found.items() if len(videos) > 1]:
        problems.append(
            f"{len(doubles)} videos have names that occur in several of these places ({abbreviate(doubles)}): name a "
            "folder that contains these places"
        )
    if problems:
        raise VideosError("the videos to index cannot be listed:\n  " + "\n  ".join(problems))
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
