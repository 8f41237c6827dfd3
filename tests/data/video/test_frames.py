import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from waver.data.clip import ClipError
from waver.data.video.frames import _decode, frames_at
from waver.data.video.timeline import read_timeline

VIDEOS = Path(os.environ.get("WAVER_VIDEOS", Path(__file__).parents[3].parent / "shared/data/videos"))


def render(path: Path, options: str, num_frames: int = 48) -> Path:
    """Squares of noise that move over a slope, in H.264; each frame differs from all others."""
    rng = np.random.default_rng(0)
    noise, slope = rng.integers(0, 256, (24, 24, 3), np.uint8), np.linspace(0, 200, 96 * 64 * 3).reshape(64, 96, 3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(25), options={"x264-params": options})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for i in range(num_frames):
            pixels = slope.astype(np.uint8)
            pixels[i % 40 : i % 40 + 24, 2 * i % 70 : 2 * i % 70 + 24] = noise
            pixels[:8, :8] = 5 * i
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def read(path: Path, indices: list[int], **changes: bool) -> dict[int, bytes]:
    with av.open(str(path)) as container:
        timeline = replace(read_timeline(container), **changes)
    assert timeline.stamps is not None
    return {
        index: found.frame.to_ndarray(format="rgb24").tobytes() for index, found in frames_at(path, timeline, indices)
    }


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize(
    "options",
    ["bframes=0", "bframes=3:b-adapt=0:b-pyramid=none", "bframes=5:b-adapt=0:b-pyramid=normal:ref=4",
     "bframes=3:b-adapt=0:open-gop=1:keyint=12", "bframes=3:b-adapt=0:tff=1:keyint=16", "intra-refresh=1:bframes=2"],
)  # fmt: skip
def test_frames_are_the_same_without_those_to_which_none_refers(tmp_path, suffix, options):
    path = render(tmp_path / f"video{suffix}", options)
    every = read(path, list(range(48)), is_h264=False)
    assert len(every) == 48
    for start in range(5):
        indices = list(range(start, 48, 7))
        assert read(path, indices) == {index: every[index] for index in indices}
    assert read(path, list(range(48))) == every


def test_frames_to_which_none_refers_are_left_out(tmp_path):
    path = render(tmp_path / "video.mp4", "bframes=3:b-adapt=0:b-pyramid=none:keyint=100")
    with av.open(str(path)) as container:
        timeline = read_timeline(container)
    assert timeline.is_h264
    assert timeline.stamps is not None
    decoded = []
    for needed in (None, [int(timeline.stamps[2])]):
        with av.open(str(path)) as container:
            container.streams.video[0].codec_context.thread_count = 1
            decoded.append({found.frame.pts for found in _decode(container, needed)})
    everything, few = decoded
    assert everything == set(timeline.stamps.tolist())
    assert timeline.stamps[2] in few
    assert len(few) <= 48 // 4 + 4, "one of four frames, those around the wanted one, and perhaps the last ones"


@pytest.mark.slow
@pytest.mark.skipif(not VIDEOS.is_dir(), reason="no real videos here: set WAVER_VIDEOS")
@pytest.mark.parametrize("path", sorted(VIDEOS.glob("**/*.*")), ids=lambda path: path.name)
def test_frames_of_real_files_are_the_same(path):
    """Damaged ones among them."""
    try:
        with av.open(str(path)) as container:
            timeline = read_timeline(container)
    except (av.FFmpegError, ClipError):
        pytest.skip("it has no readable video")
    if not timeline.is_h264:
        pytest.skip("it is no H.264 with time stamps")
    indices = list(range(1, len(timeline), 9))
    assert read(path, indices) == read(path, indices, is_h264=False)
