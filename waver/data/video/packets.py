"""Reads the packets of a video: their time stamps, and whether decoding can start at them."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from waver.data.clip import ClipError
from waver.data.video.keyframes import is_intra

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet as ReadPacket
    from av.video.stream import VideoStream

_JUMP_S = 3600.0
"""A gap of this length between packets is a jump of the clock, since no frame is shown for so long; seconds."""


class Packet(NamedTuple):
    """What the timeline needs of a packet; times are in the unit of the stream."""

    pts: int | None
    dts: int | None
    duration: int
    is_key: bool
    """Whether decoding can start here."""


class Packets(NamedTuple):
    """The packets of a video stream."""

    shown: list[Packet]
    """Those whose frames are shown, in the order of the file."""
    num_discarded: int
    """Number of packets whose frames are not shown."""
    num_wrong_keys: int
    """Number of packets that the container marks as keyframes though they need other frames."""


def demux(container: "InputContainer", *streams: "VideoStream") -> "Iterator[ReadPacket]":
    """Yields the packets from the current position on.

    Raises:
        av.FFmpegError: if the container is damaged.
    """
    packets = container.demux(*streams)
    while True:
        try:
            packet = next(packets)
        # IndexError: after the last packet, PyAV may look up a stream that it did not know at the beginning.
        except (StopIteration, IndexError):
            return
        yield packet


def read_packets(container: "InputContainer", stream: "VideoStream") -> Packets:
    """Reads all packets of a stream; of a truncated file, the packets before its end.

    Raises:
        ClipError: if the video is encrypted.
        av.FFmpegError: if the container is damaged before its first packet.
    """
    import av

    shown: list[Packet] = []
    num_discarded, num_wrong_keys = 0, 0
    try:
        for packet in demux(container, stream):
            if packet.has_sidedata("encryption_info"):
                raise ClipError("corrupt", "the video is encrypted (DRM), and the key is not in the file")
            if packet.size and not packet.is_discard:
                is_key = packet.is_keyframe and is_intra(stream.codec_context, packet)
                num_wrong_keys += packet.is_keyframe and not is_key
                shown.append(Packet(packet.pts, packet.dts, packet.duration or 0, is_key))
            elif packet.size:
                num_discarded += 1
    except av.FFmpegError:
        if not shown:
            raise
    return Packets(shown, num_discarded, num_wrong_keys)


def split_at_jumps(packets: list[Packet], unit_s: float) -> list[list[Packet]]:
    """Splits packets where the clock jumps back, or forward by an hour, as in files of concatenated recordings.

    FFmpeg may mistake such a jump for an overflow of the clock.

    Args:
        packets: in the order of the file.
        unit_s: unit of their times, seconds.

    Returns:
        The parts; only one if the clock does not jump.
    """
    known = [index for index, packet in enumerate(packets) if packet.dts is not None]
    ends = [0]
    for earlier, later in pairwise(known):
        seconds = ((packets[later].dts or 0) - (packets[earlier].dts or 0)) * unit_s
        if not -1 < seconds < _JUMP_S:
            ends.append(later)
    return [packets[start:end] for start, end in pairwise([*ends, len(packets)])]


def times_of_parts(parts: list[list[Packet]], fps: float, unit_s: float) -> list[float]:
    """Returns when each frame is shown in a video whose clock jumps; each part begins when the part before it ends.

    Args:
        parts: packets of the video, from `split_at_jumps`.
        fps: frame rate, for parts whose packets have no usable time stamps.
        unit_s: unit of the packets' times, seconds.
    """
    times_s: list[float] = []
    start_s = 0.0
    for part in parts:
        stamps = sorted(packet.pts for packet in part if packet.pts is not None)
        last_s = 1 / fps
        if len(set(stamps)) == len(part):
            own_s = [(stamp - stamps[0]) * unit_s for stamp in stamps]
            last_s = max(part, key=lambda packet: packet.pts or 0).duration * unit_s or last_s
        else:
            own_s = [index / fps for index in range(len(part))]
        times_s += [start_s + time_s for time_s in own_s]
        start_s = times_s[-1] + last_s if times_s else 0.0
    assert all(map(math.isfinite, times_s))
    return times_s
