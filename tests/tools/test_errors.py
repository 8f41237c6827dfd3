import errno

import pytest

from waver.config import parse_overrides
from waver.tools.errors import WaverError, bug_report, user_message


def test_the_message_of_a_waver_error_is_for_the_user():
    with pytest.raises(WaverError) as raised:
        parse_overrides(["nonsense"])
    assert user_message(raised.value).startswith("--set nonsense: write it as section.key=value")


@pytest.mark.parametrize("bug", [lambda: [].index(2), lambda: int("x"), lambda: list(zip([1], [], strict=True))])
def test_a_value_error_of_python_is_a_bug(bug):
    with pytest.raises(ValueError) as raised:  # noqa: PT011  the messages are those of Python
        bug()
    assert user_message(raised.value) is None


def test_a_refusal_of_the_system_is_for_the_user_and_any_other_system_error_is_a_bug():
    assert "No space left" in user_message(OSError(errno.ENOSPC, "No space left on device"))
    assert user_message(OSError(errno.EBADF, "Bad file descriptor")) is None


def test_the_report_of_a_bug_names_versions():
    assert bug_report().startswith("This is a bug in waver (waver ")
