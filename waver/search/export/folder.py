"""Replaces the folder of an export as a whole: it is written under another name and then renamed."""

import contextlib
import dataclasses
import logging
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import waver
from waver.search.export.formats import Format
from waver.tools.errors import WaverError
from waver.tools.files import read_json, write_json
from waver.tools.names import abbreviate

logger = logging.getLogger(__name__)

MANIFEST = "export.json"
_ROOM = 1.02
"""Free disk space that an export needs, relative to the size of its embeddings."""


class ExportError(WaverError):
    """The embeddings cannot be exported."""


@dataclass(frozen=True)
class Source:
    """What was exported, and how. A command may replace an export of the same source."""

    path: str
    """Absolute path of the run, the checkpoint or the index that was named."""
    split: str | None
    """None for an index."""
    format: Format


def check_folder(folder: Path, source: Source) -> None:
    """Checks that a folder is free for an export, or holds an earlier one of the same source.

    Raises:
        ExportError: if it holds something else.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ExportError(f"{folder} is a file: choose a folder (--to FOLDER)")
    if not any(folder.iterdir()):
        return
    try:
        manifest = read_json(folder / MANIFEST)
        there, files = manifest["source"], {MANIFEST, *manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise ExportError(
            f"{folder} is not empty, and not an export by waver: choose another folder (--to FOLDER)"
        ) from None
    asked = dataclasses.asdict(source)
    different = [name for name in asked if there.get(name) != asked[name]]
    if different:
        said = "; ".join(f"{name}: {there.get(name)} there, {asked[name]} requested" for name in different)
        raise ExportError(
            f"{folder} holds another export ({said}): choose another folder (--to FOLDER), or delete this one"
        )
    if foreign := sorted(path.name for path in folder.iterdir() if path.name not in files):
        raise ExportError(
            f"{folder} holds an export and other files, which would be deleted ({abbreviate(foreign)}): move them, or "
            "choose another folder (--to FOLDER)"
        )


def check_space(folder: Path, num_bytes: int) -> None:
    """Logs the size of an export before it is written.

    Raises:
        ExportError: if the disk has too little space.
    """
    logger.info(f"writing {num_bytes / 2**20:,.1f} MiB of embeddings into {folder}")
    there = next(parent for parent in folder.absolute().parents if parent.exists())
    free = shutil.disk_usage(there).free
    if free < _ROOM * num_bytes:
        raise ExportError(
            f"the export needs {_ROOM * num_bytes / 2**20:,.0f} MiB, and the disk of {folder} has {free / 2**20:,.0f} MiB: "
            "choose a folder on another disk (--to FOLDER)"
        )


@contextlib.contextmanager
def replace_folder(folder: Path, source: Source, content: dict[str, Any]) -> Iterator[Path]:
    """Yields a new folder, which replaces `folder` and all that is in it when the body ends without an error.

    Args:
        folder: an earlier export, an empty folder, or a path where nothing is; see `check_folder`.
        source: what is exported.
        content: further entries of export.json, which is written last; the body may add more.
    """
    folder = folder.absolute()
    part, former = (folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}.{end}") for end in ("part", "former"))
    part.mkdir(parents=True)
    try:
        yield part
        files = sorted(path.name for path in part.iterdir())
        said = {"waver": waver.__version__, "source": dataclasses.asdict(source), "files": files}
        write_json(part / MANIFEST, said | content)
        check_folder(folder, source)  # again: somebody may have written there meanwhile
        if folder.exists():
            folder.rename(former)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(former, ignore_errors=True)
