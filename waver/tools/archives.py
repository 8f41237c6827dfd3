"""Checks archives of torch (`.pt`) before torch loads them.

`torch.load(weights_only=True)` runs no code of the file. OpenAI's own files are TorchScript, which only `torch.jit.load`
reads, and which may run the methods `__setstate__` of classes in the file; TorchScript can write to any path.
"""

import io
import re
import zipfile
from pathlib import Path

from waver.tools.errors import WaverError

_MAX_RATIO, _MAX_BYTES = 10, 64 * 2**20
"""The unpacked size may be so many times that of the file, or so many bytes. torch compresses code, never tensors."""
_CODE_RUN_ON_LOADING = re.compile(rb"__setstate__|torch\.classes")


class ArchiveError(WaverError):
    """The archive may be malicious: it runs code on loading, or unpacks to an excessive size."""


def is_torchscript(path: Path) -> bool:
    """Returns whether a file is a TorchScript archive, such as OpenAI's own ViT-B-32.pt."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def check_size(path: Path) -> None:
    """Checks that an archive does not unpack to an excessive size; ignores files that are no zip archives.

    Raises:
        ArchiveError: if it does, with both sizes.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_size(archive, path)


def checked_copy(path: Path) -> io.BytesIO:
    """Copies a TorchScript archive for `torch.jit.load`, after checking that loading it runs no code of the file.

    A copy, because torch has its own zip reader, which may read the directory of the original file differently from
    `zipfile`, which checked it.

    Raises:
        ArchiveError: if loading would run code, or if the archive unpacks to an excessive size.
    """
    written = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as copy:
        _check_size(archive, path)
        for name in dict.fromkeys(archive.namelist()):
            if name.endswith(".debug_pkl"):  # source locations, which loading does not need
                continue
            content = archive.read(name)
            if name.endswith((".py", ".pkl")) and (found := _CODE_RUN_ON_LOADING.search(content)):
                raise ArchiveError(
                    f"{name} in it has {found[0].decode()}, which would run while it is loaded: take weights from a source "
                    "that you trust, or as .safetensors"
                )
            copy.writestr(name, content)
    written.seek(0)
    return written


def _check_size(archive: zipfile.ZipFile, path: Path) -> None:
    packed, unpacked = path.stat().st_size, sum(entry.file_size for entry in archive.infolist())
    if unpacked > max(_MAX_RATIO * packed, _MAX_BYTES):
        raise ArchiveError(f"its {packed} bytes would unpack to {unpacked}; torch does not compress tensors")
