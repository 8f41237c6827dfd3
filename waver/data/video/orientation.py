"""Rotates and mirrors frames by the display matrix of their video (ISO/IEC 14496-12, 8.3.2).

Phones store frames as the sensor sees them, those of a front camera perhaps mirrored. decord only rotates by multiples of 90
degrees: it turns a mirrored video upside down.
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
"""Offset of the matrix in a track header of version 0 and of version 1, bytes."""


def upright_pixels(frame: "VideoFrame") -> np.ndarray:
    """Returns RGB pixels, uint8 (height, width, 3), mirrored and rotated to the nearest right angle by the matrix."""
    from av.sidedata.sidedata import Type

    pixels = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return pixels
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(matrix), np.int32)[:5])
    if a * d - b * c < 0:  # mirror first: the rest of the matrix is a rotation
        pixels, a, b = pixels[:, ::-1], -a, -b
    degrees = -math.degrees(math.atan2(b, a))  # counterclockwise, as in rot90
    return np.rot90(pixels, round(degrees / 90))


def describe_odd_matrix(path: Path) -> str | None:
    """Returns why decord would turn a track of an MP4 or MOV wrongly; None if it would turn all tracks right.

    decord is wrong about tracks that are mirrored, or rotated by no multiple of 90 degrees.

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
    """Yields (start, end) of the content of each box of a kind, among the boxes between two places of the file."""
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
