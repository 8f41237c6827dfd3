"""Local copies of an object store: a real S3 server on loopback."""

import os
import pickle
import shutil
import time
import urllib.request
import uuid
from pathlib import Path

import boto3
import pytest

from waver.tools import object_store as objects
from waver.tools.files import read_json, read_text, write_json, write_text
from waver.tools.object_store import (
    ObjectStoreError,
    check_bucket,
    check_url,
    display_path,
    exists,
    fetch,
    fetch_folder,
    fetch_once,
    hide_secrets,
    list_names,
    local_copy,
    remote_of,
    remove,
    upload,
    upload_folder,
)


@pytest.fixture
def copy(s3, tmp_path) -> Path:
    """The local copy on this machine."""
    return local_copy(s3, tmp_path / "copy")


@pytest.fixture
def other_copy(s3, tmp_path) -> Path:
    """The local copy on another machine."""
    return local_copy(s3, tmp_path / "other_copy")


# ---- names


@pytest.mark.parametrize(
    ("url", "normalised"),
    [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/a/b/", "s3://bucket/a/b"),
        ("gs://bucket/a", "gs://bucket/a"),
        ("abfs://box@account.dfs.core.windows.net/a", "abfs://box@account.dfs.core.windows.net/a"),
    ],
)
def test_local_copy_knows_its_url(url, normalised, tmp_path):
    folder = local_copy(check_url(url), tmp_path)
    assert folder.is_relative_to(tmp_path)
    assert remote_of(folder) == display_path(folder) == normalised
    assert remote_of(pickle.loads(pickle.dumps(folder / "x.json"))) == f"{normalised}/x.json"


def test_other_paths_have_no_url(tmp_path):
    assert remote_of(tmp_path) is None
    assert display_path(tmp_path) == str(tmp_path)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://host/x", "s3://, gs://, abfs://"),
        ("s3://key:secret@bucket/x", "credentials .* environment"),
        ("s3://key:sec/ret@bucket/x", "credentials .* environment"),
        ("s3://bucket/x?secret=1", "credentials .* environment"),
        ("abfs://box:secret@account/x", "credentials .* environment"),
        ("s3://", "s3://bucket/folder"),
        ("s3://bucket//x", "s3://bucket/folder"),
        ("s3://bucket/../x", "s3://bucket/folder"),
    ],
)
def test_invalid_urls_are_errors(url, message):
    with pytest.raises(ValueError, match=message):
        check_url(url)


def test_secrets_in_urls_are_hidden():
    assert hide_secrets("'s3://key:sec/r?t@bucket/x'") == "'s3://...@bucket/x'"
    assert hide_secrets("'s3://bucket/x?token=secret'") == "'s3://bucket/x?...'"
    assert hide_secrets("'which one? s3://bucket'") == "'which one? s3://bucket'"


# ---- files


def test_uploaded_file_is_fetched(copy, other_copy):
    write_json(copy / "a" / "x.json", {"n": 1})
    assert read_json(other_copy / "a" / "x.json") == {"n": 1}
    write_json(other_copy / "a" / "x.json", {"n": 2})  # of the same size, perhaps in the same second
    assert read_json(copy / "a" / "x.json") == {"n": 2}


def test_file_deleted_from_the_store_is_deleted_from_the_copy(copy, other_copy):
    write_text(copy / "x", "1")
    fetch(other_copy / "x")
    remove(other_copy / "x")
    assert not exists(copy / "x")
    assert not fetch(copy / "x").exists()
    with pytest.raises(FileNotFoundError):
        read_text(copy / "x")


def test_unchanged_large_file_is_not_fetched_again(copy, other_copy, monkeypatch):
    copy.mkdir(parents=True)
    (copy / "large").write_bytes(bytes(2 * 2**20))
    upload(copy / "large")
    assert fetch(other_copy / "large").stat().st_size == 2 * 2**20
    monkeypatch.setattr(objects, "_download", lambda *arguments: pytest.fail("the copy is current"))
    fetch(other_copy / "large")
    fetch(copy / "large")
    fetch_folder(other_copy)


def test_fetch_once_makes_one_request(copy, other_copy, monkeypatch):
    write_text(copy / "block", "1")
    fetch_once(other_copy / "block")
    monkeypatch.setattr(objects, "_open", lambda url: pytest.fail("no request is needed"))
    assert fetch_once(other_copy / "block").read_text() == "1"


