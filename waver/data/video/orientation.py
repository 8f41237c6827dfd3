"""Turns frames as the display matrix of their video asks for: phones store them as the sensor sees them.

A front camera may store them mirrored as well. decord knows rotations by 90 degrees only: it turns a mirrored video upside
down. The matrix is that of ISO/IEC 14496-12, 8.3.2.
"""

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_MATRIX_AT = (40, 52)
"""Place of the matrix in the track header of version 0 and 1, bytes."""


def upright_pixels(frame: "VideoFrame") -> np.ndarray:
    """Returns uint8 (height, width, 3), RGB: mirrored and rotated to the nearest right angle, as the frame asks for."""
    from av.sidedata.sidedata import Type

    pixels = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return pixels
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(matrix), np.int32)[:5])
    if a * d - b * c < 0:  # mirrored first, so that a rotation is left
        pixels, a, b = pixels[:, ::-1], -a, -b
    degrees = -math.degrees(math.atan2(b, a))  # counterclockwise, as in rot90
    return np.rot90(pixels, round(degrees / 90))


def describe_odd_matrix(path: Path) -> str | None:
    """Says why a track of an MP4 or MOV is not only rotated by a multiple of 90 degrees; None if none is.

    Args:
        path: of the file, which can be read.
    """
    with path.open("rb") as file:
        for moov in _boxes(file, b"moov", 0, path.stat().st_size):
            for track in _boxes(file, b"trak", *moov):
                for start, end in _boxes(file, b"tkhd", *track):
                    file.seek(start)
                    header = file.read(min(end - start, 96))
                    at = _MATRIX_AT[header[:1] == b"\x01"]
                    if len(header) >= at + 20:
                        a, b, _, c, d = struct.unpack_from(">5i", header, at)
                        if a * d - b * c < 0:
                            return "it is mirrored"
                        if (a or d) and (b or c):
                            return "it is rotated by an odd angle"
    return None


def _boxes(file: BinaryIO, kind: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yields where the content of each box of a kind begins and ends, among the boxes between two places."""
    while start + 8 <= end:
        file.seek(start)
        length, found = int.from_bytes(file.read(4), "big"), file.read(4)
        begin = start + 8
        if length == 1:
            length, begin = int.from_bytes(file.read(8), "big"), start + 16
        last = min(end, start + length) if length else end
        if last <= start or begin > last:
            return
        if found == kind:
            yield begin, last
        start = last
