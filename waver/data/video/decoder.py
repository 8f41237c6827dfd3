"""Decodes videos in a child process, so that a crash or hang of native code costs one clip only.

The child (`python -m waver.data.video.decoder`) reads requests from its standard input, one JSON object per line. It answers
on a separate pipe, because native libraries may print to standard output. It ends with its parent.
"""

import contextlib
import json
import math
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from waver.data.clip import Clip, ClipError
from waver.data.video.reader import read_clip
from waver.data.video.resizing import Resizing
from waver.tools.errors import WaverError

_START_S = 120.0
"""Time limit for the child to import its libraries, perhaps from a slow network disk."""
_CLIPS_PER_CHILD = 1000
"""Clips after which the child is replaced: decord leaks about 40 kB per clip."""
_EXTERNAL_SIGNALS = (signal.SIGKILL, signal.SIGTERM)
"""Signals that only another process sends (out of memory, shutdown of a cluster), never a fault in the child."""
MEMORY_BYTES = 4 * 2**30
"""Memory limit of the child beyond its libraries: a small file can have huge frames. Twelve 8K frames take a third of it."""
_CLIP_HEADER = ("times_s", "source_fps", "height", "width", "decoder", "video_s", "note")
"""Attributes of a clip in the header of an answer."""
_LENGTHS = struct.Struct("!IQ")
"""Prefix of an answer: length of the JSON header, length of the pixels; bytes."""


class DecoderStartError(WaverError):
    """The decoder process cannot start; the message ends with its last line of output."""


class _KilledError(Exception):
    """Another process killed the child."""


class _DecordFailedError(Exception):
    """decord crashed or hung, and PyAV has `left_s` seconds to read the clip."""

    def __init__(self, how: str, left_s: float):
        super().__init__(how)
        self.left_s = left_s


class Decoder:
    """Reads clips in a child process, which is started on demand and restarted after it dies.

    A context manager; it is not thread-safe.

    Args:
        timeout_s: time limit per clip.
        memory_bytes: memory limit of decoding.
    """

    def __init__(self, timeout_s: float, memory_bytes: int = MEMORY_BYTES):
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._child: subprocess.Popen[bytes] | None = None
        self._resources = contextlib.ExitStack()  # the child, its pipes and its error output

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def read_clip(self, path: Path | str, **arguments: Any) -> Clip:
        """Calls `waver.data.video.reader.read_clip` in the child, with the same arguments.

        If decord hangs for half of the time limit, or crashes, PyAV reads the clip in a new child.

        Raises:
            ClipError: as `read_clip`; also `timeout`, `corrupt` (the child crashed) and `killed` (another process killed the
                child in both of two attempts, which says nothing about the clip).
            DecoderStartError: if the child cannot start.
        """
        cause: _KilledError | None = None
        for _ in range(2):
            try:
                try:
                    return self._read_clip(path, arguments, self._timeout_s)
                except _DecordFailedError as failed:
                    return self._read_clip(path, {**arguments, "decord_failure": str(failed)}, failed.left_s)
            except _KilledError as killed:
                cause = killed
        raise ClipError("killed", f"the decoder process {cause}, twice")

    def _read_clip(self, path: Path | str, arguments: dict[str, Any], limit_s: float) -> Clip:
        child = self._child
        if child is None or child.poll() is not None or self._num_clips >= _CLIPS_PER_CHILD:
            child = self._start()
        self._num_clips += 1
        request = json.dumps({"path": str(path), **arguments}, default=asdict) + "\n"
        started, reader = time.monotonic(), "pyav"
        try:
            assert child.stdin is not None
            child.stdin.write(request.encode())
            child.stdin.flush()
            while True:
                deadline = started + (limit_s / 2 if reader == "decord" else limit_s)
                header, pixels = self._receive(deadline)
                if "reader" not in header:
                    break
                reader = header["reader"]
        except TimeoutError:
            self.close()
            if reader == "decord":
                raise _DecordFailedError(f"hung for {limit_s / 2:g} s", limit_s / 2) from None
            raise ClipError("timeout", f"not decoded after {self._timeout_s:g} s (ingest.timeout_s)") from None
        except (EOFError, BrokenPipeError):
            code = _exit_code(child)
            cause = self._cause_of_death(code)
            if code is not None and -code in _EXTERNAL_SIGNALS:
                raise _KilledError(cause) from None
            if reader == "decord":
                raise _DecordFailedError(f"its process {cause}", started + limit_s - time.monotonic()) from None
            raise ClipError("corrupt", f"the decoder process {cause}") from None
        if "status" in header:
            raise ClipError(**header)
        shape = header.pop("shape")
        return Clip(np.frombuffer(pixels, np.uint8).reshape(shape), tuple(header.pop("times_s")), **header)

    def close(self) -> None:
        """Ends the child; the next clip starts a new one."""
        self._resources.close()
        self._child = None

    def _start(self) -> "subprocess.Popen[bytes]":
        self.close()
        with contextlib.ExitStack() as resources:
            self._answers, writing_end = os.pipe()
            resources.callback(os.close, self._answers)
            self._errors = resources.enter_context(tempfile.TemporaryFile())
            # The child must import the same waver package as the parent.
            search_path = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH")]
            try:
                child = self._child = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "waver.data.video.decoder",
                        *map(str, (writing_end, self._timeout_s, self._memory_bytes)),
                    ],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=self._errors,
                    pass_fds=[writing_end],
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search_path))},
                )
            finally:
                os.close(writing_end)
            resources.callback(_end, child)
            self._resources = resources.pop_all()
            self._num_clips = 0
        try:
            self._receive(time.monotonic() + _START_S)
        except (EOFError, TimeoutError):
            cause = self._cause_of_death(_exit_code(child))
            raise DecoderStartError(f"the decoder process does not start: it {cause}") from None
        return child

    def _receive(self, deadline: float) -> tuple[dict[str, Any], bytearray]:
        header_length, pixels_length = _LENGTHS.unpack(self._read(_LENGTHS.size, deadline))
        return json.loads(self._read(header_length, deadline)), self._read(pixels_length, deadline)

    def _read(self, num_bytes: int, deadline: float) -> bytearray:
        buffer = bytearray(num_bytes)
        missing = memoryview(buffer)
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        while missing:
            if not poll.poll(max(0, math.ceil(1000 * (deadline - time.monotonic())))):
                raise TimeoutError
            num_read = os.readv(self._answers, [missing])
            if num_read == 0:
                raise EOFError
            missing = missing[num_read:]
        return buffer

    def _cause_of_death(self, code: int | None) -> str:
        """Describes how the child ended, with its last line of output; kills it if it still runs."""
        self._errors.seek(0)
        last_words = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        self.close()
        if code is None:
            return "hangs"
        if code < 0:
            return ": ".join([f"died with signal {signal.Signals(-code).name}", *last_words])[:200]
        return f"ended with exit code {code}: {' '.join(last_words)[:200]}"


