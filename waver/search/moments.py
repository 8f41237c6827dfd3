"""Parses the name of a moment of a video: `kitchen/0001.mp4@12.5` or `kitchen/0001.mp4@1:02:03.5`."""

import re
from dataclasses import dataclass

_CLOCK = re.compile(r"(?:(?:(\d+):)?(\d+):)?(\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Moment:
    """A time in a video."""

    video: str
    """Id of an indexed video, or the path of a file."""
    time_s: float | None
    """None for the whole video."""


def parse_moments(text: str) -> list[Moment]:
    """Returns the moments that `VIDEO` or `VIDEO@TIME` can mean: a name of a video may itself end in @ and a number.

    The whole text as the name of a video comes first.

    A time is a number of seconds, or `minutes:seconds` or `hours:minutes:seconds`.
    """
    video, at, time = text.rpartition("@")
    found = _CLOCK.fullmatch(time)
    if not (at and video and found):
        return [Moment(text, None)]
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return [Moment(text, None), Moment(video, hours * 3600 + minutes * 60 + seconds)]
