"""Samples frames of a video and reads them as uint8 pixels.

decord reads the video; if it fails, PyAV does, which supports more codecs and continues after damage. Both are imported in
functions, because only the decoder process needs them.
"""

import errno
import math
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

_PLAYLISTS = (b"#EXTM3U", b"ffconcat", b"v=0", b"<?xml", b"<MPD")
"""First bytes of playlists: text files that name other files or addresses, which FFmpeg would open."""


class ClipError(Exception):
    """A clip cannot be decoded; ingest records it in the ledger and continues.

    Attributes:
        status: missing, empty, corrupt, no_video, too_short, timeout or killed.
        reason: one line without the path of the file, so that equal reasons can be counted.
    """

    def __init__(self, status: str, reason: str):
        super().__init__(status, reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True)
class Clip:
    """The sampled frames of a video or of a segment of it."""

    frames: np.ndarray
    """uint8 (F, size, size, 3), RGB, F >= 1."""
    times_s: tuple[float, ...]
    """Time of each frame in the video: its position / `source_fps`."""
    source_fps: float
    height: int
    """Height of the source video after rotation, pixels."""
    width: int
    decoder: str
    """decord or pyav."""


def sample_positions(
    num_frames: int,
    source_fps: float,
    frames_per_second: float,
    max_frames: int,
    start_s: float | None = None,
    end_s: float | None = None,
) -> list[int]:
    """Samples frame positions at a constant rate; more than `max_frames` are reduced to evenly spaced ones.

    Args:
        num_frames: number of frames of the video.
        source_fps: frame rate of the video.
        frames_per_second: sampling rate; rounded to a whole stride in frames.
        max_frames: maximal number of positions.
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
    positions = range(first, last + 1, stride)
    if len(positions) > max_frames:
        return [positions[i] for i in np.linspace(0, len(positions) - 1, max_frames, dtype=int)]
    return list(positions)


def read_clip(
    path: Path | str,
    *,
    start_s: float | None = None,
    end_s: float | None = None,
    frames_per_second: float,
    max_frames: int,
    size: int,
) -> Clip:
    """Reads the frames at `sample_positions`, resized and cropped by `resize_and_crop`.

    Args:
        path: the video file.
        start_s: start of the segment; None for the start of the video.
        end_s: end of the segment; None for the end of the video.
        frames_per_second: sampling rate.
        max_frames: maximal number of frames.
        size: height and width of the frames, pixels.

    Raises:
        ClipError: if no frame can be read.
    """
    path = Path(path)
    _check_file(path)
    sampling = (frames_per_second, max_frames, start_s, end_s)
    import decord

    try:
        return _read_with_decord(path, sampling, size)
    except (
        decord.DECORDError,
        RuntimeError,
        ValueError,
        IndexError,
        MemoryError,
    ) as error:  # MemoryError: PyAV needs less
        decord_reason = _one_line(error, path)
    try:
        return _read_with_pyav(path, sampling, size)
    except ClipError as error:
        # PyAV's reason is the better one; only for a damaged file do both help.
        if error.status != "corrupt":
            raise
        raise ClipError("corrupt", f"{error.reason} (decord: {decord_reason})") from None


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
        with path.open("rb") as file:
            begins = file.read(64)
    except OSError as error:
        raise ClipError("missing", f"cannot be opened: {error.strerror}") from None
    if begins.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(_PLAYLISTS):
        raise ClipError("no_video", "the file is a playlist, whose files are not opened")


def _read_with_decord(path: Path, sampling: tuple, size: int) -> Clip:
    """Reads with decord; raises one of its errors, or ValueError, if PyAV should try."""
    import decord

    # One thread: ingest decodes one clip per CPU at a time.
    reader = decord.VideoReader(str(path), num_threads=1)
    fps = reader.get_avg_fps()
    # Without increasing timestamps (common in AVI) decord seeks to wrong frames and reports no error.
    if not (np.diff(reader.get_frame_timestamp(range(len(reader)))[:, 0]) > 0).all():
        raise ValueError("the timestamps of the frames do not increase")
    positions = sample_positions(len(reader), fps, *sampling)
    if not positions:
        raise ValueError("no frame in the segment")
    frames = reader.get_batch(positions).asnumpy()
    height, width = frames.shape[1:3]
    times_s = tuple(position / fps for position in positions)
    return Clip(resize_and_crop(frames, size), times_s, fps, height, width, decoder="decord")


def _read_with_pyav(path: Path, sampling: tuple, size: int) -> Clip:
    import av

    try:
        with av.open(str(path)) as container:
            fps, num_frames = _measure(container)
        if not fps:
            raise ClipError("corrupt", "the video has no frame rate")
        positions = sample_positions(num_frames, fps, *sampling)
        if not positions:
            length = f"{num_frames} frames, {num_frames / fps:.2f} s"
            raise ClipError("too_short", f"no frame in the segment; the video has {length}")
        with av.open(str(path)) as container:
            frames = _decode(container, positions, size)
    except av.FFmpegError as error:
        raise ClipError("corrupt", _one_line(error, path)) from None
    if not frames:
        raise ClipError("too_short", "no frame of the segment can be decoded")
    return Clip(
        np.stack([frame for frame, _ in frames.values()]),
        tuple(position / fps for position in frames),
        fps,
        *next(iter(frames.values()))[1],
        decoder="pyav",
    )


def _video_stream(container):
    if not container.streams.video:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise ClipError("no_video", f"the file holds {kinds}")
    return container.streams.video[0]


def _measure(container) -> tuple[float, int]:
    """Returns the frame rate and the counted number of frames; the number in the container may be absent or wrong."""
    import av

    stream = _video_stream(container)
    num_packets = 0
    try:
        for packet in container.demux(stream):
            num_packets += packet.size > 0 and not packet.is_discard
    except av.FFmpegError:
        # A truncated file: the packets before the end count.
        if not num_packets:
            raise
    return float(stream.average_rate or stream.guessed_rate or 0), num_packets


def _decode(container, positions: Sequence[int], size: int) -> dict[int, tuple[np.ndarray, tuple[int, int]]]:
    """Decodes up to the last position; skips damaged packets.

    Returns:
        Position -> (pixels (size, size, 3), (height, width) of the source); positions that cannot be decoded are absent.

    Raises:
        av.FFmpegError: if no frame of the video can be decoded.
    """
    import av

    stream = _video_stream(container)
    stream.codec_context.thread_count = 1
    packets = container.demux(stream)
    wanted, failure, position = set(positions), None, -1
    result = {}
    while position < positions[-1]:
        try:
            frames = next(packets).decode()
        except StopIteration:
            break
        except av.FFmpegError as error:
            # After a codec error the next packet may decode; after a container error there is no next packet.
            failure = error
            continue
        for frame in frames:
            position += 1
            if position in wanted:
                # The rotation is counterclockwise, as in rot90.
                pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                result[position] = resize_and_crop(pixels[None], size)[0], pixels.shape[:2]
    if position < 0 and failure:
        raise failure
    return result


def resize_and_crop(frames: np.ndarray, size: int) -> np.ndarray:
    """Resizes the short side to `size` (bicubic, antialiased) and crops the centre.

    Equals torchvision's Resize and CenterCrop on PIL images, but computes only the cropped pixels: half of the work for a
    wide video.

    Args:
        frames: uint8 (F, height, width, 3).
        size: height and width of the result, pixels.

    Returns:
        uint8 (F, size, size, 3), contiguous.
    """
    num_frames, height, width = frames.shape[:3]
    short = min(height, width)
    full = (int(size * height / short), int(size * width / short))
    rows, columns = (_crop_span(*lengths, size) for lengths in zip((height, width), full, strict=True))
    if full == (height, width):
        return np.ascontiguousarray(frames[:, rows.start : rows.start + size, columns.start : columns.start + size])
    box = (columns.box[0], rows.box[0], columns.box[1], rows.box[1])
    result = np.empty((num_frames, size, size, 3), np.uint8)
    for frame, target in zip(frames, result, strict=True):
        part = Image.fromarray(frame[rows.needed, columns.needed])
        target[:] = part.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return result


@dataclass(frozen=True)
class _CropSpan:
    """The centre crop along one dimension."""

    start: int
    """Start of the crop, in pixels of the resized frame."""
    needed: slice
    """Source pixels that the crop depends on."""
    box: tuple[float, float]
    """The crop in source pixels, counted from the start of `needed`."""


def _crop_span(source: int, resized: int, size: int) -> _CropSpan:
    start = round((resized - size) / 2)
    scale = source / resized
    # The bicubic kernel extends two pixels to each side, in the coarser of the two grids.
    reach = math.ceil(2 * max(1.0, scale)) + 1
    first = max(0, math.floor(start * scale) - reach)
    last = min(source, math.ceil((start + size) * scale) + reach)
    return _CropSpan(start, slice(first, last), (start * scale - first, min((start + size) * scale, source) - first))


def _one_line(error: Exception, path: Path) -> str:
    """Returns the message in one line, without the path and decord's timestamps and source lines."""
    message = getattr(error, "strerror", None) or str(error)
    message = re.sub(r"\[[\d:]+\] \S+:\d+: |\[\s*\]\s*", "", message.replace(str(path), ""))
    return " ".join(message.split("Stack trace")[0].split())[:200] or type(error).__name__
