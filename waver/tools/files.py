"""Files that are never seen half-written, by whoever looks and after whatever ends this process.

Those of an object store are read as they are there now, and sent as soon as they are written (see
`waver.tools.object_store`).
"""

import contextlib
import io
import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from waver.tools.object_store import fetch, upload


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[io.BufferedWriter]:
    """A file that appears under its name, and in its object store, only when it is complete; its folder is made.

    It is not forced to the disk, which would stop the writer for as long. If the power fails, what is missing is the end of
    the file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with part.open("xb") as file:  # never through a link that somebody put there
            yield file
        upload(path, part)
        part.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report
            part.unlink()
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text file, in UTF-8."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path, content: Any) -> None:
    """Writes a value as JSON, as people read it."""
    write_text(path, json.dumps(content, indent=2))


def read_text(path: Path) -> str:
    """Reads a text file, in UTF-8."""
    return fetch(path).read_text(encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads a JSON file."""
    return json.loads(read_text(path))
