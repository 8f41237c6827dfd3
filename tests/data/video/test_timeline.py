"""Films that show their own time, in the containers, codecs and groups of pictures in which readers find wrong frames."""

import av
import numpy as np
import pytest
from clocks import FPS, TOLERANCE_S, cut, render_clock, shown_s

from waver.data.clip import ClipError
from waver.data.video.reader import read_clip, read_with_pyav
from waver.data.video.resizing import Resizing
from waver.data.video.timeline import Timeline, read_timeline, sample_frames

ONE_A_SECOND = {"frames_per_second": 1.0, "max_frames": 12, "target": Resizing(32)}
FIRST_HALF = [*range(5 * FPS), *range(5 * FPS, 10 * FPS, 10)]
"""30 frames per second in the first half, 3 in the second."""
GAP = [*range(2 * FPS), *range(6 * FPS, 10 * FPS)]
"""Nothing between 2 and 6 s: the frame before is shown."""
SCREEN = [0, 120, *range(241, 300)]
"""A recording of a screen that changes at 4 s, and all the time from 8 s on."""


def timeline_of(path) -> Timeline:
    with av.open(str(path)) as container:
        return read_timeline(container)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("v.mp4", "libx264", {"g": "30"}), ("v.mkv", "libx264", {"g": "30"}), ("v.webm", "libvpx-vp9", {"cpu-used": "8"})],
)
def test_a_variable_frame_rate_is_sampled_by_time(tmp_path, name, codec, options):
    path = render_clock(tmp_path / name, FIRST_HALF, codec, **options)
    for start_s, end_s, expected in ((None, None, range(10)), (5.0, 9.0, range(5, 10)), (6.0, 8.5, range(6, 9))):
        clip = read_clip(path, start_s=start_s, end_s=end_s, **ONE_A_SECOND)
        assert clip.times_s == pytest.approx(list(expected), abs=0.34)
        assert shown_s(clip) == pytest.approx(clip.times_s, abs=TOLERANCE_S)


def test_a_frame_that_is_shown_for_long_is_sampled_repeatedly(tmp_path):
    path = render_clock(tmp_path / "screen.mp4", SCREEN, g="300")
    clip = read_clip(path, **ONE_A_SECOND)
    assert clip.times_s == pytest.approx([0, 0, 0, 0, 4, 4, 4, 4, 4, 9])
    assert shown_s(clip) == pytest.approx(clip.times_s, abs=TOLERANCE_S)
    assert read_clip(path, start_s=5.0, end_s=9.0, **ONE_A_SECOND).times_s == pytest.approx([4, 4, 4, 4, 9])


