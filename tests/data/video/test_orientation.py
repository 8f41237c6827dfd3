"""Videos that are stored rotated or mirrored, as phones and front cameras store them."""

import math
import struct

import av
import numpy as np
import pytest

from waver.data.video.orientation import describe_odd_matrix
from waver.data.video.reader import read_clip
from waver.data.video.resizing import Resizing

QUARTERS = np.array([[235, 100], [180, 16]], np.uint8)
SHOWN = (QUARTERS.astype(float) - 16) * 255 / 219
FIRST = {"frames_per_second": 1.0, "max_frames": 1, "target": Resizing(32)}
MATRICES = {
    "as stored": (1, 0, 0, 1),
    "90": (0, 1, -1, 0),
    "180": (-1, 0, 0, -1),
    "270": (0, -1, 1, 0),
    "mirrored": (-1, 0, 0, 1),
    "upside down": (1, 0, 0, -1),
    "transposed": (0, 1, 1, 0),
    "transposed the other way": (0, -1, -1, 0),
}


def render_turned(path, matrix):
    """Renders four quarters of different greys, and writes the matrix (a, b, c, d) into the header of the track."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        planes = np.full((72, 64), 128, np.uint8)
        planes[:48] = QUARTERS.repeat(24, axis=0).repeat(32, axis=1)
        for _ in range(10):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode(None))
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 44
    a, b, c, d = (round(value * 65536) for value in matrix)
    content[at : at + 20] = struct.pack(">5i", a, b, 0, c, d)
    path.write_bytes(content)
    return path


def turn(pixels: np.ndarray, matrix) -> np.ndarray:
    """Moves each pixel (x, y) to (a x + c y, b x + d y), as the standard says, and shifts all of them into the picture."""
    a, b, c, d = matrix
    y, x = np.indices(pixels.shape)
    new_x, new_y = a * x + c * y, b * x + d * y
    turned = np.empty((np.ptp(new_y) + 1, np.ptp(new_x) + 1), pixels.dtype)
    turned[new_y - new_y.min(), new_x - new_x.min()] = pixels
    return turned


@pytest.mark.slow
@pytest.mark.parametrize("name", MATRICES)
def test_frames_are_turned_as_the_matrix_says(tmp_path, name):
    matrix = MATRICES[name]
    path = render_turned(tmp_path / "film.mp4", matrix)
    for failure in (None, "not asked"):
        clip = read_clip(path, decord_failure=failure, **FIRST)
        quarters = clip.frames[0][8::16, 8::16, 0]
        assert np.abs(quarters - turn(SHOWN, matrix)).max() < 4
        assert (clip.width, clip.height) == ((64, 48) if matrix[0] else (48, 64))
    is_mirrored = matrix[0] * matrix[3] - matrix[1] * matrix[2] < 0
    assert is_mirrored == ("it is mirrored" in (read_clip(path, **FIRST).note or ""))


@pytest.mark.parametrize(("degrees", "nearest"), [(30, "as stored"), (60, "90")])
def test_both_readers_turn_by_the_nearest_right_angle(tmp_path, degrees, nearest):
    cos, sin = (function(math.radians(degrees)) for function in (math.cos, math.sin))
    clip = read_clip(render_turned(tmp_path / "film.mp4", (cos, sin, -sin, cos)), **FIRST)
    assert np.abs(clip.frames[0][8::16, 8::16, 0] - turn(SHOWN, MATRICES[nearest])).max() < 4
    assert clip.note == "not read by decord: it is rotated by an odd angle"


def test_a_damaged_header_says_nothing(tmp_path):
    path = render_turned(tmp_path / "film.mp4", MATRICES["mirrored"])
    content = path.read_bytes()
    assert describe_odd_matrix(path) == "it is mirrored"
    at = content.index(b"tkhd") - 4
    for length in (0, 4, 30, 2**32 - 1):
        path.write_bytes(content[:at] + struct.pack(">I", length) + content[at + 4 :])
        assert describe_odd_matrix(path) in (None, "it is mirrored")
    path.write_bytes(content[: at + 20])
    assert describe_odd_matrix(path) is None
