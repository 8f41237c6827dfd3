import subprocess

from waver.tools.git import run_git


def test_git_answers_in_a_clone_and_not_elsewhere(tmp_path):
    assert run_git(tmp_path, "rev-parse", "HEAD") is None
    subprocess.run(["git", "init", "--quiet", "-b", "trunk"], cwd=tmp_path, check=True)
    assert run_git(tmp_path, "symbolic-ref", "--short", "HEAD") == "trunk"


def test_without_git_there_is_no_answer(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_git(tmp_path, "--version") is None
