import os

import pytest

from waver.tools.environment import environment_variables


def test_variables_are_set_and_unset_in_the_body_and_restored_after_an_error(monkeypatch):
    monkeypatch.setenv("WAVER_TEST_SET", "before")
    monkeypatch.setenv("WAVER_TEST_UNSET", "before")
    monkeypatch.delenv("WAVER_TEST_NEW", raising=False)
    values = {"WAVER_TEST_SET": "in the body", "WAVER_TEST_UNSET": None, "WAVER_TEST_NEW": "in the body"}

    def fail() -> None:
        with environment_variables(values):
            assert {name: os.environ.get(name) for name in values} == values
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert {name: os.environ.get(name) for name in values} == {
        "WAVER_TEST_SET": "before",
        "WAVER_TEST_UNSET": "before",
        "WAVER_TEST_NEW": None,
    }
