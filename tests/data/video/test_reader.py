import json
import math
import os
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clocks import render_clock
from PIL import Image
from safetensors.numpy import load_file

from waver.data.clip import READ_IN_PART, Clip, ClipError
from waver.data.video import reader
from waver.data.video.reader import read_clip, read_with_decord, read_with_pyav
from waver.data.video.resizing import Resizing, resize_frames
from waver.data.video.timeline import read_timeline, sample_frames, sample_positions

SHARED = Path(__file__).parents[3].parent / "shared/data"
VIDEOS = Path(os.environ.get("WAVER_VIDEOS", SHARED / "videos"))
REFERENCE = Path(os.environ.get("WAVER_CLIPS_REFERENCE", SHARED / "clips_reference"))
needs_videos = pytest.mark.skipif(not VIDEOS.is_dir(), reason="no real videos here: set WAVER_VIDEOS")
needs_reference = pytest.mark.skipif(
    not (VIDEOS.is_dir() and REFERENCE.is_dir()), reason="no reference clips here: set WAVER_CLIPS_REFERENCE"
)

ONE_A_SECOND = {"frames_per_second": 1.0, "max_frames": 12, "target": Resizing(224)}
# Mean and standard deviation of OpenAI's CLIP: the reference is normalised.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073])
STD = np.array([0.26862954, 0.26130258, 0.27577711])


def reference_clips() -> list:
    file = REFERENCE / "clips.json"
    return json.loads(file.read_text()) if file.is_file() else []


