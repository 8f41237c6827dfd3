"""Control signals between the driver of a run and its workers, outside the process group.

A small actor on the driver's node holds them: requests to stop, notices of free capacity for more workers, and permanent
errors. It needs no shared file system, and works when the disk is full.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.train
import torch
from ray.exceptions import RayError

from waver.on_ray.cluster.connection import local_node_label
from waver.on_ray.cluster.signals_actor import SignalActor
from waver.runs.control import Command
from waver.tools.termination import sigterm_event
from waver.training import parallel

_PREEMPTION_EVERY_S = 5.0
"""Interval at which workers ask Ray whether one of their nodes is about to be preempted."""
_CONTINUE, _CHECK_PREEMPTION, _RESCALE, _STOP = range(4)


@contextmanager
def signal_actor() -> Iterator[Any]:
    """Starts a `SignalActor` on this node for the time of a run.

    Yields:
        Its handle.
    """
    actor = ray.remote(SignalActor).options(num_cpus=0, label_selector=local_node_label()).remote()
    try:
        yield actor
    finally:
        ray.kill(actor)


@contextmanager
def stop_on_sigterm(actor: Any) -> Iterator[None]:
    """Turns a SIGTERM during the body into a request to the run to write a checkpoint and to end.

    Call it after `ray.init`, which installs a handler of its own.

    Args:
        actor: see `signal_actor`.
    """
    over = threading.Event()

    def forward(requested: threading.Event) -> None:
        requested.wait()
        if not over.is_set():
            actor.ask_to_stop.remote()

    with sigterm_event() as requested:
        forwarder = threading.Thread(target=forward, args=(requested,), name="waver-sigterm", daemon=True)
        forwarder.start()
        try:
            yield
        finally:
            over.set()
            requested.set()
            forwarder.join()


class ControlSignals:
    """Gives all workers the same command after each step. All workers must call `next_command` equally often.

    Args:
        actor: see `signal_actor`; only the worker of rank 0 waits for it.
        device: on which the workers exchange values.
    """

    def __init__(self, actor: Any, device: torch.device):
        self._device = device
        self._waiting: dict[ray.ObjectRef, int] = {}
        if parallel.rank() == 0:
            self._waiting = {actor.wait_for_stop.remote(): _STOP, actor.wait_for_capacity.remote(): _RESCALE}
        self._checked_s = time.monotonic()
        self._saved = False

    def next_command(self) -> Command:
        """Returns "stop" or "rescale" if requested, "save" once if a node is about to be preempted, else "continue"."""
        own = self._own_command() if parallel.rank() == 0 else _CONTINUE
        command = int(parallel.all_reduce(torch.tensor(own, device=self._device), "max"))
        if command == _CHECK_PREEMPTION:
            preempted = ray.train.get_preemption_info() is not None
            save, self._saved = preempted and not self._saved, preempted
            return "save" if save else "continue"
        commands: dict[int, Command] = {_CONTINUE: "continue", _RESCALE: "rescale", _STOP: "stop"}
        return commands[command]

    def _own_command(self) -> int:
        waiting = list(self._waiting)
        done = ray.wait(waiting, num_returns=len(waiting), timeout=0)[0] if waiting else []
        try:
            ray.get(done)
        except RayError:  # the actor is lost, and nothing can be requested any more
            self._waiting, done = {}, []
        if done:
            return max(self._waiting[one] for one in done)
        if time.monotonic() - self._checked_s < _PREEMPTION_EVERY_S:
            return _CONTINUE
        self._checked_s = time.monotonic()
        return _CHECK_PREEMPTION
