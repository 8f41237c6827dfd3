"""Checks the packets that a container marks as keyframes: some programs mark all packets, or frames that need other frames.

A reader that begins to decode at such a packet returns frames of other times, without an error. The first bits of a packet
contain the type of its picture: ITU-T H.264 (7.3.3), H.265 (7.3.1.2), ISO/IEC 13818-2 (6.2.3), 14496-2 (6.2.5), RFC 6386
(9.1) and the VP9 bitstream specification (6.2).
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext

_NUM_BYTES = 16
"""Number of bytes of each unit of a packet that are read."""
_I_SLICES = (2, 4, 7, 9)
"""`slice_type` of H.264: slices of type I and SI."""


def is_intra(codec: "VideoCodecContext", packet: "Packet") -> bool:
    """Returns whether the picture of a packet needs no other picture; True for codecs that this module does not know.

    Args:
        codec: codec of the video.
        packet: packet of the video, not empty.
    """
    name, extradata = codec.codec.canonical_name, codec.extradata or b""
    if name in ("h264", "hevc"):
        units = _units(bytes(packet), _length_size(name, extradata))
        return next((found for unit in units if (found := _is_intra_unit(name, unit)) is not None), False)
    if name in ("vp8", "vp9"):
        return _is_intra_vpx(name, memoryview(packet)[0])
    if name in ("mpeg1video", "mpeg2video"):
        header = _after(bytes(packet), b"\x00\x00\x01\x00")
        return len(header) > 1 and (header[1] >> 3) & 7 == 1
    if name == "mpeg4":
        header = _after(bytes(packet), b"\x00\x00\x01\xb6")
        return bool(header) and header[0] >> 6 == 0
    return True


def _length_size(name: str, extradata: bytes) -> int:
    """Returns how many bytes give the length of each unit in a packet; 0 if start codes separate the units."""
    place = 4 if name == "h264" else 21
    is_record = len(extradata) > place and extradata[0] == 1
    return (extradata[place] & 3) + 1 if is_record else 0


def _units(data: bytes, length_size: int) -> Iterator[bytes]:
    """Yields the first bytes of each unit of a packet of H.264 or H.265."""
    at = 0
    while length_size and at + length_size < len(data):
        length = int.from_bytes(data[at : at + length_size], "big")
        at += length_size
        yield data[at : at + min(length, _NUM_BYTES)]
        at += length
    while not length_size and (at := data.find(b"\x00\x00\x01", at)) >= 0:
        at += 3
        yield data[at : at + _NUM_BYTES]


def _is_intra_unit(name: str, unit: bytes) -> bool | None:
    """Returns whether a unit is a slice of an intra picture; None if it is no slice."""
    if name == "hevc":
        kind = unit[0] >> 1 & 63 if unit else 63
        return 16 <= kind <= 23 if kind < 32 else None
    kind = unit[0] & 31 if unit else 31
    if kind == 5:
        return True
    if kind not in (1, 2):
        return None
    bits = "".join(f"{byte:08b}" for byte in unit[1:])
    _, bits = _read_exp_golomb(bits)  # first_mb_in_slice
    return _read_exp_golomb(bits)[0] in _I_SLICES


def _read_exp_golomb(bits: str) -> tuple[int, str]:
    """Returns the number at the beginning of bits, and the rest of them."""
    zeros = len(bits) - len(bits.lstrip("0"))
    end = 2 * zeros + 1
    return int(bits[zeros:end] or "0", 2) - 1, bits[end:]


def _is_intra_vpx(name: str, first: int) -> bool:
    if name == "vp8":
        return not first & 1
    has_profile_3 = first & 0b00110000 == 0b00110000
    return not first & (0b0110 if has_profile_3 else 0b1100)  # show_existing_frame, frame_type


def _after(data: bytes, code: bytes) -> bytes:
    """Returns the bytes that follow the first occurrence of a start code; empty if there is none."""
    at = data.find(code)
    return data[at + 4 : at + 4 + _NUM_BYTES] if at >= 0 else b""
