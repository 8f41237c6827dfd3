"""Finding the file of the baseline; what it computes is tested in tests/test_benchmarks.py."""

import sys

import pytest

from waver.benchmarks.conventional import BaselineError, load_conventional


def test_the_baseline_of_a_clone_is_found(repository, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(repository)
    module, why_not = load_conventional(None)
    assert (module.BLOCK, why_not) == (32, "")


def test_elsewhere_the_reason_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module, why_not = load_conventional(None)
    assert module is None
    assert "--against" in why_not


@pytest.mark.parametrize(
    ("text", "expected"),
    [(None, "no such file"), ("import nothing_of_the_kind", "nothing_of_the_kind"), ("x = 1", "is not the baseline")],
)
def test_a_file_that_is_not_the_baseline_is_an_error(tmp_path, monkeypatch, text, expected):
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "other_file", raising=False)
    path = tmp_path / "other_file.py"
    if text:
        path.write_text(text)
    with pytest.raises(BaselineError, match=expected):
        load_conventional(path)
