"""What a folder weighs when Ray uploads it for a job, and what in it weighs most."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from waver.tools.errors import WaverError

_SHOWN = 5
_MOST = 0.9
_MIB = 2**20


class PackageError(WaverError):
    """The folder cannot be uploaded as it is."""


def package_size(files: Mapping[str, int]) -> int:
    """Bytes of the archive that Ray makes of some files: it stores them as they are, without compressing.

    Args:
        files: path within the folder -> bytes.
    """
    # A local header of 30 bytes and an entry of 46 in the directory, each with the name; 22 bytes end the archive.
    return 22 + sum(size + 76 + 2 * len(name.encode()) for name, size in files.items())


def heaviest(files: Mapping[str, int], count: int = _SHOWN) -> list[tuple[str, int, int]]:
    """The entries of a folder that weigh most, heaviest first: (path, bytes, number of files).

    A folder is opened as long as one thing in it weighs nearly all of it, so that the path says what to leave out. Paths
    of folders end in `/`.

    Args:
        files: path within the folder -> bytes.
        count: entries, at most.
    """
    below: dict[PurePosixPath, list[int]] = defaultdict(list)
    children: dict[PurePosixPath, set[PurePosixPath]] = defaultdict(set)
    for name, size in files.items():
        path = PurePosixPath(name)
        below[path].append(size)
        while path != PurePosixPath("."):
            children[path.parent].add(path)
            below[path.parent].append(size)
            path = path.parent
    found = []
    for path in children[PurePosixPath(".")]:
        weight = sum(below[path])
        while heavy := [child for child in children[path] if sum(below[child]) > _MOST * weight]:
            path = heavy[0]
            weight = sum(below[path])
        found.append((f"{path}/" if children[path] else str(path), weight, len(below[path])))
    return sorted(found, key=lambda entry: (-entry[1], entry[0]))[:count]


def check_package(folder: Path, files: Mapping[str, int], limit: int) -> None:
    """Checks that a folder is small enough to be uploaded.

    Args:
        folder: the folder.
        files: those that would be uploaded: path within the folder -> bytes.
        limit: bytes that Ray refuses, with all that is above.

    Raises:
        PackageError: naming what weighs most, and how to leave it out.
    """
    size = package_size(files)
    if size < limit:
        return
    entries = heaviest(files)
    lines = [
        f"  {weight / _MIB:8.1f} MiB  {path}" + (f"  ({number} files)" if path.endswith("/") else "")
        for path, weight, number in entries
    ]
    raise PackageError(
        f"{folder} is too large for a job: {size / _MIB:.1f} MiB would be uploaded, Ray takes less than "
        f"{limit / _MIB:g} MiB. Most of it:\n"
        + "\n".join(lines)
        # Without the slash in front, `data/` would leave out waver/data as well.
        + f"\nLeave out what the job does not read, with --exclude '/{entries[0][0]}' or a line in .rayignore (written as "
        "in .gitignore, which counts too); videos and stores belong into a folder that every node sees"
    )
