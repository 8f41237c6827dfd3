"""Archives that torch writes (`.pt`), looked through before torch opens them.

`torch.load(weights_only=True)` runs nothing. OpenAI's own files are TorchScript, which only `torch.jit.load` reads, and that
runs the method `__setstate__` of classes in the file; among what TorchScript can do is writing to any path.
"""

import io
import re
import zipfile
from pathlib import Path

from waver.tools.errors import WaverError

_RATIO, _SMALL = 10, 64 * 2**20
"""What is unpacked may be that many times the file, or that many bytes. torch packs code, never tensors."""
_RUNS = re.compile(rb"__setstate__|torch\.classes")


class ArchiveError(WaverError):
    """The archive is not what it seems."""


def is_torchscript(path: Path) -> bool:
    """Whether this is an archive like OpenAI's own ViT-B-32.pt: TorchScript keeps code beside the tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def check_size(path: Path) -> None:
    """Refuses an archive that would unpack to much more than itself; other files are none of its business.

    Raises:
        ArchiveError: with both sizes.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _check_size(archive, path)


def without_actions(path: Path) -> io.BytesIO:
    """A TorchScript archive again, for `torch.jit.load`, if nothing in it runs while it is loaded.

    It is written anew, because torch reads the directory of a zip file with code of its own: what it sees must be what was
    looked at.

    Raises:
        ArchiveError: where something would run; or see `check_size`.
    """
    written = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as copy:
        _check_size(archive, path)
        for name in dict.fromkeys(archive.namelist()):
            if name.endswith(".debug_pkl"):  # where its authors' code stood
                continue
            content = archive.read(name)
            if name.endswith((".py", ".pkl")) and (found := _RUNS.search(content)):
                raise ArchiveError(
                    f"{name} in it has {found[0].decode()}, which would run while it is loaded: take weights from somebody "
                    "whom you trust, or have them as .safetensors"
                )
            copy.writestr(name, content)
    written.seek(0)
    return written


def _check_size(archive: zipfile.ZipFile, path: Path) -> None:
    packed, unpacked = path.stat().st_size, sum(entry.file_size for entry in archive.infolist())
    if unpacked > max(_RATIO * packed, _SMALL):
        raise ArchiveError(f"its {packed} bytes would unpack to {unpacked}; torch does not pack tensors")
