"""Files whose container marks frames as keyframes that need other frames."""

import av
import numpy as np
import pytest
from clocks import render_clock, shown_s

from waver.data.video.keyframes import is_intra
from waver.data.video.packets import read_packets
from waver.data.video.reader import read_clip
from waver.data.video.resizing import Resizing

ONE_A_SECOND = {"frames_per_second": 1.0, "max_frames": 12, "target": Resizing(32)}
CODECS = [
    ("v.mp4", "libx264", {"g": "30", "keyint_min": "30", "sc_threshold": "0", "bf": "2"}),
    ("v.ts", "libx264", {"g": "30", "keyint_min": "30", "sc_threshold": "0", "bf": "2"}),
    ("v.mkv", "libx265", {"x265-params": "log-level=none:keyint=30:bframes=2"}),
    ("v.mpg", "mpeg2video", {"g": "30", "bf": "2"}),
    ("v.avi", "mpeg4", {"g": "30", "bf": "2"}),
    ("v.webm", "libvpx", {"g": "30", "auto-alt-ref": "0"}),
    ("v.mkv", "libvpx-vp9", {"g": "30", "cpu-used": "8"}),
]

HEVC = {"x265-params": "log-level=none:keyint=30:min-keyint=30:scenecut=0:bframes=0"}


def mark_all_as_keyframes(path):
    """Removes the list of keyframes of an MP4: without it, every frame counts as one."""
    content = path.read_bytes()
    assert content.count(b"stss") == 1
    path.write_bytes(content.replace(b"stss", b"free"))
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("name", "codec", "options"), CODECS, ids=[codec for _, codec, _ in CODECS])
def test_the_pictures_of_keyframes_are_intra_and_the_others_are_not(tmp_path, name, codec, options):
    path = render_clock(tmp_path / name, range(100), codec, **dict(options))
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        found = [is_intra(stream.codec_context, packet) for packet in packets]
        assert found == [packet.is_keyframe for packet in packets]
    assert 0 < sum(found) < len(found)


@pytest.mark.parametrize(("codec", "options"), [("libx264", {"g": "60", "bf": "0"}), ("libx265", HEVC)])
def test_frames_that_are_wrongly_marked_as_keyframes_are_no_places_to_begin(tmp_path, codec, options):
    path = mark_all_as_keyframes(render_clock(tmp_path / "v.mp4", codec=codec, **options))
    for start_s, expected in ((None, range(10)), (5.0, range(5, 10))):
        clip = read_clip(path, start_s=start_s, **ONE_A_SECOND)
        assert shown_s(clip) == pytest.approx(list(expected), abs=0.06)
        assert clip.decoder == "pyav"
        assert "keyframes" in (clip.note or "")


def test_a_film_of_keyframes_only_is_read_as_before(tmp_path):
    path = render_clock(tmp_path / "v.mp4", g="1")
    clip = read_clip(path, **ONE_A_SECOND)
    assert (clip.decoder, clip.note) == ("decord", None)
    assert shown_s(clip) == pytest.approx(np.arange(10), abs=0.06)


def test_wrongly_marked_packets_are_counted(tmp_path):
    path = mark_all_as_keyframes(render_clock(tmp_path / "v.mp4", range(90), "libx265", **HEVC))
    with av.open(str(path)) as container:
        packets = read_packets(container, container.streams.video[0])
    assert packets.num_wrong_keys == 87
    assert [index for index, packet in enumerate(packets.shown) if packet.is_key] == [0, 30, 60]
