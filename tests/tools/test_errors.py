import pytest
import torch

from waver.config import parse_overrides
from waver.tools.errors import raised_by_waver


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        (parse_overrides, (["nonsense"],), True),
        (torch.distributed.get_backend, (), False),
    ],
)
def test_who_raised_it(function, arguments, expected):
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        function(*arguments)
    assert raised_by_waver(raised.value) is expected
