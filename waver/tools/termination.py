"""Ending a process in an orderly way at SIGTERM, the signal by which schedulers announce that a machine is taken away."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a process that ended because of SIGTERM."""


class Terminated(SystemExit):
    """Ends this process in an orderly way because of SIGTERM; the message says what is saved and how to continue."""

    def __init__(self, message: str):
        super().__init__(TERMINATED)
        self.message = message


@contextmanager
def sigterm_event() -> Iterator[threading.Event]:
    """Catches SIGTERM during the body, which would otherwise end this process.

    Some libraries install handlers of their own, `ray.init` among them: enter this context after such calls. Python handles
    signals in the main thread only: in another thread, the event is never set.

    Yields:
        An event that SIGTERM sets. The handler does nothing else, since it may interrupt any code.
    """
    requested = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    before = signal.signal(signal.SIGTERM, lambda *_: requested.set())
    try:
        yield requested
    finally:
        signal.signal(signal.SIGTERM, before)
