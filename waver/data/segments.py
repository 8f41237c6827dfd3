"""Compares the segments of captions with the lengths of their videos: times in another unit end in the wrong frames."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_FAR_S = 5.0
"""Published segments end up to some seconds after their video; one that ends later than this, and than twice the video,
does so by mistake."""
_UNITS = (("frame numbers", 25), ("milliseconds", 1000))
"""What times may be that are too large: the unit, and how many of it are about a second."""
_SHARES = (0.1, 1.2)
"""In the right unit the last segment ends after the first share of the longest video, and nearly all before the second."""


class _Segment(NamedTuple):
    clip_id: str
    start_s: float
    end_s: float | None
    video_s: float


def describe_segments(clips: pa.Table, ledger: pa.Table) -> list[str]:
    """Says how many segments lie outside their videos, and in which unit their times may be.

    Args:
        clips: one row per clip: clip_id, start_s, end_s.
        ledger: clip_id and video_s, such as from `read_ledger`; only clips whose video has a known length count.

    Returns:
        Sentences; none if all segments lie within their videos, or end a little later.
    """
    cut = clips.filter(pc.or_(pc.is_valid(clips["start_s"]), pc.is_valid(clips["end_s"])))
    length_of = dict(zip(ledger["clip_id"].to_pylist(), ledger["video_s"].to_pylist(), strict=True))
    segments = [
        _Segment(row["clip_id"], row["start_s"] or 0.0, row["end_s"], video_s)
        for row in cut.select(["clip_id", "start_s", "end_s"]).to_pylist()
        if (video_s := length_of.get(row["clip_id"])) is not None
    ]
    past = [segment for segment in segments if segment.start_s >= segment.video_s]
    far = [segment for segment in segments if segment.start_s < segment.video_s and _ends_far_beyond(segment)]
    found = [(past, "lie past the end"), (far, "end far past the end")]
    return [_describe(wrong, what, len(segments)) for wrong, what in found if wrong]


def _ends_far_beyond(segment: _Segment) -> bool:
    return segment.end_s is not None and segment.end_s > max(segment.video_s + _FAR_S, 2 * segment.video_s)


def _describe(wrong: Sequence[_Segment], what: str, total: int) -> str:
    """Returns such as "4 of 8 segments lie past the end: milliseconds? ...", with lengths and the first of them."""
    lengths = np.array([segment.video_s for segment in wrong])
    last = np.array([segment.start_s if segment.end_s is None else segment.end_s for segment in wrong])
    unit = next((f": {name}?" for name, factor in _UNITS if _fits(last / factor, lengths)), ".")
    first = wrong[0]
    end = "the end" if first.end_s is None else f"{first.end_s:g}"
    return (
        f"{len(wrong)} of {total} segments {what}{unit} Their videos are {min(lengths):.1f} to {max(lengths):.1f} s long, "
        f"and {first.clip_id} is {first.start_s:g} to {end}. start_s and end_s are seconds."
    )


def _fits(last_s: np.ndarray, lengths_s: np.ndarray) -> bool:
    low, high = _SHARES
    return bool(last_s.max() >= low * lengths_s.max() and (last_s <= high * lengths_s).mean() > 0.9)
