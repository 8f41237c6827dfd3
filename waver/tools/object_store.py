"""Reads and writes folders of an object store (S3-compatible, Google Cloud Storage, Azure) through local copies.

Each node keeps a copy of `s3://bucket/prefix` in `<cache>/waver-objects/s3/bucket/prefix`. Readers call `fetch` before they
read a file, writers call `upload` after they wrote it. The path alone shows that a file belongs to an object store, so
processes and nodes exchange plain paths; for other paths these functions do nothing, or act on the local file.

The object store is authoritative: its local copy can be deleted at any time. Credentials, and the endpoint of a self-hosted
store (AWS_ENDPOINT_URL), come from the environment of each node.
"""

import functools
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
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
_SMALL_FILE_BYTES = 2**20
"""Bytes. Smaller files are always fetched again: object times are whole seconds and may hide a change."""
_CHUNK_BYTES = 8 * 2**20
_NUM_THREADS = 16
_RETRY_TIME_S = 30


class UrlError(WaverError, ValueError):
    """A URL names no folder of a supported object store. Also a ValueError, so that pydantic validators can raise it."""


class ObjectStoreError(WaverError, OSError):
    """An object store refuses a request or does not answer."""


def is_url(place: str) -> bool:
    """Returns whether a string is a URL rather than a path."""
    return "://" in place


def check_url(url: str) -> str:
    """Checks the URL of a folder in an object store and returns it without trailing slash.

    Raises:
        UrlError: if the store is not supported, or the URL has no bucket, or it contains credentials or options.
    """
    scheme, _, rest = url.partition("://")
    bucket, *parts = rest.rstrip("/").split("/")
    if scheme not in _SCHEMES:
        known = ", ".join(f"{name}://" for name in _SCHEMES)
        raise UrlError(f"unsupported object store {scheme}://; write a URL that begins with {known}, or a folder")
    # In Azure URLs the container is before the @ of the account; a password would follow a colon.
    if "?" in rest or ":" in bucket or ("@" in bucket and not scheme.startswith("abfs")):
        raise UrlError(
            "a URL is stored and displayed, so it must not contain credentials or options: set them in the environment of "
            "every node (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL; GOOGLE_APPLICATION_CREDENTIALS; "
            "AZURE_CLIENT_ID, ...), or give the nodes a role"
        )
    if not bucket or any(part in ("", ".", "..") for part in parts):
        raise UrlError(f"not a folder of an object store; write {scheme}://bucket/folder")
    return f"{scheme}://{'/'.join((bucket, *parts))}"


def hide_secrets(text: str) -> str:
    """Masks the credentials and query strings of URLs in a text."""
    return re.sub(r"(://[^?]*)\?[^\s'\"]*", r"\1?...", re.sub(r"://.*@", "://...@", text))


def local_copy(url: str, cache: Path | None = None) -> Path:
    """Returns the path of the local copy of a URL.

    Args:
        url: a URL returned by `check_url`.
        cache: folder of all copies; by default the user's cache folder.
    """
    cache = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    scheme, _, rest = url.partition("://")
    return cache.absolute() / _COPIES / scheme / rest


def remote_of(path: Path) -> str | None:
    """Returns the URL whose local copy a path is, or None for other paths."""
    if _COPIES not in path.parts:
        return None
    scheme, *rest = path.parts[path.parts.index(_COPIES) + 1 :]
    return f"{scheme}://{'/'.join(rest)}"


def display_path(path: Path) -> str:
    """Returns the path to show to users: the URL of a local copy, or the path itself."""
    return remote_of(path) or str(path)


def fetch(path: Path) -> Path:
    """Updates the local copy of a file (deletes it if the store has no such file) and returns its path."""
    if url := remote_of(path):
        with _readable_errors(url):
            store, key = _open(url)
            info = store.get_file_info(key)
            if info.type != fs.FileType.File:
                path.unlink(missing_ok=True)
            elif info.size <= _SMALL_FILE_BYTES or not _is_current(path, info):
                _download(store, info, path)
    return path


