"""Reads the frames of a clip as uint8 pixels.

The time stamps of a video decide which frames are read. decord reads the videos in which it finds the right frames, see
`Timeline.unfit_for_decord`. PyAV reads all other videos, and those at which decord fails; it checks the stamp of every
frame. Only functions import the two libraries, because only the decoder process needs them.
"""

import errno
import re
import stat
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from waver.data.clip import AFTER_DAMAGE, Clip, ClipError, describe_part
from waver.data.video.claimed_length import is_missing_much
from waver.data.video.frames import frames_at
from waver.data.video.orientation import upright_pixels
from waver.data.video.resizing import Resizing, resize_frames
from waver.data.video.timeline import Timeline, read_timeline, sample_frames
from waver.tools.file_kinds import describe_bytes, first_bytes, is_plain_text

_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"v=0", b"<?xml", b"<MPD")
"""First bytes of playlists: text files that name other files or addresses, which FFmpeg would open."""
_PLAYABLE = ("an MP4 video", "a Matroska or WebM video", "a GIF picture", "a JPEG picture", "a PNG picture")
"""Kinds of files, in the words of `describe_bytes`, that may hold a video: only their streams show it."""


def read_clip(
    path: Path | str,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
    frames_per_second: float,
    max_frames: int,
    target: Resizing,
    decord_failure: str | None = None,
    announce: Callable[[str], None] = lambda reader: None,
) -> Clip:
    """Reads the frames at `sample_frames`, resized by `resize_frames`.

    Args:
        path: the video file.
        start_s: start of the segment; None for the start of the video.
        end_s: end of the segment; None for the end of the video.
        frames_per_second: sampling rate.
        max_frames: maximal number of frames.
        target: size and shape of the frames.
        decord_failure: how decord failed at this clip before; it is then not tried again. None to try it.
        announce: called with the name of each reader before it begins.

    Raises:
        ClipError: if no frame can be read.
    """
    import av

    path = Path(path)
    _check_file(path)
    announce("pyav")
    try:
        timeline = _timeline_of(path, *_identity(path))
    except av.FFmpegError as error:
        raise ClipError("corrupt", _describe_damage(path) or _one_line(error, path)) from None
    indices = sample_frames(timeline, frames_per_second, max_frames, start_s, end_s)
    if not indices and timeline.claimed_s:
        reason = "the segment begins after the place where the file is cut off or damaged"
        raise ClipError("corrupt", reason, timeline.claimed_s)
    if not indices:
        reason = "the segment begins after the end of the video" if len(timeline) else "the video has no frame"
        raise ClipError("too_short", reason, timeline.end_s)
    clip = _read_indices(path, timeline, indices, target, decord_failure, announce)
    if not timeline.claimed_s:
        return clip
    part = describe_part(timeline.end_s, timeline.claimed_s)
    return replace(clip, video_s=timeline.claimed_s, note="; ".join(filter(None, (clip.note, part))))


def _identity(path: Path) -> tuple[int, ...]:
    """Returns what differs between two files that have the same name, one after the other."""
    try:
        status = path.stat()
    except OSError:  # opening it says why
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=1)
def _timeline_of(path: Path, *identity: int) -> Timeline:
    """Reads the timeline of a file; keeps it for the next segment of the same file, since it takes long for long films."""
    import av

    with av.open(str(path)) as container:
        return read_timeline(container)


def _read_indices(
    path: Path,
    timeline: Timeline,
    indices: list[int],
    target: Resizing,
    failure: str | None,
    announce: Callable[[str], None],
) -> Clip:
    """Reads frames of the timeline with decord if it is fit for the video and does not fail, else with PyAV.

    Args:
        path: the video file.
        timeline: of the video.
        indices: of the frames, non-decreasing.
        target: size and shape of the frames.
        failure: how decord failed before; None to try it.
        announce: called with the name of each reader before it begins.

    Raises:
        ClipError: if no frame can be read.
    """
    if not failure and not timeline.unfit_for_decord:
        import decord

        announce("decord")
        try:
            return read_with_decord(path, timeline, indices, target)
        except (
            decord.DECORDError,
            RuntimeError,
            ValueError,
            IndexError,
            MemoryError,  # PyAV needs less
        ) as error:
            failure = _one_line(error, path)
        announce("pyav")
    try:
        clip = read_with_pyav(path, timeline, indices, target)
    except ClipError as error:
        if not failure:
            raise
        raise ClipError(error.status, f"{error.reason} (decord: {failure})", error.video_s) from None
    notes = [f"not read by decord: {failure or timeline.unfit_for_decord}", clip.note]
    return replace(clip, note="; ".join(filter(None, notes)))


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        # No permission or a lost mount also count as missing: they can be repaired, and ingest retries missing clips.
        reason = "no such file" if error.errno == errno.ENOENT else f"cannot be opened: {error.strerror}"
        raise ClipError("missing", reason) from None
    if not stat.S_ISREG(status.st_mode):
        return
    if status.st_size == 0:
        raise ClipError("empty", "the file has 0 bytes")
    try:
        begins = first_bytes(path)
    except OSError as error:
        raise ClipError("missing", f"cannot be opened: {error.strerror}") from None
    if describe_bytes(begins) == "a web page":
        raise ClipError("corrupt", "the file is a web page")
    if begins.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(_PLAYLISTS):
        raise ClipError("no_video", "the file is a playlist, whose files are not opened")


