"""Says what a file is by its first bytes, for messages about a file that is not what its name says."""

from pathlib import Path

NUM_BYTES = 4096
"""Number of first bytes that `describe_bytes` needs."""

_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"PAR1", "a Parquet file"),
    (b"ARROW1", "an Arrow file"),
    (b"FEA1", "an Arrow file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\x00", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!", "a RAR archive"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document, such as .xls"),
    (b"%PDF-", "a PDF document"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG\r\n", "a PNG picture"),
    (b"GIF87a", "a GIF picture"),
    (b"GIF89a", "a GIF picture"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself"),
    *((bytes((0x80, version)), "a pickle") for version in (2, 3, 4, 5)),
)
_WEB_PAGES = (b"<!doctype html", b"<html", b"<head", b"<body", b"<table")


def describe_bytes(begins: bytes) -> str | None:
    """Returns what a file is, such as "a web page".

    Args:
        begins: its first `NUM_BYTES` bytes, or the whole file if it is shorter.

    Returns:
        The kind; None for plain text and for anything unknown.
    """
    text = begins.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(_WEB_PAGES) or (text.startswith(b"<?xml") and b"<html" in text):
        return "a web page"
    if text.startswith(b"<?xml"):
        return "an XML file"
    if begins.startswith(b"PK\x03\x04"):
        is_workbook = b"xl/" in begins or b"[Content_Types].xml" in begins
        return "an Excel workbook" if is_workbook else "a ZIP archive"
    if begins[257:262] == b"ustar":
        return "a tar archive"
    if begins[4:8] == b"ftyp":
        return "an MP4 video"
    return next((kind for signature, kind in _SIGNATURES if begins.startswith(signature)), None)


def is_plain_text(begins: bytes) -> bool:
    """Returns whether the first bytes of a file are text: UTF-8, without control characters but tabs and line ends."""
    text = begins.decode("utf-8-sig", "replace").rstrip("\ufffd")  # the last character may be cut
    return bool(text) and all((char.isprintable() and char != "\ufffd") or char in "\t\r\n" for char in text)


def first_bytes(path: Path) -> bytes:
    """Returns the first `NUM_BYTES` bytes of a file; raises OSError if it cannot be read."""
    with path.open("rb") as file:
        return file.read(NUM_BYTES)
