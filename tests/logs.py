"""Collects what waver logs while a test runs."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Collector(logging.Handler):
    def __init__(self, receive: Callable[[str], object]):
        super().__init__(logging.INFO)
        self._receive = receive

    def emit(self, record: logging.LogRecord) -> None:
        self._receive(record.getMessage())


@contextmanager
def logged(receive: Callable[[str], object] | None = None) -> Iterator[list[str]]:
    """Collects the messages that waver logs while the body runs.

    Args:
        receive: also called with each message, by the thread that logs it.

    Yields:
        The messages so far, a list that grows.
    """
    messages: list[str] = []

    def note(message: str) -> None:
        messages.append(message)
        if receive:
            receive(message)

    logger, collector = logging.getLogger("waver"), _Collector(note)
    level = logger.level
    logger.addHandler(collector)
    logger.setLevel(logging.INFO)
    try:
        yield messages
    finally:
        logger.removeHandler(collector)
        logger.setLevel(level)
