"""Files of a run that grow: they are written on the machine's own disk and, to an object store, sent now and then."""

import contextlib
import shutil
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from waver.tools.object_store import ObjectStoreError, remote_of, upload

EVERY_S = 30.0


class Outbox:
    """The files of a folder that this process writes.

    The folder of an object store has them elsewhere on this machine: its local copy is for what is in the store already, and
    whoever brings that anew would undo what was written since.

    Attributes:
        here: folder to write them to.

    Args:
        folder: where they belong.
    """

    def __init__(self, folder: Path):
        self._folder, self._is_remote = folder, remote_of(folder) is not None
        self.here = Path(tempfile.mkdtemp(prefix="waver-run-")) if self._is_remote else folder
        self._sent: dict[Path, tuple[int, int]] = {}
        self._sender = ThreadPoolExecutor(1, "waver-outbox")
        self._sending: Future | None = None
        self._since = time.monotonic()

    def is_due(self) -> bool:
        """Whether it is time to send again: some seconds after it was done last."""
        done = self._sending is None or self._sending.done()
        return self._is_remote and done and time.monotonic() - self._since > EVERY_S

    def send(self, *, wait: bool) -> None:
        """Sends what has changed since it was sent last.

        Args:
            wait: until it is there; otherwise it is sent while other things go on.

        Raises:
            OSError: it could not be sent, now or before; it will be tried again with the next call.
        """
        if not self._is_remote:
            return
        before, self._sending = self._sending, self._sender.submit(self._send_changed)
        self._since = time.monotonic()
        try:
            if before:
                before.result()
        finally:
            if wait:
                self._sending, last = None, self._sending
                last.result()

    def close(self) -> None:
        """Nothing is written after this, and what was has been sent; what could not be is kept.

        Raises:
            OSError: says where it is kept.
        """
        try:
            with contextlib.suppress(OSError):  # what failed before is tried again
                self.send(wait=False)
            if self._sending:
                self._sending.result()
        except OSError as error:
            raise ObjectStoreError(f"{error}. It is kept in {self.here}") from error
        finally:
            self._sender.shutdown()
        if self._is_remote:
            shutil.rmtree(self.here)

    def _send_changed(self) -> None:
        for path in sorted(self.here.rglob("*")):
            if not path.is_file() or path.suffix == ".part" or self._sent.get(path) == _state(path):
                continue
            size = path.stat().st_size
            upload(self._folder / path.relative_to(self.here), path)
            if path.stat().st_size == size:  # else it has grown meanwhile
                self._sent[path] = _state(path)


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
