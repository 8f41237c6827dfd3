"""Opens the videos of an index, decodes windows of them, and makes previews of files that a browser cannot play."""

import contextlib
import io
import os
import stat
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from waver.data.clip import Clip, ClipError
from waver.data.clip_store import StoreSettings
from waver.data.ledger import FileStamp
from waver.data.video.decoder import Decoder
from waver.data.video.resizing import Resizing
from waver.tools.errors import WaverError

_TIMEOUT_S = 60.0
_PREVIEW_SIZE = 320
"""Longer side of a preview, pixels."""
_PREVIEW_FPS = 12.0
_PREVIEW_FRAMES = 240
"""Frames of a preview, at most. A longer window is shown by this many evenly spaced frames, each at its own time."""
_PREVIEW_BYTES = 2**29
"""Size of all previews that are kept, at most."""
_CLOCK = Fraction(1, 1000)
MEDIA_TYPES = {
    ".mp4": "video/mp4",
    ".m4v": "video/mp4",
    ".mov": "video/mp4",  # the same container; browsers refuse video/quicktime
    ".qt": "video/mp4",
    ".webm": "video/webm",
    ".mkv": "video/x-matroska",
    ".ogv": "video/ogg",
    ".avi": "video/x-msvideo",
    ".mpg": "video/mpeg",
    ".mpeg": "video/mpeg",
    ".ts": "video/mp2t",
}
"""Ending of a file -> its media type: always `video/*`, so that a browser never shows a file as a page."""


class VideoError(WaverError):
    """A video of an index is gone, has changed, or cannot be shown."""


class ChangedVideoError(VideoError):
    """The file under the name of a video is not the one that was indexed."""


@dataclass(frozen=True)
class Span:
    """A window of an indexed video."""

    path: Path
    source: str
    """Digest of the file that was indexed."""
    start_s: float | None
    end_s: float | None


def open_indexed(span: Span) -> BinaryIO:
    """Opens the video of a window, if it is still the file that was indexed.

    The digest is computed from the open file, so it does not matter if the file is replaced later.

    Raises:
        ChangedVideoError: if the file is gone, is no regular file, or has another digest than the one that was indexed.
    """
    with contextlib.ExitStack() as resources:
        try:
            # A pipe in place of the file must not block.
            number = os.open(span.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            file = resources.enter_context(os.fdopen(number, "rb"))
            if stat.S_ISREG(os.fstat(number).st_mode) and FileStamp.of_open(file).digest == span.source:
                resources.pop_all()
                return file
        except (OSError, ValueError) as error:
            raise ChangedVideoError(
                "The video is gone or was moved since it was indexed: run `waver index` again."
            ) from error
    raise ChangedVideoError("The video has changed since it was indexed: run `waver index` again.")


@dataclass
class SpanReader:
    """Decodes windows in a child process, one at a time, with the same limits of time and memory as indexing."""

    _decoder: Decoder = field(default_factory=lambda: Decoder(_TIMEOUT_S))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def frames(self, span: Span, settings: StoreSettings) -> Clip:
        """Returns the frames of a window that the model has seen.

        Raises:
            ChangedVideoError: if the file has changed.
            VideoError: if it cannot be decoded.
        """
        arguments = {"frames_per_second": settings.frames_per_second, "max_frames": settings.max_frames}
        return self._read(span, target=settings.target, **arguments)

    def preview(self, span: Span) -> bytes:
        """Returns a window as a small H.264 video in MP4, without sound, which all browsers play.

        Raises:
            ChangedVideoError: if the file has changed.
            VideoError: if it cannot be decoded, or this installation of PyAV cannot encode H.264.
        """
        target = Resizing(_PREVIEW_SIZE, "squash", "bilinear")
        return _encode(self._read(span, target=target, frames_per_second=_PREVIEW_FPS, max_frames=_PREVIEW_FRAMES))

    def close(self) -> None:
        """Ends the child process."""
        with self._lock:
            self._decoder.close()

    def _read(self, span: Span, **arguments: Any) -> Clip:
        with self._lock:
            open_indexed(span).close()
            try:
                clip = self._decoder.read_clip(span.path, start_s=span.start_s, end_s=span.end_s, **arguments)
            except ClipError as error:
                raise VideoError(f"The video cannot be decoded ({error.status}: {error.reason}).") from error
            open_indexed(span).close()  # the decoder opened it by its name
            return clip


def _encode(clip: Clip) -> bytes:
    """Encodes frames in the shape of the video, each at its time after the first frame."""
    import av

    scale = _PREVIEW_SIZE / max(clip.height, clip.width)
    # H.264 needs even sides.
    height, width = (max(2, 2 * round(side * scale / 2)) for side in (clip.height, clip.width))
    times = [round((time_s - clip.times_s[0]) / _CLOCK) for time_s in clip.times_s]
    # The last frame is repeated, so that it is shown for a while: a preview of one frame needs a length as well.
    times.append(times[-1] + round(1000 / _PREVIEW_FPS))
    pictures = [*clip.frames, clip.frames[-1]]
    file = io.BytesIO()
    try:
        with av.open(file, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=Fraction(_PREVIEW_FPS), options={"preset": "veryfast"})
            stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
            stream.codec_context.time_base = _CLOCK
            last = -1
            for time, pixels in zip(times, pictures, strict=True):
                if time > last:
                    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(width, height, "yuv420p")
                    frame.pts, frame.time_base, last = time, _CLOCK, time
                    container.mux(stream.encode(frame))
            container.mux(stream.encode())
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(f"No preview can be made: PyAV cannot encode H.264 here ({error}).") from error
    return file.getvalue()


class Previews:
    """Makes previews when they are requested, and keeps them in a temporary folder of bounded size; thread-safe.

    Args:
        reader: decodes the windows.
    """

    def __init__(self, reader: SpanReader):
        self._reader, self._lock = reader, threading.Lock()
        self._folder = tempfile.TemporaryDirectory(prefix="waver-previews-")
        self._sizes: OrderedDict[Path, int] = OrderedDict()  # the one that was used last is last

    def open(self, span: Span, name: str) -> BinaryIO:
        """Opens the preview of a window; makes it first if it is not there.

        Args:
            span: the window.
            name: name of the file to keep, different for each window.

        Raises:
            ChangedVideoError, VideoError: see `SpanReader.preview`.
        """
        path = Path(self._folder.name) / name
        with self._lock:
            if path in self._sizes:
                self._sizes.move_to_end(path)
                open_indexed(span).close()
            else:
                content = self._reader.preview(span)
                path.write_bytes(content)
                self._sizes[path] = len(content)
                while len(self._sizes) > 1 and sum(self._sizes.values()) > _PREVIEW_BYTES:
                    self._sizes.popitem(last=False)[0].unlink()
            return path.open("rb")

    def close(self) -> None:
        """Deletes all previews."""
        self._folder.cleanup()


def jpeg(frame: np.ndarray, size: int) -> bytes:
    """Encodes a frame, uint8 (height, width, 3), as a JPEG whose sides are at most `size` pixels."""
    image = Image.fromarray(frame)
    image.thumbnail((size, size))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80)
    return file.getvalue()
