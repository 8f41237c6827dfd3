"""Commands that reach a training run from outside, between two steps."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Command = Literal["continue", "save", "rescale", "stop"]
"""What a run does after a step. continue: nothing. save: it writes a checkpoint. rescale: it writes one and ends, to start
again with more workers. stop: it writes one and ends, until the user runs the same command again."""


@dataclass(frozen=True)
class Interrupted:
    """Outcome of a run that a command has ended before the end of its last epoch, after writing a checkpoint."""

    command: Literal["rescale", "stop"]
    step: int
    """Optimizer steps taken."""


NextCommand = Callable[[], Command]
"""Returns the command to follow now, the same on all workers. All workers must call it equally often."""


def stop_after(event: threading.Event) -> NextCommand:
    """Returns a `NextCommand` that stops a run of one worker after the first step that ends after an event is set.

    Args:
        event: for example that of `waver.tools.termination.sigterm_event`.
    """
    return lambda: "stop" if event.is_set() else "continue"
