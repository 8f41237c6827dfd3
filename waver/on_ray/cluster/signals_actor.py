"""The actor of a run's control signals; see `waver.on_ray.cluster.signals`.

It has a module of its own, which imports neither torch nor Ray Train: the process of the actor starts 2 s earlier without.
"""

import asyncio


class Signals:
    """The actor. Its methods are called with `.remote`; all are coroutines, so that any number of workers may wait."""

    def __init__(self) -> None:
        self._stop, self._room, self._listens, self._failure = asyncio.Event(), asyncio.Event(), False, None

    async def ask_to_stop(self) -> None:
        """The run should save itself and end."""
        self._stop.set()

    async def wait_for_stop(self) -> None:
        """Returns when the run should end; until then, never."""
        await self._stop.wait()

    async def ask_to_rescale(self) -> None:
        """The run should save itself and begin again, with more workers.

        What was free before a worker listens may be its own group's, which is just taking its place.
        """
        if self._listens:
            self._room.set()

    async def begin(self) -> None:
        """A group begins, with the workers that there is room for."""
        self._room.clear()
        self._listens = False

    async def wait_for_capacity(self) -> None:
        """Returns when there is room for more workers than the group has; until then, never."""
        self._listens = True
        await self._room.wait()

    async def fail(self, message: str) -> None:
        """Keeps an error that would come again, for the workers that Ray starts in place of those that met it."""
        self._failure = self._failure or message

    async def failure(self) -> str | None:
        """The first error that was kept."""
        return self._failure
