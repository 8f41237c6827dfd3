"""Files whose clock jumps, which are encrypted, or in which streams appear late."""

from types import SimpleNamespace

import av
import numpy as np
import pytest
from clocks import FPS, TOLERANCE_S, render_clock, shown_s

from waver.data.clip import ClipError
from waver.data.video.packets import Packet, demux, split_at_jumps, times_of_parts
from waver.data.video.reader import read_clip
from waver.data.video.resizing import Resizing

ONE_A_SECOND = {"frames_per_second": 1.0, "max_frames": 30, "target": Resizing(32)}
FIRST_HALF = [*range(5 * FPS), *range(5 * FPS, 10 * FPS, 10)]
"""30 frames per second in the first half, 3 in the second."""


def packet(pts, dts, duration=1):
    return Packet(pts, dts, duration, is_key=False)


def test_recordings_of_other_rates_in_one_file_keep_their_times(tmp_path):
    path = render_clock(tmp_path / "one.ts", FIRST_HALF, bf="0", g="30")
    path.write_bytes(2 * path.read_bytes())
    clip = read_clip(path, **ONE_A_SECOND)
    length_s = FIRST_HALF[-1] / FPS + 1 / FPS  # of the first recording, whose last frame has no length
    times_s = np.array(clip.times_s)
    assert clip.video_s == pytest.approx(2 * length_s, abs=0.01)
    assert times_s == pytest.approx(np.arange(20), abs=10 / FPS)
    assert shown_s(clip) == pytest.approx(
        np.where(times_s < length_s - 0.01, times_s, times_s - length_s), abs=TOLERANCE_S
    )
    assert clip.note == "not read by decord: its clock jumps, and the frames are counted"


@pytest.mark.slow
@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_recordings_that_begin_between_keyframes_keep_their_times(tmp_path, codec):
    """The decoder leaves out the frames before the first keyframe of each recording, without an error."""
    path = render_clock(tmp_path / "one.ts", codec=codec, bf="2", g="60", sc_threshold="1000000000")
    content = path.read_bytes()
    content = content[len(content) * 3 // 10 // 188 * 188 :]
    path.write_bytes(content)
    first = read_clip(path, **ONE_A_SECOND)
    assert first.video_s is not None
    offset_s = np.median(shown_s(first) - first.times_s)
    path.write_bytes(2 * content)
    clip = read_clip(path, **ONE_A_SECOND)
    times_s = np.array(clip.times_s)
    assert clip.video_s == pytest.approx(2 * first.video_s, abs=0.05)
    assert 8 < len(times_s) < 2 * first.video_s
    expected = offset_s + np.where(times_s < first.video_s, times_s, times_s - first.video_s)
    wrong = np.abs(shown_s(clip) - expected) > 0.12
    assert wrong.sum() <= 1  # where the recordings meet
    assert "frames are counted" in (clip.note or "")


def test_parts_without_time_stamps_follow_from_the_rate():
    parts = [[packet(None, 0), packet(None, 1)], [packet(7, 5), packet(5, 6), packet(6, 7)]]
    assert times_of_parts(parts, fps=2.0, unit_s=1.0) == [0, 0.5, 1, 2, 3]
    packets = [packet(0, 0), packet(1, None), packet(2, 2), packet(0, -5), packet(9_000, 9_000)]
    assert [len(part) for part in split_at_jumps(packets, 1.0)] == [3, 1, 1]
    assert split_at_jumps(packets, 0.1) == [packets]
    assert split_at_jumps([], 1.0) == [[]]


def test_an_encrypted_video_is_named(tmp_path):
    source = render_clock(tmp_path / "source.mp4", range(60))
    path = tmp_path / "encrypted.mp4"
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": 32 * "7", "encryption_kid": 32 * "a"}
    with av.open(str(source)) as read, av.open(str(path), "w", options=options) as write:
        copy = write.add_stream_from_template(read.streams.video[0])
        for one in read.demux(read.streams.video[0]):
            if one.size:
                one.stream = copy
                write.mux(one)
    with pytest.raises(ClipError, match=r"encrypted \(DRM\)") as caught:
        read_clip(path, **ONE_A_SECOND)
    assert caught.value.status == "corrupt"


def test_streams_that_appear_late_end_no_file_with_an_error():
    def raise_at_the_end(*_):
        yield from ("first", "last")
        raise IndexError("list index out of range")

    assert list(demux(SimpleNamespace(demux=raise_at_the_end))) == ["first", "last"]
