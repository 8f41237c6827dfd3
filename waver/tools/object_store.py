"""Folders of an object store (S3 and its like, Google Cloud Storage, Azure), worked on through local copies.

Everything else in waver reads and writes files. A folder of an object store is such a folder too: on each node
`s3://bucket/prefix` has its copy in `<cache>/waver-objects/s3/bucket/prefix`, which is filled by whoever reads (`fetch`) and
sent by whoever writes (`send`). Whether a path belongs to a store can be seen from the path alone, so paths travel between
processes and nodes as they are, and to a path elsewhere these functions do nothing.

The store is the truth. A copy holds nothing that the store has not, and may be deleted at any time. Who is allowed to read
and write, and where a store of one's own answers (AWS_ENDPOINT_URL), says the environment of each node.
"""

import functools
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import timedelta
from fnmatch import fnmatch
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from waver.tools.errors import WaverError

_COPIES = "waver-objects"
_SCHEMES = ("s3", "gs", "abfs", "abfss")
_SMALL = 2**20
"""Bytes. What is not larger is brought again rather than compared: times of objects are whole seconds."""
_CHUNK = 8 * 2**20
_AT_ONCE = 16
_PATIENCE_S = 30


class UrlError(WaverError, ValueError):
    """A URL that names no folder of a known object store.

    It is a ValueError too, so that a validator of the configuration may raise it.
    """


class ObjectStoreError(WaverError, OSError):
    """The store cannot do what is asked; the message says what to do."""


def is_url(place: str) -> bool:
    """Whether a place is named by a URL, rather than by a path."""
    return "://" in place


def check_url(url: str) -> str:
    """A URL of a folder in an object store, without a slash at its end.

    Raises:
        UrlError: where it is none, or holds what belongs into the environment.
    """
    scheme, _, rest = url.partition("://")
    bucket, *parts = rest.rstrip("/").split("/")
    if scheme not in _SCHEMES:
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        raise UrlError(f"no object store that is known by {scheme}://; it can be {known}, or a folder")
    # An Azure container stands before the @ of its account, a password behind a colon.
    if "?" in rest or ":" in bucket or ("@" in bucket and not scheme.startswith("abfs")):
        raise UrlError(
            "a URL is kept and shown, so it must hold no credentials and no options; they belong into the environment of "
            "every node (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL; GOOGLE_APPLICATION_CREDENTIALS; "
            "AZURE_CLIENT_ID, ...), or nodes have a role"
        )
    if not bucket or any(part in ("", ".", "..") for part in parts):
        raise UrlError(f"is no folder of an object store; write it as {scheme}://bucket/folder")
    return f"{scheme}://{'/'.join((bucket, *parts))}"


def hide_secrets(text: str) -> str:
    """A text without what a URL in it should not hold."""
    return re.sub(r"(://[^?]*)\?[^\s'\"]*", r"\1?...", re.sub(r"://.*@", "://...@", text))


def local_copy(url: str, cache: Path | None = None) -> Path:
    """Where the local copy of a URL is.

    Args:
        url: as `check_url` returns it.
        cache: folder of all copies; by default that of the user.
    """
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    scheme, _, rest = url.partition("://")
    return cache.absolute() / _COPIES / scheme / rest


def remote_of(path: Path) -> str | None:
    """The URL of which a path is the local copy; None for other paths."""
    if _COPIES not in path.parts:
        return None
    scheme, *rest = path.parts[path.parts.index(_COPIES) + 1 :]
    return f"{scheme}://{'/'.join(rest)}"


def display_path(path: Path) -> str:
    """A path as people know it."""
    return remote_of(path) or str(path)


def fetch(path: Path) -> Path:
    """Makes the copy of a file what the store has now, which may be no file; returns the path."""
    if url := remote_of(path):
        with _in_words(url):
            store, key = _open(url)
            info = store.get_file_info(key)
            if info.type != fs.FileType.File:
                path.unlink(missing_ok=True)
            elif info.size <= _SMALL or not _is_copy(path, info):
                _bring(store, info, path)
    return path


def fetch_once(path: Path) -> Path:
    """The same for a file that never changes under its name: where it is here, nothing is asked."""
    return path if path.exists() else fetch(path)


def fetch_folder(path: Path, pattern: str = "*") -> list[Path]:
    """Brings the files of a folder, and of those in it, that have changed; the same paths elsewhere are only listed.

    A copy that the store has no more stays, for it may be on its way there: what is returned is what counts.

    Args:
        path: of the folder.
        pattern: that their paths in the folder fit; `*` stands for slashes too.

    Returns:
        The paths of the files, sorted.
    """
    if not (url := remote_of(path)):
        found = (file for file in path.rglob("*") if fnmatch(file.relative_to(path).as_posix(), pattern))
        return sorted(file for file in found if file.is_file())
    with _in_words(url):
        store, key = _open(url)
        listed = store.get_file_info(fs.FileSelector(key, allow_not_found=True, recursive=True))
        files = {path / info.path[len(key) + 1 :]: info for info in listed if info.type == fs.FileType.File}
        files = {file: info for file, info in files.items() if fnmatch(file.relative_to(path).as_posix(), pattern)}
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(lambda file: _is_copy(file, files[file]) or _bring(store, files[file], file), files))
    return sorted(files)


