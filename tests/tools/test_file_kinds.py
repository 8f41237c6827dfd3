import pytest

from waver.tools.file_kinds import describe_bytes, first_bytes, is_plain_text


@pytest.mark.parametrize(
    ("begins", "kind"),
    [
        (b"\xef\xbb\xbf\n <!DOCTYPE HTML>", "a web page"),
        (b'<?xml version="1.0"?><html xmlns="">', "a web page"),
        (b"PK\x03\x04...xl/workbook.xml", "an Excel workbook"),
        (b"PK\x03\x04...video0.mp4", "a ZIP archive"),
        (bytes(257) + b"ustar", "a tar archive"),
        (b"\x00\x00\x00\x20ftypisom", "an MP4 video"),
        (b"PAR1", "a Parquet file"),
        (b"\x80\x04\x95", "a pickle"),
        (b"video,caption\n", None),
        (b"<caption>", None),
        (b"", None),
    ],
)
def test_files_are_known_by_their_first_bytes(begins, kind):
    assert describe_bytes(begins) == kind


@pytest.mark.parametrize(
    ("begins", "is_text"),
    [
        (b"a,b\r\n\tc", True),
        ("é".encode()[:1], False),
        ("abcé".encode()[:-1], True),  # a character that was cut
        (b"a\xffb", False),
        (b"a\x00b", False),
        (b"", False),
    ],
)
def test_plain_text_is_known_by_its_first_bytes(tmp_path, begins, is_text):
    (tmp_path / "file").write_bytes(begins)
    assert is_plain_text(first_bytes(tmp_path / "file")) == is_text