def _exit_code(child: "subprocess.Popen[bytes]") -> int | None:
    """Returns the exit code of a child that has closed its pipe; None if it has not ended 10 s later."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(timeout=10)
    return child.returncode


def _end(child: "subprocess.Popen[bytes]") -> None:
    child.kill()
    child.wait()
    with contextlib.suppress(BrokenPipeError):  # closing flushes a request that was never read
        assert child.stdin is not None
        child.stdin.close()


def serve(send: Callable[[dict[str, Any], memoryview], None], timeout_s: float, memory_bytes: int) -> None:
    """Runs in the child: answers the requests on standard input until it is closed.

    Args:
        send: sends the header and the pixels of an answer.
        timeout_s: time limit per clip; after twice this time the process ends itself.
        memory_bytes: memory limit of decoding, enforced on Linux only.
    """
    # Before the first request, so that a broken installation is not blamed on a clip.
    import av
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    av.logging.set_level(None)
    _limit_memory(memory_bytes)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C also reaches this process; the parent decides
    nothing = memoryview(b"")
    send({}, nothing)
    for request in sys.stdin:
        # If native code hangs after the parent died, only a signal ends this process.
        signal.alarm(math.ceil(2 * timeout_s) + 1)
        try:
            arguments = json.loads(request)
            arguments["target"] = Resizing(**arguments["target"])
            clip = read_clip(**arguments, announce=lambda reader: send({"reader": reader}, nothing))
        except ClipError as error:
            send({"status": error.status, "reason": error.reason, "video_s": error.video_s}, nothing)
        except MemoryError:
            send({"status": "corrupt", "reason": f"takes more than {memory_bytes // 2**20} MiB to decode"}, nothing)
        else:
            header = {name: getattr(clip, name) for name in _CLIP_HEADER}
            send({**header, "shape": clip.frames.shape}, memoryview(clip.frames).cast("B"))
        signal.alarm(0)


def _limit_memory(memory_bytes: int) -> None:
    statm = Path("/proc/self/statm")
    if statm.exists():  # only Linux reports the memory in use
        limit = int(statm.read_text().split()[0]) * resource.getpagesize() + memory_bytes
        _, hard_limit = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(
            resource.RLIMIT_AS, (limit if hard_limit == resource.RLIM_INFINITY else min(limit, hard_limit), hard_limit)
        )


def main() -> None:
    """Runs `python -m waver.data.video.decoder FILE_DESCRIPTOR TIMEOUT_S MEMORY_BYTES`, which `Decoder` starts."""
    with os.fdopen(int(sys.argv[1]), "wb", buffering=0) as answers:

        def send(header: dict[str, Any], pixels: memoryview) -> None:
            text = json.dumps(header).encode()
            for part in (memoryview(_LENGTHS.pack(len(text), len(pixels)) + text), pixels):
                while part:
                    part = part[answers.write(part) :]

        with contextlib.suppress(BrokenPipeError):  # the parent has ended
            serve(send, float(sys.argv[2]), int(sys.argv[3]))


if __name__ == "__main__":
    main()