def upload(path: Path, source: Path | None = None) -> None:
    """Sends a file to the store. It appears there when it is all there.

    Args:
        path: of the file.
        source: where it lies, if not there.
    """
    if url := remote_of(path):
        source = source or path
        with _in_words(url):
            store, key = _open(url)
            _copy(str(source), key, fs.LocalFileSystem(), store)
            modified = store.get_file_info(key).mtime_ns
            os.utime(source, ns=(modified, modified))


def upload_folder(path: Path, *, last: str) -> None:
    """Sends the files of a folder; the one named `last` comes last, and says to readers that all are there."""
    if remote_of(path):
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        for file in sorted(files, key=lambda file: file.name == last):
            upload(file)


def list_names(folder: Path, pattern: str = "*") -> list[str]:
    """Names of files and folders in a folder, sorted; none where it is not there."""
    if not (url := remote_of(folder)):
        return sorted(path.name for path in folder.glob(pattern))
    with _in_words(url):
        store, key = _open(url)
        listed = store.get_file_info(fs.FileSelector(key, allow_not_found=True))
    return sorted(info.base_name for info in listed if fnmatch(info.base_name, pattern))


def exists(path: Path) -> bool:
    """Whether there is a file or a folder."""
    if not (url := remote_of(path)):
        return path.exists()
    with _in_words(url):
        store, key = _open(url)
        return store.get_file_info(key).type != fs.FileType.NotFound


def remove(path: Path) -> None:
    """Removes a file, or a folder with all that is in it; nothing where it is not there."""
    if url := remote_of(path):
        with _in_words(url), suppress(FileNotFoundError):
            store, key = _open(url)
            is_file = store.get_file_info(key).type == fs.FileType.File
            store.delete_file(key) if is_file else store.delete_dir(key)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_bucket(path: Path) -> None:
    """Raises ObjectStoreError where the store of a path does not answer, has no such bucket, or refuses; with the reason."""
    if url := remote_of(path):
        with _in_words(url), suppress(FileNotFoundError):
            store, key = _open(url)
            store.get_file_info(fs.FileSelector(key))  # of all questions the one that is answered with a reason


def _open(url: str) -> tuple[fs.FileSystem, str]:
    """The store of a URL, and what it calls the file."""
    scheme, _, rest = url.partition("://")
    bucket, _, inside = rest.partition("/")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    store, root = _store(scheme, bucket, endpoint)
    return store, f"{root}/{inside}" if inside else root


@functools.lru_cache
def _store(scheme: str, bucket: str, endpoint: str | None) -> tuple[fs.FileSystem, str]:
    """A store, which keeps its connections; and what it calls the bucket."""
    if scheme == "s3":
        # Arrow by itself asks five times as often, which with a store that is silent takes minutes.
        patience = {"retry_strategy": fs.AwsStandardS3RetryStrategy(3), "connect_timeout": 5, "request_timeout": 10}
        region = None if endpoint else fs.resolve_s3_region(bucket)
        return fs.S3FileSystem(endpoint_override=endpoint, region=region, **patience), bucket
    if scheme == "gs":
        return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=_PATIENCE_S)), bucket
    store, container = fs.FileSystem.from_uri(f"{scheme}://{bucket}/")
    return store, container.rstrip("/")


def _is_copy(path: Path, info: fs.FileInfo) -> bool:
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    # Some stores tell fractions of a second in lists only.
    return status.st_size == info.size and int(status.st_mtime) == info.mtime_ns // 10**9


def _bring(store: fs.FileSystem, info: fs.FileInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        _copy(info.path, str(part), store, fs.LocalFileSystem())
        os.utime(part, ns=(info.mtime_ns, info.mtime_ns))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _copy(source: str, target: str, from_store: fs.FileSystem, to_store: fs.FileSystem) -> None:
    fs.copy_files(source, target, source_filesystem=from_store, destination_filesystem=to_store, chunk_size=_CHUNK)


_CAUSES = {
    r"NO_SUCH_BUCKET|Bucket '' not found|ContainerNotFound|bucket does not exist": (
        "there is no such bucket: make it, or correct storage.path"
    ),
    r"NETWORK_CONNECTION|UNAVAILABLE|DEADLINE_EXCEEDED|resolve host|curlCode": (
        "nobody answers: is the endpoint right (AWS_ENDPOINT_URL, for a store of your own), and can this machine reach it?"
    ),
    r"INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|SIGNATURE|UNAUTHENTICATED|EXPIRED|InvalidAuthentication|redential": (
        "the credentials are missing or not accepted: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or what else the "
        "store wants) on every node, or give the nodes a role"
    ),
    r"ACCESS_DENIED|PERMISSION_DENIED|Authorization|HTTP status 403": (
        "access is denied: are the credentials of this machine right, and may they list, read, write and delete there?"
    ),
}
"""What stores say -> what it means."""


@contextmanager
def _in_words(url: str) -> Iterator[None]:
    """Errors of a store, which fill lines, in a sentence; those of the disk stay as they are."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if getattr(error, "errno", None):
            raise
        said = " ".join(str(error).split())
        own_words = re.sub("'[^']*'", "''", said)  # names of files may contain any
        meaning = next((meaning for cause, meaning in _CAUSES.items() if re.search(cause, own_words)), said)
        raise ObjectStoreError(f"{url}: {meaning}") from error