def render(
    path: Path, num_frames: int, fps: int = 10, size: tuple[int, int] = (64, 48), codec: str = "libx264"
) -> Path:
    """Frame i is a grey of 8 * i, with a white pixel field at the top left."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps))
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(num_frames):
            pixels = np.full((size[1], size[0], 3), 8 * i, np.uint8)
            pixels[:8, :8] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("clip", reference_clips(), ids=lambda clip: clip["clip"])
@needs_reference
def test_positions_and_pixels_equal_the_reference(clip):
    start_s, end_s = (None if clip[end] is None else float(clip[end]) for end in ("start", "end"))
    assert sample_positions(clip["num_frames_in_file"], clip["fps"], 1.0, 12, start_s, end_s) == clip["positions"]
    path = VIDEOS / clip["clip"].split("@")[0]
    if not clip["positions"]:
        with pytest.raises(ClipError) as caught:
            read_clip(path, start_s=start_s, end_s=end_s, **ONE_A_SECOND)
        assert caught.value.status == "too_short"
        return
    ours = read_clip(path, start_s=start_s, end_s=end_s, **ONE_A_SECOND)
    assert len(ours.frames) == clip["num_sampled"]
    assert ours.times_s == tuple(position / clip["fps"] for position in clip["positions"])
    expected = load_file(REFERENCE / "clips.safetensors")[clip["clip"]]  # first and last frame
    normalised = ((ours.frames[[0, -1]] / 255 - MEAN) / STD).transpose(0, 3, 1, 2)
    assert np.abs(normalised - expected).mean() <= 0.01


def test_positions_of_simple_cases():
    assert sample_positions(300, 29.97, 1.0, 12) == list(range(0, 300, 30))
    assert sample_positions(10, 25.0, 1.0, 12) == [0]
    assert sample_positions(100, 10.0, 100.0, 4) == [0, 33, 66, 99]  # never more often than the video, then thinned
    assert sample_positions(100, 10.0, 1.0, 12, start_s=2.0, end_s=4.0) == [20, 30, 40]
    assert sample_positions(100, 10.0, 1.0, 12, start_s=9.5) == [95]
    assert sample_positions(100, 10.0, 1.0, 12, start_s=10.0) == []
    assert sample_positions(0, 10.0, 1.0, 12) == []
    for fps in (0.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="no frame rate"):
            sample_positions(100, fps, 1.0, 12)


@pytest.mark.parametrize(
    ("height", "width"), [(48, 64), (64, 48), (480, 640), (272, 640), (101, 77), (32, 32), (1, 1), (3, 500)]
)
def test_resizing_only_the_crop_equals_resizing_all(height, width):
    size = 32
    frames = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8)
    short = min(height, width)
    full = (int(size * width / short), int(size * height / short))
    left, top = (round((length - size) / 2) for length in full)
    expected = [
        np.asarray(Image.fromarray(f).resize(full, Image.Resampling.BICUBIC).crop((left, top, left + size, top + size)))
        for f in frames
    ]
    difference = np.abs(resize_frames(frames, Resizing(size)).astype(int) - np.stack(expected))
    # PIL computes with 8-bit weights that depend on the last bit of the box.
    assert difference.max() <= 2
    assert difference.mean() < 0.02


@pytest.mark.parametrize(("codec", "suffix"), [("libx264", ".mp4"), ("mpeg4", ".mp4"), ("libvpx-vp9", ".webm")])
def test_frames_are_those_of_the_positions(tmp_path, codec, suffix):
    path = render(tmp_path / f"video{suffix}", 30, codec=codec)
    clip = read_clip(path, frames_per_second=2.0, max_frames=4, target=Resizing(16))
    # stride 5: 0 5 10 15 20 25, thinned to 4
    assert clip.times_s == (0.0, 0.5, 1.5, 2.5)
    assert (clip.height, clip.width, clip.source_fps) == (48, 64, 10.0)
    assert clip.frames.shape == (4, 16, 16, 3)
    assert np.abs(clip.frames[:, 8, 8, 0] - np.array([0.0, 40, 120, 200])).max() <= 4


def read_with_both(path: Path, size: int, *sampling) -> list[Clip]:
    with av.open(str(path)) as container:
        timeline = read_timeline(container)
    indices = sample_frames(timeline, *sampling)
    return [read(path, timeline, indices, Resizing(size)) for read in (read_with_decord, read_with_pyav)]


def test_both_readers_agree(tmp_path):
    ours, fallback = read_with_both(render(tmp_path / "video.mp4", 30), 16, 4.0, 12, 0.5, 2.2)
    assert (ours.decoder, fallback.decoder) == ("decord", "pyav")
    assert ours.times_s == fallback.times_s
    assert np.abs(ours.frames.astype(int) - fallback.frames).max() <= 1


def test_videos_without_increasing_timestamps_are_read_by_pyav(tmp_path):
    # H.264 in AVI has no presentation times; decord then returns frames of other positions, without an error.
    path = render(tmp_path / "video.avi", 30)
    clip = read_clip(path, frames_per_second=1.0, max_frames=12, target=Resizing(16))
    assert clip.decoder == "pyav"
    assert np.abs(clip.frames[:, 8, 8, 0] - np.array([0.0, 80, 160])).max() <= 4


@pytest.mark.parametrize(
    ("name", "content", "status", "reason"),
    [
        ("absent.mp4", None, "missing", "no such file"),
        ("empty.mp4", b"", "empty", "the file has 0 bytes"),
        ("text.mp4", b"no video" * 99, "corrupt", "the file is plain text"),
        ("page.mp4", b"\n<!DOCTYPE html><html>", "corrupt", "the file is a web page"),
        ("page.mp4", b"\xef\xbb\xbf<HTML lang='en'>", "corrupt", "the file is a web page"),
        ("list.mp4", b"#EXTM3U\n", "no_video", "the file is a playlist, whose files are not opened"),
        ("archive.mp4", b"PK\x03\x04" + bytes(999), "corrupt", "the file is a ZIP archive"),
        (
            "pointer.mp4",
            b"version https://git-lfs.github.com/spec/v1\n",
            "corrupt",
            "the file is a pointer of Git LFS,",
        ),
        ("zeros.mp4", bytes(9999), "corrupt", "the file begins with zeros"),
    ],
)
def test_bad_files_have_a_status_and_a_reason(tmp_path, name, content, status, reason):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ClipError) as caught:
        read_clip(path, **ONE_A_SECOND)
    assert caught.value.status == status
    assert caught.value.reason.startswith(reason)
    assert str(tmp_path) not in caught.value.reason


@pytest.mark.parametrize("num_bytes", [1000, 1222])
def test_truncated_file_without_index_is_corrupt(tmp_path, num_bytes):
    path = render(tmp_path / "video.mp4", 30)
    assert path.stat().st_size > 2000
    path.write_bytes(path.read_bytes()[:num_bytes])  # the index stood at the end
    with pytest.raises(ClipError, match="cut off: it has no moov atom") as caught:
        read_clip(path, **ONE_A_SECOND)
    assert caught.value.status == "corrupt"


def test_audio_file_has_status_no_video(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(ClipError, match="the file holds audio") as caught:
        read_clip(path, **ONE_A_SECOND)
    assert caught.value.status == "no_video"


def spoil(path: Path, how: str) -> None:
    """Cuts a file off in its middle, or overwrites half of its frames; the index at the end of an MP4 stays."""
    content = path.read_bytes()
    half, end = len(content) // 2, content.find(b"moov") - 4 if path.suffix == ".mp4" else len(content)
    path.write_bytes(content[:half] if how == "cut" else content[:half] + bytes(end - half) + content[end:])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("suffix", "codec", "how"),
    [
        (".mkv", "libx264", "cut"),
        (".mkv", "libx264", "zero"),
        (".flv", "libx264", "cut"),
        (".avi", "mpeg4", "zero"),
        (".mp4", "libx264", "zero"),
        (".mp4", "mpeg4", "zero"),
    ],
)
def test_a_video_of_which_a_part_can_be_read_is_told_as_such(tmp_path, suffix, codec, how):
    path = render_clock(tmp_path / f"clock{suffix}", codec=codec, g="10")
    assert READ_IN_PART not in (read_clip(path, **ONE_A_SECOND).note or "")
    spoil(path, how)
    clip = read_clip(path, **ONE_A_SECOND)
    last_s = clip.times_s[-1]
    assert clip.times_s == tuple(float(second) for second in range(len(clip.times_s)))
    assert 1 <= last_s <= 8
    assert np.abs(clip.frames.mean((1, 2, 3)) / 23.3 - clip.times_s).max() < 0.2, "the frames of these times"
    said = re.search(r"only the first (\S+) of (\S+) s of the video can be read", clip.note)
    assert last_s <= float(said[1]) < last_s + 1.1
    assert float(said[2]) == pytest.approx(10, abs=0.1)
    assert clip.video_s == pytest.approx(10, abs=0.1)
    with pytest.raises(ClipError) as caught:
        read_clip(path, start_s=9.0, end_s=9.8, **ONE_A_SECOND)
    assert caught.value.status == "corrupt"
    assert re.search("after the place where the file is cut off|no frame of the segment can be", caught.value.reason)


def test_audio_that_is_longer_than_the_video_is_no_damage(tmp_path):
    """Matroska claims the length of the longest stream."""
    path = tmp_path / "long.mkv"
    with av.open(str(path), "w") as container:
        video, audio = container.add_stream("libx264", rate=10), container.add_stream("aac", rate=8000)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for _ in range(20):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8))
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for _ in range(64):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 8000
            container.mux(audio.encode(frame))
        container.mux(audio.encode(None))
    clip = read_clip(path, **ONE_A_SECOND)
    assert (len(clip.frames), clip.note) == (2, None)


def test_segment_outside_the_video_is_too_short(tmp_path):
    with pytest.raises(ClipError, match="begins after the end of the video") as caught:
        read_clip(render(tmp_path / "video.mp4", 30), start_s=5.0, end_s=6.0, **ONE_A_SECOND)
    assert (caught.value.status, caught.value.video_s) == ("too_short", 3.0)


@pytest.mark.slow
@needs_videos
@pytest.mark.parametrize(
    ("name", "decoder", "num_frames"),
    [
        ("av1_video.mkv", "pyav", 5),
        ("big_buck_bunny_432_433.webm", "decord", 1),
        ("bikes.mp4", "decord", 10),
        ("bitmap.mp4", "pyav", 5),
        ("dataflow_test_video.avi", "pyav", 10),
        ("flipping_a_pancake.mkv", "decord", 11),
        ("h265_video.mp4", "pyav", 1),
        ("mmaction2_demo.mp4", "decord", 10),
        ("test_video_66x50.mov", "pyav", 2),
        ("video7500.mp4", "decord", 12),
        ("video_90.mov", "decord", 1),
        ("broken/corrupted.mp4", "pyav", 4),
        ("broken/no_duration.webm", "pyav", 5),
        ("broken/video_with_failing_audio.mp4", "decord", 12),
    ],
)
def test_real_files_decode(name, decoder, num_frames):
    clip = read_clip(VIDEOS / name, **ONE_A_SECOND)
    assert (clip.decoder, clip.frames.shape) == (decoder, (num_frames, 224, 224, 3))


@pytest.mark.slow
@needs_videos
@pytest.mark.parametrize("path", sorted(VIDEOS.glob("**/*.*")), ids=lambda path: path.name)
def test_both_readers_agree_on_real_files_or_the_note_says_why_not(path):
    """Rotation and colours among them."""
    sampling = {"frames_per_second": 2.0, "max_frames": 12}
    try:
        clip = read_clip(path, **sampling, target=Resizing(224))
    except ClipError:
        return
    if clip.decoder == "pyav":
        assert clip.note.startswith("not read by decord: ")
        return
    ours, fallback = read_with_both(path, 224, *sampling.values())
    assert np.array_equal(clip.frames, ours.frames)
    assert (ours.height, ours.width, ours.times_s) == (fallback.height, fallback.width, fallback.times_s)
    assert np.abs(ours.frames.astype(int) - fallback.frames).mean() < 0.5


@pytest.mark.slow
@needs_videos
def test_frames_that_do_not_decode_are_left_out():
    # The container has 50 packets, one of which is damaged; and 87, of which 82 are shown.
    clip = read_clip(VIDEOS / "broken/corrupted.mp4", frames_per_second=10.0, max_frames=99, target=Resizing(8))
    assert len(clip.frames) == 49
    lost, doubtful = clip.note.split("; ")[-2:]
    assert lost == "1 of 50 frames cannot be decoded"
    assert doubtful == "21 of 49 frames follow damaged data and may show other pictures"
    clip = read_clip(VIDEOS / "test_video_66x50.mov", frames_per_second=60.0, max_frames=87, target=Resizing(8))
    assert len(clip.frames) == 82


def test_import_is_light():
    code = (
        "import sys, waver.data.video.reader; print({'torch', 'ray', 'decord', 'av'} & sys.modules.keys() or 'nothing')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "nothing"


def test_frames_after_damaged_data_are_counted(tmp_path):
    """Zeros in the middle of a transport stream, as in a download with holes: the decoder mixes other frames."""
    path = render_clock(tmp_path / "film.ts", g="60", bf="0")
    whole = read_clip(path, frames_per_second=2.0, max_frames=20, target=Resizing(16))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 188 * 188
    content[middle : middle + 10 * 188] = bytes(10 * 188)
    path.write_bytes(content)
    clip = read_clip(path, frames_per_second=2.0, max_frames=20, target=Resizing(16))
    assert whole.note == "not read by decord: inexact seeks in mpegts"
    assert re.search(r"; [1-4] of \d+ frames follow damaged data and may show other pictures$", clip.note)


def test_an_animation_that_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "animation.webp"
    frames = [Image.new("RGB", (32, 24), (80 * i, 0, 0)) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=500)
    with pytest.raises(ClipError, match="an animation, which FFmpeg does not read in WebP") as caught:
        read_clip(path, **ONE_A_SECOND)
    assert caught.value.status == "no_video"


def test_segments_of_a_film_share_its_timeline_until_the_file_is_replaced(tmp_path, monkeypatch):
    film, reads = render(tmp_path / "film.mp4", 30), []
    monkeypatch.setattr(reader, "read_timeline", lambda container: reads.append(1) or read_timeline(container))
    first, second = (read_clip(film, start_s=start, end_s=start + 1.0, **ONE_A_SECOND) for start in (0.0, 2.0))
    assert len(reads) == 1
    assert first.frames[0].mean() < second.frames[0].mean()
    render(tmp_path / "other.mp4", 10).replace(film)
    with pytest.raises(ClipError, match="the segment begins after the end of the video"):
        read_clip(film, start_s=2.0, end_s=3.0, **ONE_A_SECOND)
    assert len(reads) == 2
