"""Which frames of a video, and their uint8 pixels.

decord reads; what it cannot read is tried with PyAV, which knows more codecs and goes on after damage. Both are
imported where they are used: only the process that decodes needs them.
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
"""What begins a file of text that names other files, or addresses, to be played: FFmpeg would open them."""


class ClipError(Exception):
    """A clip cannot be had; an entry of the ledger, not a reason to stop.

    Attributes:
        status: missing, empty, corrupt, no_video, too_short, timeout or killed.
        reason: one line, without the path of the file, so that equal reasons can be counted.
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
    """Where each frame stands in the video: its position / `source_fps`."""
    source_fps: float
    height: int
    """Of the video as it is shown, that is after rotation; pixels."""
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
    """Chooses frames at a steady rate, thinned out evenly to at most `max_frames`.

    Args:
        num_frames: in the video.
        source_fps: frames a second of the video.
        frames_per_second: wanted; the nearest whole stride is taken.
        max_frames: at most so many positions.
        start_s: of the segment; None for the start of the video.
        end_s: of the segment, inclusive; None for the end of the video.

    Returns:
        Rising positions in [0, num_frames); empty if the segment lies outside the video.
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
    """Reads the frames of `sample_positions`, resized to `size` (short side, bicubic) and cropped to the centre.

    Args:
        path: the video file.
        start_s: of the segment; None for the start of the video.
        end_s: of the segment; None for the end of the video.
        frames_per_second: wanted.
        max_frames: at most so many.
        size: height and width of the result, pixels.

    Raises:
        ClipError: if there is not a single frame to be had.
    """
    path = Path(path)
    _check_file(path)
    sampling = (frames_per_second, max_frames, start_s, end_s)
    import decord

    try:
        return _read_with_decord(path, sampling, size)
    except (decord.DECORDError, RuntimeError, ValueError, IndexError, MemoryError) as error:  # PyAV needs less memory
        decord_reason = _one_line(error, path)
    try:
        return _read_with_pyav(path, sampling, size)
    except ClipError as error:
        # Its view of the file is the better one; only where the file itself is bad do both reasons help.
        if error.status != "corrupt":
            raise
        raise ClipError("corrupt", f"{error.reason} (decord: {decord_reason})") from None


def _check_file(path: Path) -> None:
    try:
        status = path.stat()
    except OSError as error:
        # Rights and lost mounts as well: they can be mended, and what is missing is tried again.
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
        raise ClipError("no_video", "the file is a list of others to be played, which are not opened")


def _read_with_decord(path: Path, sampling: tuple, size: int) -> Clip:
    """Raises one of decord's errors, or ValueError, where PyAV may do better."""
    import decord

    # One thread: as many clips are decoded at a time as there are CPUs.
    reader = decord.VideoReader(str(path), num_threads=1)
    fps = reader.get_avg_fps()
    # Without rising time stamps (AVI often has none) decord seeks to wherever it happens to, and reports no error.
    if not (np.diff(reader.get_frame_timestamp(range(len(reader)))[:, 0]) > 0).all():
        raise ValueError("the time stamps of the frames do not rise")
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
    """Frame rate, and the number of frames, counted: the container's own number may be absent or wrong."""
    import av

    stream = _video_stream(container)
    num_packets = 0
    try:
        for packet in container.demux(stream):
            num_packets += packet.size > 0 and not packet.is_discard
    except av.FFmpegError:
        # A file that breaks off: what came before counts.
        if not num_packets:
            raise
    return float(stream.average_rate or stream.guessed_rate or 0), num_packets


def _decode(container, positions: Sequence[int], size: int) -> dict[int, tuple[np.ndarray, tuple[int, int]]]:
    """Decodes up to the last position, passing over damage.

    Returns:
        Position -> (pixels (size, size, 3), (height, width) of the source), without the positions that the container
        promised but that do not decode.

    Raises:
        av.FFmpegError: if not one frame of the video can be decoded.
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
            # After an error of the codec the next packet is tried; after one of the container there is no next.
            failure = error
            continue
        for frame in frames:
            position += 1
            if position in wanted:
                # The angle counts counter-clockwise, as rot90 does.
                pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                result[position] = resize_and_crop(pixels[None], size)[0], pixels.shape[:2]
    if position < 0 and failure:
        raise failure
    return result


def resize_and_crop(frames: np.ndarray, size: int) -> np.ndarray:
    """Short side to `size` (bicubic, antialiased), then the centre: torchvision's Resize and CenterCrop on PIL images.

    Only what the crop shows is computed, which is half of the work for a wide video.

    Args:
        frames: uint8 (F, height, width, 3).
        size: of the result, pixels.

    Returns:
        uint8 (F, size, size, 3), contiguous.
    """
    num_frames, height, width = frames.shape[:3]
    short = min(height, width)
    full = (int(size * height / short), int(size * width / short))
    rows, columns = (_visible(*lengths, size) for lengths in zip((height, width), full, strict=True))
    if full == (height, width):
        return np.ascontiguousarray(frames[:, rows.start : rows.start + size, columns.start : columns.start + size])
    box = (columns.box[0], rows.box[0], columns.box[1], rows.box[1])
    result = np.empty((num_frames, size, size, 3), np.uint8)
    for frame, target in zip(frames, result, strict=True):
        part = Image.fromarray(frame[rows.needed, columns.needed])
        target[:] = part.resize((size, size), Image.Resampling.BICUBIC, box=box)
    return result


@dataclass(frozen=True)
class _Visible:
    """One dimension of the centre crop."""

    start: int
    """Of the crop, in pixels of the resized frame."""
    needed: slice
    """Source pixels that the crop depends on."""
    box: tuple[float, float]
    """The crop in source pixels, counted from the start of `needed`."""


def _visible(source: int, resized: int, size: int) -> _Visible:
    start = round((resized - size) / 2)
    scale = source / resized
    # A bicubic kernel reaches two pixels to either side, of the coarser of both grids.
    reach = math.ceil(2 * max(1.0, scale)) + 1
    first = max(0, math.floor(start * scale) - reach)
    last = min(source, math.ceil((start + size) * scale) + reach)
    return _Visible(start, slice(first, last), (start * scale - first, min((start + size) * scale, source) - first))


def _one_line(error: Exception, path: Path) -> str:
    """The message without the path, and without decord's time stamps and source lines."""
    message = getattr(error, "strerror", None) or str(error)
    message = re.sub(r"\[[\d:]+\] \S+:\d+: |\[\s*\]\s*", "", message.replace(str(path), ""))
    return " ".join(message.split("Stack trace")[0].split())[:200] or type(error).__name__