def _describe_damage(path: Path) -> str | None:
    """Returns what an unreadable file is: no video at all, or an MP4 without its index; None if that is not known."""
    begins = first_bytes(path)
    kind = describe_bytes(begins)
    if kind and kind not in _PLAYABLE:
        return f"the file is {kind}"
    if is_plain_text(begins):
        return "the file is plain text"
    if not begins.strip(b"\x00"):
        return "the file begins with zeros, as a download that has not finished"
    with path.open("rb") as file:
        size = path.stat().st_size
        at, kinds = 0, []
        while at + 8 <= size and len(kinds) < 1000:
            file.seek(at)
            length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
            if not kind.isalnum():
                break
            kinds.append(kind)
            if length == 1:
                length = int.from_bytes(file.read(8), "big")
            if length < 8:
                break
            at += length
    if kinds[:1] != [b"ftyp"] or b"moov" in kinds:
        return None
    return "the file is cut off: it has no moov atom, the index at the end of an MP4"


def read_with_decord(path: Path, timeline: Timeline, indices: list[int], target: Resizing) -> Clip:
    """Reads frames of the timeline with decord.

    Raises:
        ValueError: if decord finds other frames than those of the timeline.
        Exception: decord's own errors.
    """
    import decord

    reader = decord.VideoReader(str(path), num_threads=1)
    times_s = reader.get_frame_timestamp(range(len(reader)))[:, 0]
    if len(times_s) != len(timeline) or np.abs(times_s - times_s[0] - timeline.times_s).max() > 0.5 / timeline.fps:
        raise ValueError("it sees other time stamps")
    assert timeline.stamps is not None
    if not set(reader.get_key_indices()) <= set(np.searchsorted(timeline.stamps, timeline.keyframes)):
        raise ValueError("it takes other frames for keyframes")  # and would begin to decode there
    unique, places = np.unique(indices, return_inverse=True)
    frames = reader.get_batch(unique).asnumpy()
    height, width = frames.shape[1:3]
    return Clip(
        resize_frames(frames, target)[places],
        tuple(float(timeline.times_s[index]) for index in indices),
        timeline.fps,
        height,
        width,
        decoder="decord",
        video_s=timeline.end_s,
    )


def read_with_pyav(path: Path, timeline: Timeline, indices: list[int], target: Resizing) -> Clip:
    """Reads frames of the timeline with PyAV; leaves out frames that cannot be decoded.

    The note of the clip counts these frames, and those after damaged data, whose pixels may be wrong.

    Raises:
        ClipError: if none can be decoded.
    """
    import av

    found: dict[int, np.ndarray] = {}
    doubtful: set[int] = set()
    shape = (0, 0)
    try:
        for index, (frame, is_doubtful, _) in frames_at(path, timeline, sorted(set(indices))):
            pixels = upright_pixels(frame)
            doubtful |= {index} if is_doubtful else set()
            found[index], shape = resize_frames(pixels[None], target)[0], pixels.shape[:2]
    except av.FFmpegError as error:
        raise ClipError("corrupt", _one_line(error, path)) from None
    read = [index for index in indices if index in found]
    if not read:
        raise ClipError("corrupt", "no frame of the segment can be decoded")
    return Clip(
        np.stack([found[index] for index in read]),
        tuple(float(timeline.times_s[index]) for index in read),
        timeline.fps,
        *shape,
        decoder="pyav",
        video_s=timeline.end_s,
        note="; ".join(filter(None, (_describe_lost(timeline, indices, read), _describe_doubtful(doubtful, read))))
        or None,
    )


def _describe_doubtful(doubtful: set[int], read: list[int]) -> str | None:
    """Says how many frames come after damaged data, so that their pixels may be wrong."""
    count = sum(index in doubtful for index in read)
    return f"{count} of {len(read)} frames {AFTER_DAMAGE}" if count else None


def _describe_lost(timeline: Timeline, indices: list[int], read: list[int]) -> str | None:
    """Says how many frames could not be decoded; if these are the last ones, also how much of the video can be read."""
    if len(read) == len(indices):
        return None
    note = f"{len(indices) - len(read)} of {len(indices)} frames cannot be decoded"
    lost = [index for index in indices if index not in set(read)]
    read_s, lost_s = float(timeline.times_s[read[-1]]), float(timeline.times_s[lost[-1]])
    if lost[0] < read[-1] or lost_s - read_s <= 1.0 or not is_missing_much(read_s, timeline.end_s):
        return note
    return f"{note}; {describe_part(read_s, timeline.end_s)}"


def _one_line(error: Exception, path: Path) -> str:
    """Returns the message in one line, without the path and decord's timestamps and source lines."""
    message = getattr(error, "strerror", None) or str(error)
    message = re.sub(r"\[[\d:]+\] \S+:\d+: |\[\s*\]\s*", "", message.replace(str(path), ""))
    return " ".join(message.split("Stack trace")[0].split())[:200] or type(error).__name__
