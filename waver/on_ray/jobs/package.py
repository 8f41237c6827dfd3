"""Checks the size of the folder that Ray uploads for a job, and finds what takes most of it."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from waver.tools.errors import WaverError

_NUM_LISTED = 5
_DOMINANT_FRACTION = 0.9
"""Fraction of a folder above which its largest entry is listed in place of the folder."""
_MIB = 2**20


class PackageError(WaverError):
    """The folder is too large to be uploaded."""


def package_size(files: Mapping[str, int]) -> int:
    """Returns the bytes of the zip archive in which Ray uploads files, without compression.

    Args:
        files: path within the folder -> bytes.
    """
    # Per file a local header (30 bytes) and a directory entry (46 bytes), each with the name; 22 bytes at the end.
    return 22 + sum(size + 76 + 2 * len(name.encode()) for name, size in files.items())


def largest_entries(files: Mapping[str, int], count: int = _NUM_LISTED) -> list[tuple[str, int, int]]:
    """Returns the largest entries of a folder, the largest first.

    If one entry takes most of a subfolder, it is listed in place of the subfolder, so that the path says what to exclude.

    Args:
        files: path within the folder -> bytes.
        count: maximum number of entries.

    Returns:
        (path, bytes, number of files) of each entry; paths of folders end in `/`.
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
        size = sum(below[path])
        while dominant := [child for child in children[path] if sum(below[child]) > _DOMINANT_FRACTION * size]:
            path = dominant[0]
            size = sum(below[path])
        found.append((f"{path}/" if children[path] else str(path), size, len(below[path])))
    return sorted(found, key=lambda entry: (-entry[1], entry[0]))[:count]


def check_package(folder: Path, files: Mapping[str, int], limit: int) -> None:
    """Checks that a folder is small enough to be uploaded.

    Args:
        folder: the folder.
        files: files that would be uploaded: path within the folder -> bytes.
        limit: smallest size in bytes that Ray refuses.

    Raises:
        PackageError: if it is too large; the message lists the largest entries and says how to exclude them.
    """
    size = package_size(files)
    if size < limit:
        return
    entries = largest_entries(files)
    lines = [
        f"  {entry_size / _MIB:8.1f} MiB  {path}" + (f"  ({num_files} files)" if path.endswith("/") else "")
        for path, entry_size, num_files in entries
    ]
    raise PackageError(
        f"{folder} is too large for a job: {size / _MIB:.1f} MiB would be uploaded, and Ray accepts less than "
        f"{limit / _MIB:g} MiB. The largest entries:\n"
        + "\n".join(lines)
        # Without the leading slash, `data/` would exclude waver/data as well.
        + f"\nExclude what the job does not read, with --exclude '/{entries[0][0]}' or a line in .rayignore or .gitignore. "
        "Put videos and stores into a folder that every node can read"
    )
