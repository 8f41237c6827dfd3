"""Compares the segments of captions with the lengths of their videos: times in another unit end in the wrong frames."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_FAR_S = 5.0
"""Published segments end up to some seconds after their video; one that ends later than this, and than twice the video,
does so by mistake."""


def describe_segments(clips: pa.Table, ledger: pa.Table) -> list[str]:
    """Says how many segments lie outside their videos, and in which unit their times may be.

    Args:
        clips: one row per clip: clip_id, start_s, end_s.
        ledger: from `read_ledger`; only clips whose video has a known length count.

    Returns:
        Sentences; none if all segments lie within their videos, or end a little later.
    """
    segments = clips.filter(pc.or_(pc.is_valid(clips["start_s"]), pc.is_valid(clips["end_s"])))
    lengths = dict(zip(ledger["clip_id"].to_pylist(), ledger["video_s"].to_pylist(), strict=True))
    rows = [row | {"video_s": lengths.get(row["clip_id"])} for row in segments.to_pylist()]
    rows = [row for row in rows if row["video_s"] is not None]
    outside = [row for row in rows if (row["start_s"] or 0.0) >= row["video_s"]]
    far = [row for row in rows if row not in outside and _ends_far_beyond(row)]
    found = [(outside, "begin after the end of their video"), (far, "end far beyond the end of their video")]
    return [_describe(wrong, what, len(rows)) for wrong, what in found if wrong]


def _ends_far_beyond(row: dict) -> bool:
    return row["end_s"] is not None and row["end_s"] > max(row["video_s"] + _FAR_S, 2 * row["video_s"])


def _describe(wrong: list[dict], what: str, total: int) -> str:
    lengths = [row["video_s"] for row in wrong]
    first = wrong[0]
    times = f"{first['start_s'] or 0:g} to {'the end' if first['end_s'] is None else format(first['end_s'], 'g')}"
    last = np.array([row["end_s"] or row["start_s"] for row in wrong])
    unit = next(
        (
            f" Are the times {name}? waver needs seconds."
            for name, factor in (("milliseconds", 1000), ("frame numbers", 25))
            if (last / factor <= np.array(lengths) * 1.2).mean() > 0.9
        ),
        "",
    )
    of_videos = f"videos of {min(lengths):.1f} to {max(lengths):.1f} s; {first['clip_id']}: {times}"
    return f"{len(wrong)} of {total} segments {what} ({of_videos}).{unit}"
