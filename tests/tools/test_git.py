import subprocess

from waver.tools.git import run_git


def test_run_git_returns_output_only_in_a_repository(tmp_path):
    assert run_git(tmp_path, "rev-parse", "HEAD") is None
    subprocess.run(["git", "init", "--quiet", "-b", "trunk"], cwd=tmp_path, check=True)
    assert run_git(tmp_path, "symbolic-ref", "--short", "HEAD") == "trunk"


def test_run_git_without_git_returns_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_git(tmp_path, "--version") is None
