"""Finds when each frame of a video is shown, from the time stamps of its packets, and samples frames by time.

Demuxing reads the whole file once and decodes nothing. An index divided by the average rate is not a time: phones, screen
recorders and WebM files have a variable frame rate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from waver.data.clip import ClipError
from waver.data.video.claimed_length import claimed_length
from waver.data.video.orientation import describe_odd_matrix
from waver.data.video.packets import Packet, read_packets, split_at_jumps, times_of_parts

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

_MAX_FPS = 250.0
"""Highest plausible frame rate of a container without time stamps, whose rate is only a claim."""
_RAW = ("cavsvideo", "dirac", "h261", "h263", "h264", "hevc", "m4v", "mjpeg", "mpegvideo", "obu", "vc1", "vvc")
"""FFmpeg's names of streams without a container: FFmpeg assumes 25 frames per second unless the codec names a rate."""
_WITHOUT_STAMPS = ("avi", *_RAW)
"""FFmpeg's names of containers without time stamps: it derives them from the rate."""
_DECORD_CODECS = ("h264", "hevc", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4", "vp8", "vp9")
"""Codecs of which decord was seen to return the right frames; of others (QuickTime Animation) it returns wrong ones."""
_DELAY = 3
"""Number of frames by which packets may be late without a gap: encoders with B-frames delay the first packets."""
_ROUNDING_S = 1e-3
"""Resolution of time stamps in Matroska and WebM, seconds."""
_PICTURES = ("_pipe", "image2")
"""FFmpeg's formats for single pictures end with these."""


@dataclass(frozen=True)
class Timeline:
    """The frames of a video, in the order in which they are shown."""

    times_s: np.ndarray
    """float64 (F,): when each frame is shown, counted from the first frame."""
    end_s: float
    """When the last frame disappears."""
    fps: float
    """Average frame rate that the container claims."""
    stamps: np.ndarray | None
    """int64 (F,): time stamp of each frame, in the unit of the stream; None if the frames have no stamps (AVI), or if stamps
    repeat. Then the times follow from the frame rate or, if packets are missing, from the decoding times of the packets."""
    keyframes: np.ndarray
    """int64: stamps of the frames at which decoding can start, increasing."""
    is_constant: bool
    """Whether every frame is within half a frame of its index / `fps`."""
    unfit_for_decord: str | None
    """Why decord would return wrong frames, without an error; None if it returns the right ones."""
    has_exact_stamps: bool = True
    """Whether a frame has the same time stamp after a seek. Not in MPEG program streams, where FFmpeg interpolates them."""
    repeating_stamps: np.ndarray | None = None
    """int64 (F,): time stamp of each frame, if stamps repeat or jump; None if there are `stamps`, or no stamps at all."""
    claimed_s: float | None = None
    """Length of the video that the container claims, if the file ends well before it; else None."""
    is_h264: bool = False
    """Whether there are `stamps` and the codec is H.264, whose pictures say whether others refer to them."""

    def __len__(self) -> int:
        return len(self.times_s)


def video_stream(container: "InputContainer") -> "VideoStream":
    """Returns the video stream that FFmpeg's tools prefer; attached pictures (covers) do not count.

    Raises:
        ClipError: if the file has none, or is a picture.
    """
    from av.stream import Disposition

    films = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if films and container.format.name.endswith(_PICTURES):
        is_webp = container.format.name.startswith("webp")
        what = "a WebP picture, or an animation, which FFmpeg does not read in WebP" if is_webp else "a picture"
        raise ClipError("no_video", f"the file is {what}")
    if not films:
        kinds = ", ".join(sorted({stream.type for stream in container.streams} - {"video"})) or "nothing"
        cover = " and a cover picture" if container.streams.video else ""
        raise ClipError("no_video", f"the file holds {kinds}{cover}")
    best = container.streams.best("video")
    return next((film for film in films if film is best), films[0])


def read_timeline(container: "InputContainer") -> Timeline:
    """Reads the time stamps of all packets of the video stream; of a truncated file, those of the packets before its end.

    Raises:
        ClipError: if there is no video, if it is encrypted, or if it has no frame rate, or an impossible one and no stamps.
        av.FFmpegError: if the container is damaged before its first packet.
    """
    stream = video_stream(container)
    packets, num_discarded, num_wrong_keys = read_packets(container, stream)
    is_raw = container.format.name in _RAW
    # The average rate of a raw stream is FFmpeg's default; the guessed rate is that of the codec, if it names one.
    fps = float((None if is_raw else stream.average_rate) or stream.guessed_rate or stream.average_rate or 0)
    if not (math.isfinite(fps) and fps > 0):
        raise ClipError("corrupt", "the video has no frame rate")
    if fps > _MAX_FPS and container.format.name in _WITHOUT_STAMPS:
        raise ClipError(
            "corrupt",
            f"the file claims {fps:g} frames per second and has no time stamps: give it its true rate, for example with "
            "ffmpeg -r 30 -i FILE -c copy NEW.mp4",
        )
    pts = [packet.pts for packet in packets]
    parts = split_at_jumps(packets, float(stream.time_base))
    if len(parts) > 1:  # the length that the container claims is wrong as well
        return _timeline_of_parts(stream, parts, fps)
    if container.format.name in _WITHOUT_STAMPS or None in pts or len(set(pts)) < len(pts):
        timeline = _timeline_without_stamps(stream, packets, fps, is_raw=is_raw)
        if container.format.name not in _WITHOUT_STAMPS and None not in pts:
            repeat = "its time stamps repeat"
            timeline = replace(timeline, repeating_stamps=_stamps_in_order(parts), unfit_for_decord=repeat)
        return replace(timeline, claimed_s=claimed_length(container, stream, timeline.end_s, num_discarded))

    stamps = np.sort(np.array(pts, np.int64))
    unit_s = float(stream.time_base)
    times_s = (stamps - stamps[:1]) * unit_s
    nominal_s = np.arange(len(stamps)) / fps
    is_constant = bool((np.abs(times_s - nominal_s) <= 0.5 / fps).all())
    # Containers round time stamps; the rate is exact.
    times_s = np.where(np.abs(times_s - nominal_s) <= _ROUNDING_S + unit_s, nominal_s, times_s)
    last_s = packets[int(np.argmax(pts))].duration * unit_s or 1 / fps if packets else 0.0
    keyframes = [(index, pts[index]) for index, packet in enumerate(packets) if packet.is_key]
    is_in_order = bool(packets and packets[0].is_key) and all(stamps[index] == stamp for index, stamp in keyframes)
    unfit = _unfit_packets(num_discarded, num_wrong_keys, is_in_order=is_in_order)
    end_s = float(times_s[-1]) + last_s if len(times_s) else 0.0
    return Timeline(
        times_s,
        end_s,
        fps,
        stamps,
        np.sort(np.array([stamp for _, stamp in keyframes], np.int64)),
        is_constant=is_constant,
        unfit_for_decord=unfit or _unfit_for_decord(container, stream),
        has_exact_stamps=container.format.name != "mpeg",
        claimed_s=claimed_length(container, stream, end_s, num_discarded),
        is_h264=stream.codec_context.codec.canonical_name == "h264",
    )


def _timeline_of_parts(stream: "VideoStream", parts: list[list[Packet]], fps: float) -> Timeline:
    """Returns the timeline of a video whose clock jumps; its frames are found by counting."""
    times_s = np.array(times_of_parts(parts, fps, float(stream.time_base)))
    is_constant = bool((np.abs(times_s - np.arange(len(times_s)) / fps) <= 0.5 / fps).all())
    unfit = "its clock jumps, and the frames are counted"
    end_s = float(times_s[-1]) + 1 / fps
    timeline = Timeline(times_s, end_s, fps, None, np.empty(0, np.int64), is_constant, unfit_for_decord=unfit)
    return replace(timeline, repeating_stamps=_stamps_in_order(parts))


def _stamps_in_order(parts: list[list[Packet]]) -> np.ndarray | None:
    """Returns the time stamps of all frames in the order in which they are shown; None if a packet has none."""
    stamps = [sorted(packet.pts for packet in part if packet.pts is not None) for part in parts]
    return np.array([*chain(*stamps)], np.int64) if sum(map(len, stamps)) == sum(map(len, parts)) else None


def _timeline_without_stamps(stream: "VideoStream", packets: list[Packet], fps: float, *, is_raw: bool) -> Timeline:
    """Returns the timeline of a video whose packets have no usable time stamps, by the frame rate.

    Args:
        stream: the video.
        packets: all packets of the video.
        fps: frame rate.
        is_raw: whether the file is a stream without a container.
    """
    assumed = is_raw and stream.codec_context.framerate is None
    unfit = "no time stamps" + (f" and no frame rate: {fps:g} per second are assumed" if assumed else "")
    delay = _reorder_delay(stream)
    times_s, is_constant = _times_of_packets(packets, fps, float(stream.time_base), delay)
    end_s = float(times_s[-1]) + 1 / fps if packets else 0.0
    return Timeline(times_s, end_s, fps, None, np.empty(0, np.int64), is_constant, unfit_for_decord=unfit)


def _reorder_delay(stream: "VideoStream") -> int:
    """Returns how many further packets are decoded before a frame is shown: 0 without B-frames."""
    if not stream.codec_context.has_b_frames:
        return 0
    # B-frames of these codecs may refer to other B-frames.
    return 2 if stream.codec_context.codec.canonical_name in ("h264", "hevc") else 1


def _times_of_packets(packets: list[Packet], fps: float, unit_s: float, delay: int) -> tuple[np.ndarray, bool]:
    """Returns when each frame of a container without time stamps is shown, and whether its rate is constant.

    If a recorder has dropped a frame, an AVI has an empty packet in its place. FFmpeg counts it, which leaves a gap in the
    decoding times of the packets. Without gaps the times follow from the frame rate.

    Args:
        packets: all packets of the video.
        fps: frame rate.
        unit_s: unit of the packets' times.
        delay: number of further packets that are decoded before a frame is shown, see `_reorder_delay`.
    """
    nominal_s, decoded_s = np.arange(len(packets)) / fps, np.empty(len(packets))
    known = [index for index, packet in enumerate(packets) if packet.dts is not None]
    if not known or len(packets) <= delay:
        return nominal_s, True
    for index, packet in enumerate(packets):  # a program stream gives the times of some packets only
        last_s = decoded_s[index - 1] if index else (packets[known[0]].dts or 0) * unit_s - (known[0] + 1) / fps
        decoded_s[index] = last_s + 1 / fps if packet.dts is None else packet.dts * unit_s
    decoded_s = np.maximum.accumulate(decoded_s)
    times_s = np.append(decoded_s[delay:], decoded_s[-1] + np.arange(1, delay + 1) / fps)
    times_s -= times_s[0]
    if (np.abs(times_s - nominal_s) <= _DELAY / fps).all():
        return nominal_s, True
    return times_s, False


def _unfit_packets(num_discarded: int, num_wrong_keys: int, *, is_in_order: bool) -> str | None:
    """Returns why decord would return wrong frames: it begins at packets marked as keyframes, and counts from there."""
    if num_discarded:
        return f"{num_discarded} packets are not to be shown"
    if num_wrong_keys:
        return f"{num_wrong_keys} packets are marked as keyframes and are none"
    # decord assumes that keyframes are shown in the order of their packets.
    return None if is_in_order else "frames before a keyframe are shown after it"


def _unfit_for_decord(container: "InputContainer", stream: "VideoStream") -> str | None:
    """Returns why decord may seek inexactly, choose another stream, or differ from PyAV in colours or orientation."""
    formats = container.format.name.split(",")
    pixels = stream.codec_context.format
    if not {"mov", "mp4", "matroska", "webm"} & set(formats):
        return f"inexact seeks in {formats[0]}"
    if len(container.streams.video) > 1:
        return "several video streams"
    if (codec := stream.codec_context.codec.canonical_name) not in _DECORD_CODECS:
        return f"the codec {codec}"
    if pixels is None or any(component.bits != 8 for component in pixels.components):
        return "not 8 bits a colour"
    return describe_odd_matrix(Path(container.name)) if "mp4" in formats else None


def sample_frames(
    timeline: Timeline,
    frames_per_second: float,
    max_frames: int,
    start_s: float | None = None,
    end_s: float | None = None,
) -> list[int]:
    """Samples frames at a constant rate in time; if these are more than `max_frames`, keeps evenly spaced ones.

    With a constant frame rate the frames are those of `sample_positions`. Else they are the frames that are shown at
    start_s, start_s + 1 / frames_per_second, ...; so a frame that is shown for long is sampled repeatedly.

    Args:
        timeline: of the video.
        frames_per_second: sampling rate.
        max_frames: maximal number of frames.
        start_s: start of the segment; None for the start of the video.
        end_s: end of the segment, inclusive; None for the end of the video.

    Returns:
        Non-decreasing indices in [0, len(timeline)); empty if the segment lies outside the video.
    """
    if timeline.is_constant:
        return sample_positions(len(timeline), timeline.fps, frames_per_second, max_frames, start_s, end_s)
    first_s = start_s or 0.0
    if first_s >= timeline.end_s:
        return []
    last_s = timeline.end_s if end_s is None else min(end_s, timeline.end_s)
    wanted_s = (
        first_s + np.arange(math.floor((last_s - first_s) * frames_per_second + _ROUNDING_S) + 1) / frames_per_second
    )
    wanted_s = wanted_s[wanted_s < timeline.end_s]
    shown = np.searchsorted(timeline.times_s, wanted_s + _ROUNDING_S, side="right") - 1
    return thin([int(index) for index in shown], max_frames)


def sample_positions(
    num_frames: int,
    source_fps: float,
    frames_per_second: float,
    max_frames: int,
    start_s: float | None = None,
    end_s: float | None = None,
) -> list[int]:
    """Samples frame positions of a video with a constant frame rate, as the published recipe does.

    Args:
        num_frames: number of frames of the video.
        source_fps: frame rate of the video.
        frames_per_second: sampling rate; rounded to a whole stride in frames.
        max_frames: maximal number of positions; of more positions, evenly spaced ones are kept.
        start_s: start of the segment; None for the start of the video.
        end_s: end of the segment, inclusive; None for the end of the video.

    Returns:
        Increasing positions in [0, num_frames); empty if the segment lies outside the video.

    Raises:
        ValueError: if the video has no frame rate.
    """
    if not (math.isfinite(source_fps) and source_fps > 0):
        raise ValueError(f"the video has no frame rate ({source_fps})")
    first = int((start_s or 0) * source_fps)
    last = num_frames - 1 if end_s is None else int(min(end_s * source_fps, num_frames - 1))
    stride = max(1, round(source_fps / frames_per_second))
    return thin(range(first, last + 1, stride), max_frames)


def thin(positions: Sequence[int], max_frames: int) -> list[int]:
    """Returns at most `max_frames` of the positions, evenly spaced, the first and the last among them."""
    if len(positions) <= max_frames:
        return list(positions)
    return [positions[i] for i in np.linspace(0, len(positions) - 1, max_frames, dtype=int)]
