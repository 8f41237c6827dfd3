"""Films that show their own time: the mean of a frame, divided by 23.3, is the time at which it was rendered, in seconds."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from waver.data.clip import Clip

FPS = 30
CLOCK_S = 10
TOLERANCE_S = 0.06
"""A grey step is 0.05 s."""


def render_clock(
    path: Path, numbers: Sequence[int] = range(FPS * CLOCK_S), codec: str = "libx264", **options: str
) -> Path:
    """Renders some frames of a film of 10 s, each with the time stamp of its number at 30 a second.

    Args:
        path: its suffix chooses the container.
        numbers: of the frames, increasing.
        codec: as FFmpeg names it.
        options: of the codec; `pix_fmt` chooses the pixel format, `g` the distance of keyframes.
    """
    with av.open(str(path), "w") as container:
        _render(container, numbers, codec, options)
    return path


def _render(container, numbers: Sequence[int], codec: str, options: dict[str, str]) -> None:
    pixel_format = options.pop("pix_fmt", "yuv420p")
    stream = container.add_stream(codec, rate=FPS, options=options)
    stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 48, pixel_format, 4_000_000
    stream.codec_context.time_base = Fraction(1, FPS)
    for number in numbers:
        planes = np.full((72, 64), 128, np.uint8)
        planes[:48] = 16 + 20 * number / FPS
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p").reformat(format=pixel_format)
        frame.pts, frame.time_base = number, Fraction(1, FPS)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def cut(source: Path, target: Path, start_s: float) -> Path:
    """Copies the packets from the keyframe before `start_s` on, as `ffmpeg -ss START -i SOURCE -c copy` does.

    The packets before `start_s` get negative time stamps: they are decoded and not shown.
    """
    with av.open(str(source)) as read, av.open(str(target), "w") as write:
        stream = read.streams.video[0]
        copy = write.add_stream_from_template(stream)
        read.seek(int(start_s / stream.time_base), stream=stream)
        for packet in read.demux(stream):
            if packet.size:
                packet.pts -= int(start_s / stream.time_base)
                packet.dts -= int(start_s / stream.time_base)
                packet.stream = copy
                write.mux(packet)
    return target


def shown_s(clip: Clip) -> np.ndarray:
    """Returns the time that each frame of a clip shows, seconds."""
    return clip.frames.reshape(len(clip.frames), -1).mean(1) / 23.3
