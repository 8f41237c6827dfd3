"""Uploads the growing files of a run to an object store from time to time."""

import contextlib
import shutil
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from waver.tools.object_store import ObjectStoreError, remote_of, upload

INTERVAL_S = 30.0


class Uploader:
    """Uploads the files that this process writes into a folder. For a folder that is not in an object store it does nothing.

    The files are written to a temporary folder, not to the local copy of the object store, because another process that
    downloads into the local copy would overwrite what was written since the last upload.

    Args:
        folder: destination of the files.

    Attributes:
        local_folder: folder to write the files to: a temporary one, or `folder` if that is not in an object store.
    """

    def __init__(self, folder: Path):
        self._folder, self._is_remote = folder, remote_of(folder) is not None
        self.local_folder = Path(tempfile.mkdtemp(prefix="waver-run-")) if self._is_remote else folder
        self._uploaded: dict[Path, tuple[int, int]] = {}
        self._thread = ThreadPoolExecutor(1, "waver-uploader")
        self._upload: Future[None] | None = None
        self._last_s = time.monotonic()

    def is_due(self) -> bool:
        """Returns whether an upload should start: the last one has ended and started more than `INTERVAL_S` ago."""
        done = self._upload is None or self._upload.done()
        return self._is_remote and done and time.monotonic() - self._last_s > INTERVAL_S

    def upload(self, *, wait: bool) -> None:
        """Uploads all files that have changed since they were last uploaded.

        Args:
            wait: whether to return only after the upload; otherwise it continues in a thread.

        Raises:
            OSError: if this upload or the one before failed; the next call tries again.
        """
        if not self._is_remote:
            return
        previous, current = self._upload, self._thread.submit(self._upload_changed)
        self._upload, self._last_s = current, time.monotonic()
        try:
            if previous:
                previous.result()
        finally:
            if wait:
                self._upload = None
                current.result()

    def close(self) -> None:
        """Uploads the last changes, and deletes the temporary folder unless that fails.

        Raises:
            OSError: if the upload failed; names the folder that still has the files.
        """
        try:
            with contextlib.suppress(OSError):  # the error of an earlier upload; this one tries again
                self.upload(wait=False)
            if self._upload:
                self._upload.result()
        except OSError as error:
            raise ObjectStoreError(f"{error}. The files are kept in {self.local_folder}") from error
        finally:
            self._thread.shutdown()
        if self._is_remote:
            shutil.rmtree(self.local_folder)

    def _upload_changed(self) -> None:
        for path in sorted(self.local_folder.rglob("*")):
            if not path.is_file() or path.suffix == ".part" or self._uploaded.get(path) == _state(path):
                continue
            size = path.stat().st_size
            upload(self._folder / path.relative_to(self.local_folder), path)
            if path.stat().st_size == size:  # otherwise it has grown during the upload
                self._uploaded[path] = _state(path)


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
