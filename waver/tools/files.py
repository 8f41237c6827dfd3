"""Reads and writes whole files: a reader never sees a file half-written, whatever interrupts the writer.

In a folder of an object store (see `waver.tools.object_store`) a read fetches the current version, and a write uploads.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from waver.tools.errors import WaverError
from waver.tools.object_store import ObjectStoreError, display_path, fetch, upload


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[io.BufferedWriter]:
    """Opens a temporary file that is renamed to `path`, and uploaded, when the body ends without error.

    The parent folder is created. The file is not synced to disk, which would block the writer: after a power failure its end
    may be missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("xb") as file:  # "x": never writes through a link that is there already
            yield file
        upload(path, part)
        part.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report
            part.unlink()
        raise


def can_write(folder: Path) -> bool:
    """Returns whether files can be created in an existing folder; creates a temporary one.

    Permissions alone do not tell: the file system may be read-only or full, and root may do what others may not.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def link_or_copy(source: Path, target: Path) -> None:
    """Gives a file a second name, a hard link; copies it where the file system refuses links.

    Neither of the two may be changed in place: that would change both.

    Args:
        source: the file.
        target: the second name; replaced if it exists.
    """
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # no links here, or another file system; other causes stop the copy as well
        shutil.copy2(source, target)  # with its time, by which local copies of an object store are known


def write_text(path: Path, text: str) -> None:
    """Writes a UTF-8 text file."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any) -> None:
    """Writes a value as an indented JSON file."""
    write_text(path, json.dumps(content, indent=2))


def read_text(path: Path) -> str:
    """Reads a UTF-8 text file."""
    return fetch(path).read_text(encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads a JSON file."""
    return json.loads(read_text(path))


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            digest.update(block)
    return digest.hexdigest()


def read_manifest(folder: Path, *, what: str, command: str, error: type[WaverError]) -> dict[str, Any]:
    """Reads manifest.json of a folder that a stage made.

    Args:
        folder: the folder.
        what: what the folder holds, for error messages.
        command: the command that makes it, for error messages.
        error: type of the error to raise.

    Raises:
        WaverError: of type `error`, if the manifest is missing or damaged.
        ObjectStoreError: if the object store cannot be read.
    """
    path = folder / "manifest.json"
    try:
        return read_json(path)
    except FileNotFoundError:
        raise error(f"there is no {what} in {display_path(folder)}: run `{command}` first") from None
    except ObjectStoreError:
        raise
    except (OSError, ValueError) as cause:
        raise error(
            f"{display_path(path)} cannot be read ({cause}): delete the folder and run `{command}` again"
        ) from None
