"""Answers requests for a file or for a range of its bytes (RFC 9110, section 14), from a file that is already open."""

import os
import re
from collections.abc import AsyncIterator
from typing import BinaryIO

import anyio.to_thread
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

_CHUNK_BYTES = 2**18
_RANGE = re.compile(r"\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*", re.ASCII | re.IGNORECASE)
_MAX_DIGITS = 18


class UnsatisfiableRangeError(Exception):
    """A range of bytes begins after the end of the file."""


def parse_range(header: str | None, size: int) -> range | None:
    """Returns the bytes that a Range header requests; None for the whole file.

    A header of another form, or with several ranges, is ignored, as the standard allows.

    Args:
        header: such as `bytes=0-99`, `bytes=100-` or `bytes=-100`; None if there is none.
        size: size of the file, bytes.

    Raises:
        UnsatisfiableRangeError: if the range begins after the end of the file.
    """
    match = _RANGE.fullmatch(header or "")
    if not match or match[1] == match[2] == "":
        return None
    first, last = (_number(text) for text in match.groups())
    if first is None:
        first, last = max(0, size - (last or 0)), size - 1
    elif last is not None and last < first:
        return None
    if first >= size:
        raise UnsatisfiableRangeError(header)
    return range(first, min(size - 1 if last is None else last, size - 1) + 1)


def _number(text: str) -> int | None:
    """Parses a number, None if it is empty; larger ones become 10^18 - 1: Python refuses to parse very long numbers."""
    digits = text.lstrip("0")
    return None if text == "" else int("9" * _MAX_DIGITS) if len(digits) > _MAX_DIGITS else int(digits or "0")


def file_response(request: Request, file: BinaryIO, *, media_type: str, etag: str) -> Response:
    """Returns a response with an open file, or with the range of it that is requested; the response closes the file.

    Args:
        request: GET or HEAD.
        file: open for reading.
        media_type: such as `video/mp4`.
        etag: identifies this content; without quotes.
    """
    size = os.fstat(file.fileno()).st_size
    headers = {"Accept-Ranges": "bytes", "ETag": f'"{etag}"', "Cache-Control": "private, no-cache"}
    asked = request.headers.get("range")
    if request.headers.get("if-range", headers["ETag"]) != headers["ETag"]:
        asked = None
    try:
        part = parse_range(asked, size)
    except UnsatisfiableRangeError:
        file.close()
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{size}"})
    if part is not None:
        headers["Content-Range"] = f"bytes {part.start}-{part.stop - 1}/{size}"
    body = part or range(size)
    headers["Content-Length"] = str(len(body))
    status = 200 if part is None else 206
    if request.method == "HEAD":
        file.close()
        return Response(status_code=status, headers=headers, media_type=media_type)
    return StreamingResponse(_read(file, body), status_code=status, headers=headers, media_type=media_type)


async def _read(file: BinaryIO, part: range) -> AsyncIterator[bytes]:
    """Yields the bytes of a part. If the file has shrunk since, they are fewer, and the server ends the connection."""
    with file:
        await anyio.to_thread.run_sync(file.seek, part.start)
        missing = len(part)
        while missing and (chunk := await anyio.to_thread.run_sync(file.read, min(missing, _CHUNK_BYTES))):
            missing -= len(chunk)
            yield chunk