def fetch_once(path: Path) -> Path:
    """Fetches a file that never changes, unless its local copy exists; returns its path."""
    return path if path.exists() else fetch(path)


def fetch_folder(path: Path, pattern: str = "*") -> list[Path]:
    """Fetches the changed files of a folder and its subfolders; for a folder elsewhere only lists its files.

    Local copies that the store lacks are kept, since they may be about to be uploaded, but are not returned.

    Args:
        path: the folder.
        pattern: wildcard pattern of the paths in the folder; `*` also matches slashes.

    Returns:
        The paths of the files, sorted.
    """
    if not (url := remote_of(path)):
        found = (file for file in path.rglob("*") if fnmatch(file.relative_to(path).as_posix(), pattern))
        return sorted(file for file in found if file.is_file())
    with _readable_errors(url):
        store, key = _open(url)
        listed = store.get_file_info(fs.FileSelector(key, allow_not_found=True, recursive=True))
        files = {path / info.path[len(key) + 1 :]: info for info in listed if info.type == fs.FileType.File}
        files = {file: info for file, info in files.items() if fnmatch(file.relative_to(path).as_posix(), pattern)}
        with ThreadPoolExecutor(_NUM_THREADS) as pool:
            list(pool.map(lambda file: _is_current(file, files[file]) or _download(store, files[file], file), files))
    return sorted(files)


def upload(path: Path, source: Path | None = None) -> None:
    """Uploads a file; it becomes visible in the store when it is complete.

    Args:
        path: the file.
        source: file to upload in its place, such as a temporary file that will be renamed to `path`.
    """
    if url := remote_of(path):
        source = source or path
        with _readable_errors(url):
            store, key = _open(url)
            _copy(str(source), key, fs.LocalFileSystem(), store)
            modified = store.get_file_info(key).mtime_ns
            os.utime(source, ns=(modified, modified))


def upload_folder(path: Path, *, last: str, copies: Mapping[str, Path] | None = None) -> None:
    """Uploads the files of a folder.

    Args:
        path: the folder.
        last: name of the file that is uploaded at the end: for readers it marks the folder as complete.
        copies: name in the folder -> file in the same store with the same content, which the store copies itself, if it
            can.
    """
    if remote_of(path):
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        for file in sorted(files, key=lambda file: file.name == last):
            source = (copies or {}).get(file.relative_to(path).as_posix())
            if source is None or not _copy_within_store(source, file):
                upload(file)


def _copy_within_store(source: Path, path: Path) -> bool:
    """Lets an object store copy a file to the place of a local one, without an upload; returns whether it did.

    It does not if the local file is no current copy of the source, or if the store refuses: S3 copies up to 5 GB in one
    request, and a permission may be missing.
    """
    (store, key), (_, source_key) = (_open(str(remote_of(place))) for place in (path, source))
    try:
        if not _is_current(path, store.get_file_info(source_key)):
            return False
        store.copy_file(source_key, key)
        modified = store.get_file_info(key).mtime_ns
    except (OSError, pa.ArrowException):
        return False
    os.utime(path, ns=(modified, modified))
    return True


def list_names(folder: Path, pattern: str = "*") -> list[str]:
    """Returns the sorted names of the files and folders in a folder; none if it does not exist."""
    if not (url := remote_of(folder)):
        return sorted(path.name for path in folder.glob(pattern))
    with _readable_errors(url):
        store, key = _open(url)
        listed = store.get_file_info(fs.FileSelector(key, allow_not_found=True))
    return sorted(info.base_name for info in listed if fnmatch(info.base_name, pattern))


def exists(path: Path) -> bool:
    """Returns whether a file or folder exists."""
    if not (url := remote_of(path)):
        return path.exists()
    with _readable_errors(url):
        store, key = _open(url)
        return store.get_file_info(key).type != fs.FileType.NotFound


