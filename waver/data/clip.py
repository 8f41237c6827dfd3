"""The frames of a decoded clip, and the error of one that cannot be decoded."""

from dataclasses import dataclass

import numpy as np


class ClipError(Exception):
    """A clip cannot be decoded; ingest records it in the ledger and continues.

    Attributes:
        status: missing, empty, corrupt, no_video, too_short, timeout or killed.
        reason: one line without anything that only this file has, so that equal reasons can be counted.
        video_s: length of the video, seconds, if it is known.
    """

    def __init__(self, status: str, reason: str, video_s: float | None = None):
        super().__init__(status, reason, video_s)
        self.status = status
        self.reason = reason
        self.video_s = video_s


READ_IN_PART = "of the video can be read"
"""Part of the note of a clip whose video is cut off or damaged."""
AFTER_DAMAGE = "follow damaged data and may show other pictures"
"""Part of the note of a clip of which the decoder had to guess some frames."""


def describe_part(read_s: float, video_s: float) -> str:
    """Returns the note of a clip of which only the beginning of the video can be read; lengths in seconds."""
    return f"only the first {read_s:.1f} of {video_s:.1f} s {READ_IN_PART}"


@dataclass(frozen=True)
class Clip:
    """The sampled frames of a video or of a segment of it."""

    frames: np.ndarray
    """uint8 (F, size, size, 3), RGB, F >= 1."""
    times_s: tuple[float, ...]
    """When each frame is shown in the video, by its own time stamp, counted from the first frame; non-decreasing."""
    source_fps: float
    """Average frame rate that the container claims."""
    height: int
    """Height of the source video after rotation, pixels."""
    width: int
    decoder: str
    """decord or pyav."""
    video_s: float | None = None
    """Length of the video, seconds."""
    note: str | None = None
    """Why decord did not read the video, how many of the sampled frames could not be decoded or follow damaged data, and how
    much of a damaged video can be read."""
