"""Lists the videos to index, and cuts films into windows of time."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from waver.data.annotations.suffixes import VIDEO_SUFFIXES
from waver.tools.errors import WaverError
from waver.tools.names import abbreviate

_ROUNDING_S = 1e-3


class VideosError(WaverError):
    """The videos to index cannot be listed."""


@dataclass(frozen=True)
class VideoFile:
    """A video to index."""

    video_id: str
    """Path relative to the folder that the user named, with slashes; for a file that the user named, its name."""
    path: Path
    """Absolute."""


@dataclass(frozen=True)
class Windows:
    """How films are cut into windows, which overlap if the stride is shorter than the window."""

    window_s: float | None
    """Length of a window, seconds; None for one window per video, of any length."""
    stride_s: float
    """Seconds from the start of a window to that of the next."""

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
        start = 0.0
        while start + self.window_s < video_s - _ROUNDING_S:
            start += self.stride_s
            yield start, start + self.window_s


def find_videos(places: Sequence[Path]) -> list[VideoFile]:
    """Lists videos, by the endings of their files, in folders and their subfolders; links are followed.

    Args:
        places: folders, and files; a file counts as a video whatever its ending is.

    Raises:
        VideosError: if a place does not exist, none holds a video, or two places have videos of the same name.
    """
    problems, found = [], {}
    for place in places:
        if not place.exists():
            problems.append(f"{place} does not exist")
            continue
        names = sorted(_video_names(place)) if place.is_dir() else [""]
        if not names:
            problems.append(
                f"{place} has no videos (no files that end in {', '.join(sorted(VIDEO_SUFFIXES)[:4])}, ...)"
            )
        for name in names:
            video = VideoFile(name or place.name, Path(os.path.abspath(place / name)))  # noqa: PTH100  keeps links
            found.setdefault(video.video_id, {})[video.path] = video
    if doubles := [name for name, videos in found.items() if len(videos) > 1]:
        problems.append(
            f"{len(doubles)} videos have names that occur in several of these places ({abbreviate(doubles)}): name a "
            "folder above them"
        )
    if problems:
        raise VideosError("these videos cannot be indexed:\n  " + "\n  ".join(problems))
    return [next(iter(videos.values())) for _, videos in sorted(found.items())]


def _video_names(folder: Path) -> Iterator[str]:
    for path, _, files in os.walk(folder, followlinks=True):
        for file in files:
            if Path(file).suffix.lower() in VIDEO_SUFFIXES:
                yield (Path(path) / file).relative_to(folder).as_posix()
