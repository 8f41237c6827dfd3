"""Waits for the network, but never without limit."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


def call_within(limit_s: float, function: Callable[..., Result], *arguments: Any) -> Result:
    """Calls a function, such as the resolution of a host name, that has no time limit of its own.

    Args:
        limit_s: seconds.
        function: called in a thread, which keeps running after the limit but does not keep the process alive.
        arguments: of the function.

    Raises:
        TimeoutError: if the function takes longer.
    """
    outcome: list[Callable[[], Result]] = []

    def call() -> None:
        try:
            result = function(*arguments)
        except BaseException as error:
            outcome.append(_raiser(error))
        else:
            outcome.append(lambda: result)

    thread = threading.Thread(target=call, name="waver-network", daemon=True)
    thread.start()
    thread.join(limit_s)
    if not outcome:
        raise TimeoutError(f"no answer in {limit_s:g} s")
    return outcome[0]()


def _raiser(error: BaseException) -> Callable[[], Any]:
    def raise_it() -> Any:
        raise error

    return raise_it