@pytest.mark.slow
def test_file_whose_upload_failed_is_absent(copy, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ObjectStoreError):
        write_text(copy / "x", "1")
    assert not list(copy.iterdir())


# ---- folders


def test_uploaded_folder_is_fetched(copy, other_copy):
    for name in ("b", "config.yaml", "z/deep"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text(name)
    upload_folder(copy, last="config.yaml")
    assert list_names(other_copy) == list_names(copy) == ["b", "config.yaml", "z"]
    assert list_names(other_copy, "*.yaml") == ["config.yaml"]
    fetch_folder(other_copy)
    assert (other_copy / "z" / "deep").read_text() == "z/deep"
    assert sorted(path.name for path in other_copy.rglob("*")) == ["b", "config.yaml", "deep", "z"]


def test_last_file_of_a_folder_is_uploaded_last(copy, monkeypatch):
    sent = []
    monkeypatch.setattr(objects, "upload", lambda path: sent.append(path.name))
    copy.mkdir(parents=True)
    for name in ("a", "config.yaml", "z"):
        (copy / name).touch()
    upload_folder(copy, last="config.yaml")
    assert sent == ["a", "z", "config.yaml"]


def test_fetch_folder_updates_the_copy(copy, other_copy):
    for name in ("run/events/a", "run/events/b", "run/model"):
        write_text(copy / name, "1")
    fetch_folder(other_copy, "*events*")
    (other_copy / "run/checkpoint").mkdir()
    (other_copy / "run/checkpoint/events").touch()  # another process is about to upload it
    remove(copy / "run/events/a")
    write_text(copy / "run/events/b", "12")
    assert fetch_folder(other_copy, "*events*") == [other_copy / "run/events/b"]
    assert (other_copy / "run/events/b").read_text() == "12"
    assert (other_copy / "run/checkpoint/events").exists()
    assert not (other_copy / "run/model").exists()


def test_remove_deletes_a_folder(copy, other_copy):
    for name in ("kept/a", "run/a", "run/b/c"):
        write_text(copy / name, "1")
    fetch_folder(other_copy)
    remove(other_copy / "run")
    assert list_names(copy) == ["kept"]
    assert not (other_copy / "run").exists()
    remove(other_copy / "run")  # a missing folder is no error


def test_missing_folder_is_empty(copy):
    assert list_names(copy) == []
    assert not exists(copy)
    assert fetch_folder(copy) == []


# ---- local folders


def test_local_paths_need_no_store(tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "_open", lambda url: pytest.fail("a local path has no store"))
    write_text(tmp_path / "a" / "x", "1")
    assert fetch(tmp_path / "a" / "x") == fetch_once(tmp_path / "a" / "x") == tmp_path / "a" / "x"
    assert fetch_folder(tmp_path, "*/x") == [tmp_path / "a" / "x"]
    assert fetch_folder(tmp_path, "b*") == []
    assert list_names(tmp_path) == ["a"]
    assert exists(tmp_path / "a")
    assert not exists(tmp_path / "b")
    upload(tmp_path / "a" / "x")
    upload_folder(tmp_path, last="x")
    check_bucket(tmp_path)
    remove(tmp_path / "a")
    remove(tmp_path / "a")
    assert list_names(tmp_path) == []


# ---- errors


def test_missing_bucket_is_an_error(copy, tmp_path):
    nowhere = local_copy("s3://nowhere/x", tmp_path)
    with pytest.raises(ObjectStoreError, match=r"s3://nowhere/x/y: there is no such bucket: create it"):
        write_text(nowhere / "y", "1")
    with pytest.raises(ObjectStoreError, match="there is no such bucket"):
        check_bucket(nowhere)
    check_bucket(copy)


@pytest.mark.slow
def test_unreachable_store_is_an_error(copy, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    start = time.monotonic()
    for ask in (fetch, list_names, exists, remove, fetch_folder, check_bucket):
        with pytest.raises(ObjectStoreError, match=r"s3://waver/.*: the store does not answer: .*AWS_ENDPOINT_URL"):
            ask(copy)
    assert time.monotonic() - start < 60


@pytest.fixture
def user_without_rights(s3, s3_server, monkeypatch):
    """The key of a user without rights, on a server that checks credentials."""
    iam = boto3.client("iam", endpoint_url=s3_server)
    user = iam.create_user(UserName=uuid.uuid4().hex)["User"]
    key = iam.create_access_key(UserName=user["UserName"])["AccessKey"]
    _check_requests(s3_server, after="0")
    objects._store.cache_clear()  # a process opens a store once
    yield key
    _check_requests(s3_server, after="inf")
    objects._store.cache_clear()


def _check_requests(server: str, *, after: str) -> None:
    url, content = f"{server}/moto-api/reset-auth", {"Content-Type": "text/plain"}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(urllib.request.Request(url, after.encode(), content, method="POST")).close()


@pytest.mark.parametrize(
    ("key", "secret", "message"),
    [
        ("an-unknown-key", "wrong-secret", "credentials are missing or not accepted: set AWS_ACCESS_KEY_ID"),
        (None, "wrong-secret", "credentials are missing or not accepted: set AWS_ACCESS_KEY_ID"),
        (None, None, "access is denied: check the credentials .* list, read, write"),
    ],
    ids=["unknown key", "wrong secret", "no rights"],
)
def test_wrong_credentials_are_an_error(copy, user_without_rights, monkeypatch, key, secret, message):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key or user_without_rights["AccessKeyId"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret or user_without_rights["SecretAccessKey"])
    with pytest.raises(ObjectStoreError, match=message) as raised:
        check_bucket(copy)
    with pytest.raises(ObjectStoreError, match=message):
        write_text(copy / "x", "1")
    with pytest.raises(ObjectStoreError, match="credentials"):
        fetch(copy / "x")
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in f"{raised.value} {raised.value.__cause__}"


@pytest.mark.slow
def test_missing_credentials_are_an_error(copy, user_without_rights, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")  # whatever machine the tests run on
    with pytest.raises(ObjectStoreError, match="credentials"):
        check_bucket(copy)


def test_full_disk_is_not_reported_as_an_error_of_the_store(copy, other_copy, monkeypatch):
    write_text(copy / "x", "1")

    def full(*arguments):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(objects, "_copy", full)
    with pytest.raises(OSError, match="No space left") as raised:
        fetch(other_copy / "x")
    assert not isinstance(raised.value, ObjectStoreError)
    assert not [path for path in other_copy.rglob("*") if path.is_file()]


# ---- copies within the store


@pytest.fixture
def uploads(monkeypatch) -> list[str]:
    """The names of the files that are sent to a store or from it, in order."""
    names, real = [], objects._copy

    def copy_file(source: str, *arguments) -> None:
        names.append(Path(source).name)
        real(source, *arguments)

    monkeypatch.setattr(objects, "_copy", copy_file)
    return names


def test_the_store_copies_what_it_has_already(copy, other_copy, uploads):
    write_folder(copy / "first", shared="content", own="1", last="end")
    upload_folder(copy / "first", last="last")
    write_folder(copy / "second", own="2", last="end")
    os.link(copy / "first" / "shared", copy / "second" / "shared")
    uploads.clear()
    upload_folder(copy / "second", last="last", copies={"shared": copy / "first" / "shared"})
    assert uploads == ["own", "last"]
    uploads.clear()
    fetch(copy / "second" / "shared")
    assert read_text(other_copy / "second" / "shared") == "content"
    assert read_text(other_copy / "second" / "own") == "2"


def test_a_file_is_uploaded_if_it_is_no_copy_of_the_source_or_the_source_is_gone(copy, other_copy, uploads):
    write_folder(copy / "first", changed="old", gone="here")
    upload_folder(copy / "first", last="")
    write_folder(copy / "second", changed="now", gone="here")
    os.utime(copy / "second" / "changed", (0, 0))
    shutil.copystat(copy / "first" / "gone", copy / "second" / "gone")
    remove(other_copy / "first" / "gone")
    uploads.clear()
    upload_folder(copy / "second", last="", copies={name: copy / "first" / name for name in ("changed", "gone")})
    assert uploads == ["changed", "gone"]
    assert read_text(other_copy / "second" / "changed") == "now"
    assert read_text(other_copy / "second" / "gone") == "here"


def write_folder(folder: Path, **contents: str) -> None:
    """Writes files of a folder, without uploading them."""
    folder.mkdir(parents=True)
    for name, content in contents.items():
        (folder / name).write_text(content)
