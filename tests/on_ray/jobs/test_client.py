"""Which files of a job are uploaded. Jobs on a cluster are tested in tests/cluster/test_jobs.py."""

import logging
import socket

import pytest
from ray._private.runtime_env.packaging import create_package

from waver.on_ray.jobs import PackageError, Submission, SubmissionError, client, package_size
from waver.on_ray.jobs.client import JobError, send_job, uploaded_files
from waver.on_ray.jobs.submission import EXCLUDES


@pytest.fixture
def folder(tmp_path):
    """A folder with files that are uploaded, and files that are excluded."""
    root = tmp_path / "project"
    for name in (
        "experiments/a.yaml",
        "storage/clips/x.parquet",
        "notes.txt",
        "drafts/b.yaml",
        "sub/c.log",
        ".git/HEAD",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x" * 1000)
    (root / ".gitignore").write_text("notes.txt\n")
    (root / "sub" / ".rayignore").write_text("*.log\n")
    return root


def submission(folder, **fields):
    defaults = {"needs": (), "excludes": ("/storage",), "environment": {}, "metadata": {}, "runs": None}
    return Submission(entrypoint="true", working_dir=folder, **defaults | fields)


def test_package_size_is_that_of_the_archive_that_ray_makes(folder, tmp_path):
    files = uploaded_files(folder, ("/storage", "/drafts"))
    assert set(files) == {"experiments/a.yaml", ".gitignore", "sub/.rayignore"}
    excludes = ["/storage", "/drafts", ".git"]
    create_package(
        str(folder), tmp_path / "all.zip", True, excludes=excludes, logger=logging.getLogger("quiet in this test")
    )
    assert package_size(files) == (tmp_path / "all.zip").stat().st_size


def test_missing_files_and_large_packages_are_errors_before_anything_is_sent(folder):
    unused = "http://127.0.0.1:9"  # nothing listens here: the checks come before the first request
    with pytest.raises(
        SubmissionError, match=r"notes\.txt would not be uploaded, but the job needs it: .* \.gitignore, \.rayignore"
    ):
        send_job(submission(folder, needs=("experiments/a.yaml", "notes.txt")), unused)
    with (folder / "weights.bin").open("wb") as file:
        file.truncate(100 * 2**20)
    with pytest.raises(PackageError, match=r"(?s)100\.0 MiB would be uploaded.*100\.0 MiB  weights\.bin") as refused:
        send_job(submission(folder), unused)
    assert "--exclude '/weights.bin'" in str(refused.value)


def test_an_address_that_does_not_answer_is_an_error(folder):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(JobError, match=f"nothing answers at {closed} .*Check that the cluster is up"):
        send_job(submission(folder), closed)


def test_a_server_that_is_silent_is_given_up(folder, monkeypatch):
    monkeypatch.setattr(client, "_CONNECT_S", 0.3)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(JobError, match=rf"what listens at {address} says nothing within 0\.3 s"):
            send_job(submission(folder), address)


def test_an_anchored_pattern_keeps_files_that_an_unanchored_one_excludes(tmp_path):
    for path in ("data/videos/a.mp4", "waver/data/batch.py"):
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).touch()
    assert set(uploaded_files(tmp_path, ("/data/",))) == {"waver/data/batch.py"}
    assert set(uploaded_files(tmp_path, ("data/",))) == set()


def test_no_default_pattern_excludes_a_file_of_waver(repository):
    uploaded = set(uploaded_files(repository, EXCLUDES))
    package = {path.relative_to(repository).as_posix() for path in (repository / "waver").rglob("*.py")}
    assert package <= uploaded
    assert "waver/quickstart/phrases/phrases.parquet" in uploaded