CONSTANT = [
    ("g60.ts", "libx264", {"g": "60", "bf": "2"}),
    ("g12.ts", "libx264", {"g": "12", "bf": "2"}),
    ("one.ts", "libx264", {"g": "999", "bf": "2"}),
    ("mpeg2.ts", "mpeg2video", {"bf": "2"}),
    ("mpeg2.mkv", "mpeg2video", {"bf": "2", "g": "15"}),
    ("mpeg2.mpg", "mpeg2video", {"bf": "2", "g": "15"}),
    (
        "open.mp4",
        "libx265",
        {"x265-params": "log-level=none:keyint=60:min-keyint=60:scenecut=0:bframes=16:b-adapt=0:rc-lookahead=40"},
    ),
    ("closed.mp4", "libx265", {"x265-params": "log-level=none:keyint=30:open-gop=0"}),
    ("refresh.mp4", "libx264", {"x264-params": "intra-refresh=1:keyint=30"}),
    ("g12.mp4", "libx264", {"g": "12", "bf": "3"}),
    ("g250.mkv", "libx264", {"g": "250", "bf": "3"}),
    ("vp8.webm", "libvpx", {"g": "40"}),
    ("mpeg4.mp4", "mpeg4", {"g": "24", "bf": "2"}),
    ("mpeg4.avi", "mpeg4", {"g": "24", "bf": "2"}),
    ("g48.flv", "libx264", {"g": "48", "bf": "2"}),
    ("wmv.wmv", "wmv2", {}),
    ("ten_bits.mp4", "libx264", {"pix_fmt": "yuv420p10le"}),
    ("444.mp4", "libx264", {"pix_fmt": "yuv444p"}),
    ("animation.mov", "qtrle", {"pix_fmt": "rgb24"}),
    ("raw.h264", "libx264", {"bf": "2"}),
    ("raw.hevc", "libx265", {"x265-params": "log-level=none"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "codec", "options"), CONSTANT, ids=[name for name, _, _ in CONSTANT])
def test_every_frame_is_the_one_of_its_time(tmp_path, name, codec, options):
    path = render_clock(tmp_path / name, codec=codec, **dict(options))
    timeline = timeline_of(path)
    for start_s, end_s, rate, expected in (
        (None, None, 1.0, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (3.0, 7.0, 2.0, [3, 3.5, 4, 4.5, 5, 5.5, 6, 6.5, 7]),
        (7.3, None, 1.0, [7.3, 8.3, 9.3]),
    ):
        sampling = {"frames_per_second": rate, "max_frames": 12, "start_s": start_s, "end_s": end_s}
        clip = read_clip(path, **sampling, target=Resizing(32))
        assert clip.times_s == pytest.approx(expected, abs=1 / FPS)
        assert shown_s(clip) == pytest.approx(clip.times_s, abs=0.1)
        other = read_with_pyav(path, timeline, sample_frames(timeline, **sampling), Resizing(32))
        assert other.times_s == clip.times_s
        assert np.abs(other.frames.astype(int) - clip.frames).max() <= 2


def test_a_film_that_is_copied_into_a_transport_stream_keeps_its_times(tmp_path):
    path = cut(render_clock(tmp_path / "source.mp4", g="60", bf="2"), tmp_path / "remuxed.ts", 0.0)
    for start_s, end_s in ((None, None), (3.0, 7.0)):
        clip = read_clip(path, start_s=start_s, end_s=end_s, **ONE_A_SECOND)
        assert len(clip.frames) == (10 if start_s is None else 5)
        assert shown_s(clip) == pytest.approx(clip.times_s, abs=TOLERANCE_S)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("mpeg4.avi", "mpeg4", {}),
        ("b_frames.avi", "mpeg4", {"bf": "2"}),
        ("h264.avi", "libx264", {"bf": "2"}),
        ("mjpeg.avi", "mjpeg", {"pix_fmt": "yuvj420p"}),
        ("animation.mov", "qtrle", {"pix_fmt": "rgb24"}),
        ("h264.mp4", "libx264", {"bf": "2"}),
        ("h264.ts", "libx264", {"bf": "2"}),
    ],
)
def test_dropped_frames_leave_the_frame_before_them_on_the_screen(tmp_path, name, codec, options):
    """A recorder drops frames; an AVI has no time stamps, but an empty packet for each of them."""
    path = render_clock(tmp_path / name, GAP, codec, **dict(options))
    for start_s, expected in ((None, [0, 1, 2, 2, 2, 2, 6, 7, 8, 9]), (4.0, [2, 2, 6, 7, 8, 9])):
        clip = read_clip(path, start_s=start_s, **ONE_A_SECOND)
        assert clip.times_s == pytest.approx(expected, abs=2 / FPS)
        assert shown_s(clip) == pytest.approx(clip.times_s, abs=TOLERANCE_S)
        assert clip.video_s == pytest.approx(10, abs=2 / FPS)


def test_a_program_stream_whose_stamps_differ_after_a_seek_is_decoded_from_its_start(tmp_path):
    path = render_clock(tmp_path / "film.vob", GAP, "mpeg2video")
    clip = read_clip(path, start_s=6.5, **ONE_A_SECOND)
    assert shown_s(clip) == pytest.approx([6.5, 7.5, 8.5, 9.5], abs=0.1)


def test_frames_are_counted_where_the_clock_jumps(tmp_path):
    """Two recordings, one after the other: FFmpeg takes the jump for a wrap of the clock, 26 hours later."""
    path = render_clock(tmp_path / "one.ts", bf="2")
    path.write_bytes(2 * path.read_bytes())
    clip = read_clip(path, frames_per_second=0.5, max_frames=12, target=Resizing(32))
    assert clip.video_s == pytest.approx(20, abs=0.1)
    assert shown_s(clip) == pytest.approx([0, 2, 4, 6, 8, 0, 2, 4, 6, 8], abs=TOLERANCE_S)
    assert clip.note == "not read by decord: its clock jumps, and the frames are counted"


