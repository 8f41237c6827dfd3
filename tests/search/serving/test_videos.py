import io
import os
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from waver.data.ledger import FileStamp
from waver.search.serving import videos
from waver.search.serving.videos import ChangedVideoError, Previews, Span, SpanReader, VideoError, jpeg, open_indexed


@pytest.fixture
def span(films, tmp_path) -> Span:
    path = tmp_path / "film.avi"
    shutil.copy(films / "kitchen" / "old.avi", path)
    return Span(path, FileStamp.of(path).digest, 2.0, 4.0)


@pytest.fixture(scope="module")
def reader():
    reader = SpanReader()
    yield reader
    reader.close()


def test_the_file_that_was_indexed_is_opened(span):
    with open_indexed(span) as file:
        file.seek(0)
        assert file.read() == span.path.read_bytes()


def swap_for_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def swap_for_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def swap_for_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def swap_for_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "change", [Path.unlink, swap_for_link, swap_for_pipe, swap_for_folder, swap_for_device, change_a_byte]
)
@pytest.mark.timeout(20)
def test_another_file_under_its_name_is_not_opened(span, change, reader):
    change(span.path)
    for ask in (open_indexed, reader.preview):
        with pytest.raises(ChangedVideoError, match="since it was indexed: run `waver index` again"):
            ask(span)


def test_a_swap_after_opening_changes_nothing(span):
    before = span.path.read_bytes()
    with open_indexed(span) as file:
        swap_for_link(span.path)
        file.seek(0)
        assert file.read() == before


@pytest.mark.slow
def test_a_preview_shows_the_span_in_its_shape_and_time(span, reader):
    with av.open(io.BytesIO(reader.preview(span))) as film, av.open(str(span.path)) as original:
        stream = film.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 320, 214)
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in film.decode(video=0)]
        pixels = {frame.time: frame.to_ndarray(format="rgb24") for frame in original.decode(video=0)}
    times = [time for time, _ in frames]
    assert times[0] == 0
    assert np.all(np.diff(times) > 0)
    assert times[-1] == pytest.approx(2.0, abs=0.2)
    for time, picture in frames[:-1]:  # the last one is repeated
        expected = pixels[min(pixels, key=lambda own: abs(own - 2.0 - time))]
        assert np.abs(picture[107, 300].astype(int) - expected[32, 90]).max() < 40


@pytest.mark.slow
def test_a_video_that_cannot_be_decoded_says_why(span, reader):
    span.path.write_text("#EXTM3U\nhttp://127.0.0.1:1/secret\n")
    playlist = replace(span, source=FileStamp.of(span.path).digest)
    with pytest.raises(VideoError, match="a playlist, whose files are not opened"):
        reader.preview(playlist)


@pytest.mark.slow
def test_previews_are_made_once_and_the_oldest_are_deleted(span, reader, monkeypatch):
    previews = Previews(reader)
    with previews.open(span, "one.mp4") as file:
        one = file.read()
        folder = Path(file.name).parent
    made = (folder / "one.mp4").stat().st_mtime_ns
    with previews.open(span, "one.mp4") as file:
        assert file.read() == one
    assert (folder / "one.mp4").stat().st_mtime_ns == made
    monkeypatch.setattr(videos, "_PREVIEW_BYTES", len(one) + 10)
    previews.open(replace(span, start_s=0.0), "two.mp4").close()
    assert [path.name for path in folder.iterdir()] == ["two.mp4"]
    change_a_byte(span.path)
    with pytest.raises(ChangedVideoError):
        previews.open(replace(span, start_s=0.0), "two.mp4")
    previews.close()
    assert not folder.exists()


def test_pictures_are_small(tmp_path):
    content = jpeg(np.zeros((300, 400, 3), np.uint8), 100)
    with av.open(io.BytesIO(content)) as picture:
        assert (picture.streams.video[0].width, picture.streams.video[0].height) == (100, 75)
