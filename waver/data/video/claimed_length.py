"""Tells whether a video file ends before the length that its container claims, as after an interrupted copy."""

from typing import TYPE_CHECKING

from waver.data.video.packets import demux

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video import VideoStream

_ROUNDING_S = 0.01
"""Two lengths that differ by less count as equal; seconds."""


def is_missing_much(read_s: float, video_s: float) -> bool:
    """Returns whether more than 1 s and more than a tenth of a video is missing; less may be rounding, or longer audio."""
    return video_s - read_s > max(1.0, video_s / 10)


def claimed_length(
    container: "InputContainer", stream: "VideoStream", end_s: float, num_discarded: int
) -> float | None:
    """Returns the length that the container claims in seconds, if the file ends well before it; else None.

    MPEG-TS, fragmented MP4 and AVI without an index claim no length, so it is not found if one of them is cut off.

    Args:
        container: of the video, read to its end.
        stream: the video.
        end_s: when its last frame disappears.
        num_discarded: number of packets that are not shown; the length of an MP4 includes them, so it is not compared.
    """
    if num_discarded:
        return None
    file_s = (container.duration or 0) / 1e6
    own_s = float(stream.duration * stream.time_base) if stream.duration and stream.time_base else file_s
    if abs(own_s - file_s) > _ROUNDING_S:
        return own_s if is_missing_much(end_s, own_s) else None
    # FFmpeg gives the length of the whole file to a stream of unknown length.
    claimed_s = own_s
    if not is_missing_much(end_s, claimed_s):
        return None
    return claimed_s if is_missing_much(_last_packet(container), claimed_s) else None  # else only the audio is longer


def _last_packet(container: "InputContainer") -> float:
    """Returns when the last packet of any stream ends, in seconds; a Matroska file claims the length of the longest."""
    import av

    last_s = 0.0
    try:
        with av.open(container.name) as again:
            for packet in demux(again):
                if packet.pts is not None:
                    last_s = max(last_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    except av.FFmpegError:
        return last_s
    return last_s
