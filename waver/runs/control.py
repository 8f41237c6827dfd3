"""Commands that reach a training run from outside, between two steps."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Command = Literal["continue", "save", "rescale", "stop"]
"""What a run does after a step. save: write a checkpoint. rescale: also end, to start again with more workers. stop: also
end, until the same command is run again."""


@dataclass(frozen=True)
class Interrupted:
    """Outcome of a run that a command has ended before its last epoch; its checkpoint is written."""

    command: Literal["rescale", "stop"]
    step: int
    """Optimizer steps taken."""


NextCommand = Callable[[], Command]
"""Returns the command to follow now, the same on all workers. All workers must call it equally often."""


def stop_after(event: threading.Event) -> NextCommand:
    """Returns what stops a run of one worker at the first step that ends after an event is set.

    Args:
        event: for example of `waver.tools.termination.sigterm_event`.
    """
    return lambda: "stop" if event.is_set() else "continue"
