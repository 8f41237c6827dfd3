"""The endings of video files."""

import os

_COMMON = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg", ".flv", ".wmv", ".ts", ".ogv")
_RARE = (".3gp", ".3gpp", ".3g2", ".mts", ".m2ts", ".qt", ".asf", ".divx")  # in DiDeMo
VIDEO_SUFFIXES = frozenset(_COMMON + _RARE)
ANIMATED = ".gif"
"""Ending of files that are read as videos where a table names them, and are no videos elsewhere."""
PICTURES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm"))
ARCHIVES = frozenset((".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".zst"))


def strip_video_suffix(name: str) -> str:
    """Removes the extension from a file name if it is one of `VIDEO_SUFFIXES`, in upper or lower case."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122 - Path.suffix: Python versions differ on "name."
    return stem if suffix.lower() in VIDEO_SUFFIXES else name


def split_video_suffix(name: str) -> tuple[str, str]:
    """Returns a file name without and the extension that makes it a video, GIFs included; no extension otherwise."""
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    return (stem, suffix) if suffix.lower() in (*VIDEO_SUFFIXES, ANIMATED) else (name, "")
