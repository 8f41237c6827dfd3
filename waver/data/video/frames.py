"""Finds frames by their time stamps with PyAV, which decodes from the keyframe before them.

A picture of H.264 says whether other pictures refer to it. If none does, it is decoded only if it is wanted.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from waver.data.video.packets import demux
from waver.data.video.timeline import Timeline, video_stream

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame


class Decoded(NamedTuple):
    """A frame as the decoder returns it."""

    frame: "VideoFrame"
    is_doubtful: bool
    """Whether damaged or missing data came before it and no keyframe followed: it may show a mixture of other frames."""
    num_lost: int
    """Number of packets before it that could not be decoded."""


def frames_at(path: Path, timeline: Timeline, indices: list[int]) -> Iterator[tuple[int, Decoded]]:
    """Yields the wanted frames of the timeline with their indices; leaves out frames that cannot be decoded.

    Args:
        path: of the video.
        timeline: of the video.
        indices: of the frames, increasing.

    Raises:
        av.FFmpegError: if the container is damaged.
    """
    if timeline.stamps is None:
        yield from _count_frames(path, timeline, indices)
        return
    wanted = {int(timeline.stamps[index]): index for index in indices}
    targets = np.array(list(wanted))
    # Frames between the same two keyframes are decoded in one pass.
    groups = np.searchsorted(timeline.keyframes, targets, side="right") - 1
    for group in np.unique(groups):
        # The first pass skips pictures. Frames that it does not find, or that are doubtful, are read again without skipping:
        # a damaged video is read as a whole, and a decoder may learn the order of the frames from the pictures before them.
        for skips in (True, False) if timeline.is_h264 else (False,):
            missing = [int(target) for target in targets[groups == group] if int(target) in wanted]
            if not missing:
                break
            with _decode_from(path, timeline, int(group), missing[0], missing if skips else None) as frames:
                for decoded in frames:
                    pts = decoded.frame.pts
                    if pts in wanted and not (skips and decoded.is_doubtful):
                        yield wanted.pop(pts), decoded
                    if pts is not None and pts >= missing[-1]:
                        break
    if wanted and not timeline.has_exact_stamps:
        for decoded in _decode_from_start(path):
            if (pts := decoded.frame.pts) in wanted:
                yield wanted.pop(pts), decoded
            if not wanted:
                return


def _count_frames(path: Path, timeline: Timeline, indices: list[int]) -> Iterator[tuple[int, Decoded]]:
    """Yields the same as `frames_at` for a video whose frames have no time stamps, or stamps that repeat.

    A decoded frame may have the stamp of several frames of the timeline. It is then the one whose index is nearest to the
    index after the previous decoded frame. Counting alone would fail where recordings are joined: the decoder leaves out,
    without an error, frames that need earlier ones, and may still return frames of the previous recording. Frames without a
    stamp of the timeline are counted.
    """
    wanted, places, position = set(indices), defaultdict[int, list[int]](list), 0
    for index, stamp in enumerate(() if timeline.repeating_stamps is None else timeline.repeating_stamps):
        places[int(stamp)].append(index)
    for number, decoded in enumerate(_decode_from_start(path)):
        pts = decoded.frame.pts
        known = places.get(pts) if pts is not None else None
        if known:
            after = bisect_left(known, position)
            index = min(known[max(0, after - 1) : after + 1], key=lambda place: abs(place - position))
        else:
            index = max(position, number + decoded.num_lost)
        position = index + 1
        if index in wanted:
            yield index, decoded
        if index >= indices[-1]:
            return


@contextmanager
def _decode_from(
    path: Path, timeline: Timeline, keyframe: int, target: int, needed: Collection[int] | None
) -> Iterator[Iterator[Decoded]]:
    """Yields an iterator over the frames from a keyframe on, or from an earlier position if the seek misses the target.

    Args:
        path: of the video.
        timeline: of the video.
        keyframe: index of the last keyframe at or before the target; negative if there is none.
        target: time stamp of the first wanted frame.
        needed: see `_decode`.
    """
    import av

    with av.open(str(path)) as container:
        stream = video_stream(container)
        stream.codec_context.thread_count = 1  # ingest decodes one clip per CPU at a time
        for index in (keyframe, keyframe - 1, keyframe - 4):  # seeks in MPEG-TS are inexact
            if index > 0:
                container.seek(int(timeline.keyframes[index]), stream=stream)
                frames = _decode(container, needed)
                first = next((decoded for decoded in frames if decoded.frame.pts is not None), None)
                # With a gradual refresh instead of keyframes, the decoder may begin with a later frame that is no keyframe.
                if first is not None and first.frame.key_frame and (first.frame.pts or 0) <= target:
                    yield chain([first], frames)
                    return
    yield _decode_from_start(path, needed)


def _decode_from_start(path: Path, needed: Collection[int] | None = None) -> Iterator[Decoded]:
    import av

    with av.open(str(path)) as container:
        video_stream(container).codec_context.thread_count = 1
        yield from _decode(container, needed)


def _decode(container: "InputContainer", needed: Collection[int] | None) -> Iterator[Decoded]:
    """Decodes from the current position of the container; skips packets that cannot be decoded.

    Args:
        container: an open video.
        needed: time stamps of the frames to decode. Of the other frames, those to which no frame refers may be skipped. None
            to decode all frames.
    """
    import av

    is_doubtful, num_lost = False, 0
    was_needed = True
    stream = video_stream(container)
    packets = demux(container, stream)
    while True:
        try:
            packet = next(packets)
            is_needed = needed is None or packet.pts is None or packet.pts in needed
            # The packet after a needed one may hold the second field of the same frame.
            stream.codec_context.skip_frame = "DEFAULT" if is_needed or was_needed else "NONREF"
            was_needed = is_needed
            is_doubtful |= packet.is_corrupt
            for frame in packet.decode():
                is_doubtful = frame.is_corrupt or (is_doubtful and not frame.key_frame)
                yield Decoded(frame, is_doubtful, num_lost)
        except StopIteration:
            return
        except av.FFmpegError:
            # After a codec error the next packet may decode; after a container error there is no next packet.
            is_doubtful = True
            num_lost += 1
