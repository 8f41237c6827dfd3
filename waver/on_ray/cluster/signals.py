"""What the driver of a run and its workers tell each other outside the process group.

One small actor on the driver's node holds it, so that no file system has to be shared and a full disk is no hindrance: that
the run should stop, that there is room for more workers, and why it failed.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import ray
import ray.train
import torch
from ray.exceptions import RayError

from waver.on_ray.cluster.connection import this_node
from waver.on_ray.cluster.signals_actor import Signals
from waver.training import parallel

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a process that ended because it was asked to."""
_PREEMPTION_EVERY_S = 5.0
"""How often workers ask Ray whether one of their nodes is about to be taken away."""
Order = Literal["go on", "save", "rescale", "stop"]
_GO_ON, _LOOK, _RESCALE, _STOP = range(4)


class Terminated(SystemExit):
    """Somebody asked this process to end (SIGTERM), and it has put things in order before; the message says how."""

    def __init__(self, message: str):
        super().__init__(TERMINATED)
        self.message = message


@contextmanager
def signals() -> Iterator[Any]:
    """Starts the actor on this node, for the time of a run.

    Yields:
        Its handle.
    """
    actor = ray.remote(Signals).options(num_cpus=0, label_selector=this_node()).remote()
    try:
        yield actor
    finally:
        ray.kill(actor)


@contextmanager
def stop_on_sigterm(actor: Any) -> Iterator[None]:
    """While the body runs, SIGTERM asks the run to save itself and to end.

    Use it after Ray was initialised, which brings a handler of its own.

    Args:
        actor: see `signals`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only there are signals handled
        return
    asked, over = threading.Event(), threading.Event()

    def tell() -> None:
        asked.wait()
        if not over.is_set():
            actor.ask_to_stop.remote()

    # The handler may interrupt anything, Ray's own code among it: it raises a flag, and a thread acts on it.
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    teller = threading.Thread(target=tell, name="waver-sigterm", daemon=True)
    teller.start()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        over.set()
        asked.set()
        teller.join()


class ControlSignals:
    """What the workers are to do after a step, the same for all; they must ask equally often.

    Args:
        actor: see `signals`; only the first worker listens to it.
        device: on which the workers exchange values.
    """

    def __init__(self, actor: Any, device: torch.device):
        self._device = device
        self._asked: dict[ray.ObjectRef, int] = {}
        if parallel.rank() == 0:
            self._asked = {actor.wait_for_stop.remote(): _STOP, actor.wait_for_capacity.remote(): _RESCALE}
        self._looked_s = time.monotonic()
        self._saved = False

    def next(self) -> Order:
        """Stop or regroup where somebody asked for it; save, once, where a node of the workers is about to be taken away."""
        word = self._word() if parallel.rank() == 0 else _GO_ON
        word = int(parallel.all_reduce(torch.tensor(word, device=self._device), "max"))
        if word == _LOOK:
            preempted = ray.train.get_preemption_info() is not None
            save, self._saved = preempted and not self._saved, preempted
            return "save" if save else "go on"
        return {_GO_ON: "go on", _RESCALE: "rescale", _STOP: "stop"}[word]

    def _word(self) -> int:
        asked = list(self._asked)
        said = ray.wait(asked, num_returns=len(asked), timeout=0)[0] if asked else []
        try:
            ray.get(said)
        except RayError:  # the actor is gone, and with it whoever could ask
            self._asked, said = {}, []
        if said:
            return max(self._asked[one] for one in said)
        if time.monotonic() - self._looked_s < _PREEMPTION_EVERY_S:
            return _GO_ON
        self._looked_s = time.monotonic()
        return _LOOK