def test_an_assumed_rate_is_noted(tmp_path):
    path = render_clock(tmp_path / "raw.mjpeg", range(50), "mjpeg", pix_fmt="yuvj420p")
    clip = read_clip(path, **ONE_A_SECOND)
    assert clip.note.endswith("no time stamps and no frame rate: 25 per second are assumed")


def test_a_cut_without_encoding_begins_with_the_first_frame_that_is_shown(tmp_path):
    source = render_clock(tmp_path / "source.mp4", g="60", keyint_min="60", sc_threshold="0", bf="2")
    path = cut(source, tmp_path / "cut.mp4", 2.5)
    assert "are not to be shown" in timeline_of(path).unfit_for_decord
    assert shown_s(read_clip(path, **ONE_A_SECOND)) == pytest.approx([2.5, 3.5, 4.5, 5.5, 6.5, 7.5, 8.5, 9.5], abs=0.06)
    assert shown_s(read_clip(path, start_s=3.0, end_s=5.0, **ONE_A_SECOND)) == pytest.approx([5.5, 6.5, 7.5], abs=0.06)


def test_an_impossible_rate_without_time_stamps_is_an_error(tmp_path):
    path = tmp_path / "fast.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=600)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        for _ in range(20):
            container.mux(stream.encode(av.VideoFrame(64, 48, "yuvj420p")))
        container.mux(stream.encode(None))
    with pytest.raises(ClipError, match=r"claims 600 frames per second .* true rate") as caught:
        read_clip(path, **ONE_A_SECOND)
    assert caught.value.status == "corrupt"


def test_a_cover_and_a_picture_are_no_video(tmp_path):
    song = tmp_path / "song.mp4"
    with av.open(str(song), "w", format="mp4") as container:
        sound = container.add_stream("aac", rate=8000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        container.mux(cover.encode(av.VideoFrame(64, 48, "yuvj420p")))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
    picture = tmp_path / "picture.mp4"
    picture.write_bytes(b"")
    from PIL import Image

    Image.new("RGB", (64, 48)).save(picture, "JPEG")
    for path, reason in ((song, "the file holds audio and a cover picture"), (picture, "the file is a picture")):
        with pytest.raises(ClipError, match=reason) as caught:
            read_clip(path, **ONE_A_SECOND)
        assert caught.value.status == "no_video"


def test_every_reader_reads_the_same_of_several_video_streams(tmp_path):
    """The one that FFmpeg's tools prefer: the first is marked as the default. decord would take the larger one."""
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for width in (64, 128):
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, 48, "yuv420p"
            streams.append(stream)
        for _ in range(50):
            for stream in streams:
                pixels = np.full((48, stream.width, 3), 2 * stream.width - 100, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        for stream in streams:
            container.mux(stream.encode(None))
    clip = read_clip(path, **ONE_A_SECOND)
    assert clip.decoder == "pyav"
    assert clip.note == "not read by decord: several video streams"
    assert (clip.width, len(clip.frames)) == (64, 2)
    assert np.abs(clip.frames.astype(int) - 28).max() <= 3


def test_one_picture_with_sound_is_not_cut_off(tmp_path):
    """FFmpeg gives the length of the whole file to the stream of the picture."""
    path = tmp_path / "song.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        container.mux(stream.encode(av.VideoFrame(64, 48, "yuv420p")))
        container.mux(stream.encode(None))
        for _ in range(80):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1000), np.int16), format="s16", layout="mono")
            frame.sample_rate = 8000
            container.mux(sound.encode(frame))
    clip = read_clip(path, **ONE_A_SECOND)
    assert (len(clip.frames), clip.note) == (1, None)
    with pytest.raises(ClipError, match="begins after the end of the video") as caught:
        read_clip(path, start_s=5.0, **ONE_A_SECOND)
    assert caught.value.status == "too_short"


def test_frames_that_do_not_decode_do_not_move_the_others_of_a_video_without_time_stamps(tmp_path):
    path = render_clock(tmp_path / "film.avi", codec="mjpeg", pix_fmt="yuvj420p")
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for position, size in places[105:165]:
        content[position : position + size] = bytes(size)
    path.write_bytes(content)
    clip = read_clip(path, **ONE_A_SECOND)
    assert clip.times_s == (0, 1, 2, 3, 6, 7, 8, 9)
    assert shown_s(clip) == pytest.approx(clip.times_s, abs=0.1)
    assert clip.note.endswith("2 of 10 frames cannot be decoded")
