import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from clocks import render_clock
from PIL import Image

from waver.data.clip import ClipError
from waver.data.video.decoder import Decoder, DecoderStartError
from waver.data.video.reader import read_clip
from waver.data.video.resizing import Resizing

SAMPLING = {"frames_per_second": 10.0, "max_frames": 12, "target": Resizing(16)}


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "video.gif"
    frames = [Image.fromarray(np.full((20, 30, 3), 20 * i, np.uint8)) for i in range(10)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    return path


@pytest.fixture
def blocking_file(tmp_path) -> Path:
    """Opening it blocks until a writer comes: a decoder that hangs."""
    path = tmp_path / "pipe.mp4"
    os.mkfifo(path)
    return path


@pytest.fixture(scope="module")
def decoder():
    with Decoder(60.0) as decoder:
        yield decoder


def test_clip_equals_that_of_read_clip(decoder, video):
    ours, expected = (
        decoder.read_clip(video, start_s=0.2, end_s=None, **SAMPLING),
        read_clip(video, start_s=0.2, **SAMPLING),
    )
    np.testing.assert_array_equal(ours.frames, expected.frames)
    assert ours.frames.shape == (8, 16, 16, 3)
    for name in ("times_s", "source_fps", "height", "width", "decoder"):
        assert getattr(ours, name) == getattr(expected, name)


def test_errors_of_read_clip_are_raised(decoder, tmp_path):
    with pytest.raises(ClipError) as caught:
        decoder.read_clip(tmp_path / "absent.mp4", **SAMPLING)
    assert (caught.value.status, caught.value.reason) == ("missing", "no such file")


@contextlib.contextmanager
def ended_while_reading(
    decoder: Decoder, path: Path, how: signal.Signals, times: int = 1, before: Callable[[], None] = lambda: None
) -> Iterator[None]:
    """In the body the decoder's child is ended, so many times, when it has opened the file; `before` is called first."""

    def end() -> None:
        for _ in range(times):
            with path.open("wb"):  # returns once a child has opened the file to read it
                before()
                child = decoder._child
                child.send_signal(how)
                child.wait()  # it would still be reading when the next turn begins

    thread = threading.Thread(target=end)
    thread.start()
    yield
    thread.join()


def test_crash_costs_one_clip(decoder, video, blocking_file):
    with (
        ended_while_reading(decoder, blocking_file, signal.SIGSEGV),
        pytest.raises(ClipError, match="died with signal SIGSEGV") as caught,
    ):
        decoder.read_clip(blocking_file, **SAMPLING)
    assert caught.value.status == "corrupt"
    assert len(decoder.read_clip(video, **SAMPLING).frames) == 10


def test_clip_is_retried_after_the_decoder_was_killed(decoder, video, blocking_file):
    """Memory may have run out for a moment, or a cluster is being shut down: that says nothing of the clip."""
    shutil.copy(video, copy := blocking_file.with_suffix(".gif"))
    with ended_while_reading(decoder, blocking_file, signal.SIGKILL, before=lambda: copy.replace(blocking_file)):
        assert len(decoder.read_clip(blocking_file, **SAMPLING).frames) == 10


def test_a_clip_that_always_kills_the_decoder_is_given_up(decoder, video, blocking_file):
    with (
        ended_while_reading(decoder, blocking_file, signal.SIGKILL, times=2),
        pytest.raises(ClipError, match="died with signal SIGKILL, twice") as caught,
    ):
        decoder.read_clip(blocking_file, **SAMPLING)
    assert caught.value.status == "killed"
    assert len(decoder.read_clip(video, **SAMPLING).frames) == 10


@pytest.mark.slow
def test_hang_costs_one_clip(video, blocking_file):
    with Decoder(timeout_s=0.3) as impatient:
        with pytest.raises(ClipError, match=r"not decoded after 0\.3 s") as caught:
            impatient.read_clip(blocking_file, **SAMPLING)
        assert caught.value.status == "timeout"
        assert impatient._child is None
    with Decoder(timeout_s=60.0) as patient:
        assert len(patient.read_clip(video, **SAMPLING).frames) == 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "note"),
    [("time.sleep(99)", "hung for 1 s"), ("os.abort()", "its process died with signal SIGABRT")],
    ids=["hang", "crash"],
)
def test_pyav_reads_a_clip_at_which_decord_hangs_or_crashes(tmp_path, monkeypatch, fault, note):
    video = render_clock(tmp_path / "clock.mp4", range(60))
    fake = tmp_path / "packages/decord/__init__.py"
    fake.parent.mkdir(parents=True)
    fake.write_text(
        "import os, time\nfrom types import SimpleNamespace\nDECORDError = OSError\n"
        "logging = SimpleNamespace(set_level=print, QUIET=0)\ndef VideoReader(*_, **__): " + fault
    )
    with Decoder(60.0) as decoder:
        expected = decoder.read_clip(video, **SAMPLING)
    assert (expected.decoder, expected.note) == ("decord", None)
    monkeypatch.setenv("PYTHONPATH", str(fake.parents[1]))
    with Decoder(2.0) as decoder:
        clip = decoder.read_clip(video, **SAMPLING)
    assert (clip.decoder, clip.times_s) == ("pyav", expected.times_s)
    assert clip.note.startswith(f"not read by decord: {note}")


def test_decoder_restarts_after_it_died_between_clips(decoder, video):
    decoder.read_clip(video, **SAMPLING)
    decoder._child.kill()
    decoder._child.wait()
    assert len(decoder.read_clip(video, **SAMPLING).frames) == 10


@pytest.mark.slow
def test_child_is_replaced_after_a_number_of_clips(monkeypatch, video):
    monkeypatch.setattr("waver.data.video.decoder._CLIPS_PER_CHILD", 2)
    with Decoder(60.0) as decoder:
        children = []
        for _ in range(5):
            assert len(decoder.read_clip(video, **SAMPLING).frames) == 10
            children.append(decoder._child.pid)
    assert children[0] == children[1] != children[2] == children[3] != children[4]


def test_close_ends_the_process_and_closes_its_pipes(video):
    with Decoder(60.0) as decoder:
        decoder.read_clip(video, **SAMPLING)
        child, answers = decoder._child, decoder._answers
    assert child.returncode is not None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(answers)


def test_child_ends_with_its_parent(video):
    code = f"""
import os
from waver.data.video.decoder import Decoder
from waver.data.video.resizing import Resizing
decoder = Decoder(60.0)
decoder.read_clip({str(video)!r}, **{SAMPLING!r})
print(decoder._child.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    parent = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.returncode == -signal.SIGKILL
    wait_for_end(int(parent.stdout))


def wait_for_end(pid: int) -> None:
    for _ in range(600):
        state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], stdout=subprocess.PIPE, text=True).stdout
        if not state or state.startswith("Z"):  # gone, or not yet buried by its new parent
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("the child outlived its parent by a minute")


def test_child_that_cannot_start_raises_decoder_start_error(monkeypatch, video, tmp_path):
    (tmp_path / "python").write_text("#!/bin/sh\necho no such library >&2\nexit 3\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with (
        Decoder(60.0) as decoder,
        pytest.raises(DecoderStartError, match="does not start: it ended with exit code 3: no such lib"),
    ):
        decoder.read_clip(video, **SAMPLING)
