import time

import pytest

from waver.tools.network import call_within


def test_a_call_returns_raises_or_is_given_up():
    assert call_within(5.0, divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        call_within(5.0, divmod, 7, 0)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer in 0\.1 s"):
        call_within(0.1, time.sleep, 3)
    assert time.monotonic() - start < 2