def remove(path: Path) -> None:
    """Removes a file, or a folder with its content, if it exists."""
    if url := remote_of(path):
        with _readable_errors(url), suppress(FileNotFoundError):
            store, key = _open(url)
            is_file = store.get_file_info(key).type == fs.FileType.File
            store.delete_file(key) if is_file else store.delete_dir(key)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_bucket(path: Path) -> None:
    """Raises ObjectStoreError with the reason if the store does not answer, has no such bucket or denies access."""
    if url := remote_of(path):
        with _readable_errors(url), suppress(FileNotFoundError):
            store, key = _open(url)
            store.get_file_info(fs.FileSelector(key))  # of all requests only a listing is answered with a reason


def _open(url: str) -> tuple[fs.FileSystem, str]:
    """Returns the file system of a URL and the path in it."""
    scheme, _, rest = url.partition("://")
    bucket, _, inside = rest.partition("/")
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    store, root = _store(scheme, bucket, endpoint)
    return store, f"{root}/{inside}" if inside else root


@functools.lru_cache
def _store(scheme: str, bucket: str, endpoint: str | None) -> tuple[fs.FileSystem, str]:
    """Returns the file system of a bucket, cached with its connections, and the path of the bucket in it."""
    if scheme == "s3":
        # By default Arrow retries five times as often, which takes minutes if the store does not answer.
        limits = {"retry_strategy": fs.AwsStandardS3RetryStrategy(3), "connect_timeout": 5, "request_timeout": 10}
        region = None if endpoint else fs.resolve_s3_region(bucket)
        return fs.S3FileSystem(endpoint_override=endpoint, region=region, **limits), bucket
    if scheme == "gs":
        return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=_RETRY_TIME_S)), bucket
    store, container = fs.FileSystem.from_uri(f"{scheme}://{bucket}/")
    return store, container.rstrip("/")


def _is_current(path: Path, info: fs.FileInfo) -> bool:
    """Returns whether the local copy has the size and time of the object."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    # Some stores report fractions of a second only in listings.
    return status.st_size == info.size and int(status.st_mtime) == info.mtime_ns // 10**9


def _download(store: fs.FileSystem, info: fs.FileInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        _copy(info.path, str(part), store, fs.LocalFileSystem())
        os.utime(part, ns=(info.mtime_ns, info.mtime_ns))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _copy(source: str, target: str, from_store: fs.FileSystem, to_store: fs.FileSystem) -> None:
    fs.copy_files(
        source, target, source_filesystem=from_store, destination_filesystem=to_store, chunk_size=_CHUNK_BYTES
    )


_CAUSES = {
    r"NO_SUCH_BUCKET|Bucket '' not found|ContainerNotFound|bucket does not exist": (
        "there is no such bucket: create it, or correct storage.path"
    ),
    r"NETWORK_CONNECTION|UNAVAILABLE|DEADLINE_EXCEEDED|resolve host|curlCode": (
        "the store does not answer: check the network and, for a self-hosted store, its endpoint (AWS_ENDPOINT_URL)"
    ),
    r"INVALID_ACCESS_KEY|INVALID_CLIENT_TOKEN|SIGNATURE|UNAUTHENTICATED|EXPIRED|InvalidAuthentication|redential": (
        "the credentials are missing or not accepted: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or those of "
        "another kind of store) on every node, or give the nodes a role"
    ),
    r"ACCESS_DENIED|PERMISSION_DENIED|Authorization|HTTP status 403": (
        "access is denied: check the credentials of this machine, which need permission to list, read, write and delete"
    ),
}
"""Pattern in the error message of a store -> cause and remedy."""


@contextmanager
def _readable_errors(url: str) -> Iterator[None]:
    """Turns errors of an object store into an ObjectStoreError of one sentence; errors of the disk pass unchanged."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if getattr(error, "errno", None):
            raise
        message = " ".join(str(error).split())
        without_names = re.sub("'[^']*'", "''", message)  # file names may contain any text
        meaning = next((meaning for cause, meaning in _CAUSES.items() if re.search(cause, without_names)), message)
        raise ObjectStoreError(f"{url}: {meaning}") from error
