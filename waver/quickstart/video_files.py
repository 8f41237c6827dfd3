"""Writes the files of the quickstart's world: H.264 videos, and files that cannot be decoded."""

from pathlib import Path

import av
import numpy as np
from PIL import Image

from waver.quickstart.drawing import HEIGHT, WIDTH, draw
from waver.quickstart.scenes import Scene

FRAMES_PER_SECOND = 8


def encode(path: Path, frames: list[Image.Image]) -> None:
    """Writes frames as an H.264 video (mp4, yuv420p, `FRAMES_PER_SECOND`), with the same bytes every time.

    The index of the file (`moov`) is at its end, so that a truncated file cannot be decoded.
    """
    with av.open(path, "w") as container:
        # With x264's macroblock tree about one run of thirty writes other bytes.
        options = {"preset": "veryfast", "crf": "20", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.codec_context.thread_count = 1  # the bytes depend on the number of threads
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def write_broken_file(path: Path, scene: Scene, kind: int) -> None:
    """Writes a file that cannot be decoded: truncated, empty, a text, or sound without video, by `kind` modulo 4."""
    (_write_truncated, _write_empty, _write_text, _write_sound)[kind % 4](path, scene)


def _write_truncated(path: Path, scene: Scene) -> None:
    encode(path, draw(scene))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _write_empty(path: Path, _: Scene) -> None:
    path.write_bytes(b"")


def _write_text(path: Path, _: Scene) -> None:
    path.write_text("This video is no longer available.\n" * 40)


def _write_sound(path: Path, _: Scene) -> None:
    rate = 16_000
    tone = (8_000 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)).astype(np.int16)
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
