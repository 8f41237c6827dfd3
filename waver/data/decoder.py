"""Decodes in a child process, so that a crash or a hang of native code costs one clip and nothing else.

The child (`python -m waver.data.decoder`) reads requests from its standard input, a JSON line each, and answers on a pipe of
its own, since native libraries print where they like. It ends when its parent does.
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
from pathlib import Path
from typing import Any

import numpy as np

from waver.data.video import Clip, ClipError, read_clip
from waver.tools.errors import WaverError

_START_S = 120.0
"""Time for the child to import its libraries, which may lie on a slow network disk."""
_CLIPS_PER_CHILD = 1000
"""decord loses about 40 kB a clip; a new child now and then keeps that from adding up."""
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM)
"""No fault in the child ends it with these: somebody else did (memory ran out, a cluster was shut down)."""
MEMORY_BYTES = 4 * 2**30
"""Of the child, beyond what its libraries take, bytes: a small file can hold frames of gigabytes. Twelve frames of 8K, the
largest that cameras make, take a third of it."""
_LENGTHS = struct.Struct("!IQ")
"""What an answer begins with: bytes of the JSON header, bytes of pixels."""


class DecoderStartError(WaverError):
    """The process that decodes clips does not start; the message holds its last words."""


class _KilledError(Exception):
    """The child was ended by somebody else."""


class Decoder:
    """Reads clips in a child process, which is started when it is needed and again after its death.

    A context manager; not for several threads at once.

    Args:
        timeout_s: a clip that takes longer is given up.
        memory_bytes: a clip that takes more is given up.
    """

    def __init__(self, timeout_s: float, memory_bytes: int = MEMORY_BYTES):
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._child: subprocess.Popen[bytes] | None = None
        self._resources = contextlib.ExitStack()  # of the child: its pipes, its error output, itself

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def read_clip(self, path: Path | str, **arguments: Any) -> Clip:
        """`waver.data.video.read_clip`, with the same arguments.

        Raises:
            ClipError: as there, or because time ran out (timeout) or the child died (corrupt). A child that was killed from
                outside says nothing of the clip: it is tried once more, then given up for now (killed).
            RuntimeError: if the child cannot be started, which no other clip will change.
        """
        cause: _KilledError | None = None
        for _ in range(2):
            try:
                return self._read_clip(path, arguments)
            except _KilledError as killed:
                cause = killed
        raise ClipError("killed", f"the decoder process {cause}, twice")

    def _read_clip(self, path: Path | str, arguments: dict[str, Any]) -> Clip:
        child = self._child
        if child is None or child.poll() is not None or self._num_clips >= _CLIPS_PER_CHILD:
            child = self._start()
        self._num_clips += 1
        request = json.dumps({"path": str(path), **arguments}) + "\n"
        deadline = time.monotonic() + self._timeout_s
        try:
            assert child.stdin is not None
            child.stdin.write(request.encode())
            child.stdin.flush()
            header, pixels = self._receive(deadline)
        except TimeoutError:
            self.close()
            raise ClipError("timeout", f"not decoded after {self._timeout_s:g} s") from None
        except (EOFError, BrokenPipeError):
            code = _exit_code(child)
            cause = self._cause_of_death(code)
            if code is not None and -code in _FROM_OUTSIDE:
                raise _KilledError(cause) from None
            raise ClipError("corrupt", f"the decoder process {cause}") from None
        if "status" in header:
            raise ClipError(**header)
        shape = header.pop("shape")
        return Clip(np.frombuffer(pixels, np.uint8).reshape(shape), tuple(header.pop("times_s")), **header)

    def close(self) -> None:
        """Ends the child; the next clip would start another."""
        self._resources.close()
        self._child = None

    def _start(self) -> "subprocess.Popen[bytes]":
        self.close()
        with contextlib.ExitStack() as resources:
            self._answers, writing_end = os.pipe()
            resources.callback(os.close, self._answers)
            self._errors = resources.enter_context(tempfile.TemporaryFile())
            # The child must find this very package, wherever the parent has it from.
            search_path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")]
            try:
                child = self._child = subprocess.Popen(
                    [
                        sys.executable,
                        "-m",
                        "waver.data.decoder",
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
        """Ends the child, if it lives, and says how it ended by itself."""
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
    with contextlib.suppress(BrokenPipeError):  # closing sends what is left of a request that was never read
        assert child.stdin is not None
        child.stdin.close()


def serve(send: Callable[[dict[str, Any], memoryview], None], timeout_s: float, memory_bytes: int) -> None:
    """The child: answers the requests on standard input until there are no more.

    Args:
        send: takes the header and the pixels of an answer.
        timeout_s: after twice this time on one clip the process ends itself.
        memory_bytes: that decoding may take; Linux sees to it.
    """
    # At the start, so that a broken installation shows at once and no clip pays for it.
    import av
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    av.logging.set_level(None)
    _limit_memory(memory_bytes)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the parent decides
    nothing = memoryview(b"")
    send({}, nothing)
    for request in sys.stdin:
        # The parent may have died, and native code may hang: then only a signal ends this process.
        signal.alarm(math.ceil(2 * timeout_s) + 1)
        try:
            clip = read_clip(**json.loads(request))
        except ClipError as error:
            send({"status": error.status, "reason": error.reason}, nothing)
        except MemoryError:
            send({"status": "corrupt", "reason": f"takes more than {memory_bytes // 2**20} MiB to decode"}, nothing)
        else:
            header = {name: getattr(clip, name) for name in ("times_s", "source_fps", "height", "width", "decoder")}
            send({**header, "shape": clip.frames.shape}, memoryview(clip.frames).cast("B"))
        signal.alarm(0)


def _limit_memory(memory_bytes: int) -> None:
    statm = Path("/proc/self/statm")
    if statm.exists():  # else nobody says what is taken already
        limit = int(statm.read_text().split()[0]) * resource.getpagesize() + memory_bytes
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))


def main() -> None:
    """`python -m waver.data.decoder FILE_DESCRIPTOR TIMEOUT_S MEMORY_BYTES`; only `Decoder` calls it."""
    with os.fdopen(int(sys.argv[1]), "wb", buffering=0) as answers:

        def send(header: dict[str, Any], pixels: memoryview) -> None:
            text = json.dumps(header).encode()
            for part in (memoryview(_LENGTHS.pack(len(text), len(pixels)) + text), pixels):
                while part:
                    part = part[answers.write(part) :]

        with contextlib.suppress(BrokenPipeError):  # the parent is gone, and with it the reason to be here
            serve(send, float(sys.argv[2]), int(sys.argv[3]))


if __name__ == "__main__":
    main()
