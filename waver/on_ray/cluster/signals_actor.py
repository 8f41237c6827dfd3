"""The actor that holds the control signals of a run; see `waver.on_ray.cluster.signals`.

It has a module of its own, which imports neither torch nor Ray Train: without them the process of the actor starts 2 s
earlier.
"""

import asyncio


class SignalActor:
    """Holds the signals of a run. Its methods are coroutines, so that any number of workers can wait at once."""

    def __init__(self) -> None:
        self._stop, self._capacity, self._is_awaited, self._failure = asyncio.Event(), asyncio.Event(), False, None

    async def ask_to_stop(self) -> None:
        """Asks the run to write a checkpoint and to end."""
        self._stop.set()

    async def wait_for_stop(self) -> None:
        """Returns as soon as the run is asked to stop."""
        await self._stop.wait()

    async def ask_to_rescale(self) -> None:
        """Asks the run to write a checkpoint and to start again with more workers.

        Does nothing until a worker waits for capacity: while its group starts, free capacity may be meant for that group.
        """
        if self._is_awaited:
            self._capacity.set()

    async def start_group(self) -> None:
        """Discards requests to rescale, which were for the previous group of workers."""
        self._capacity.clear()
        self._is_awaited = False

    async def wait_for_capacity(self) -> None:
        """Returns as soon as the run is asked to rescale, because more workers fit than the group has."""
        self._is_awaited = True
        await self._capacity.wait()

    async def keep_failure(self, message: str) -> None:
        """Keeps the message of a permanent error for the workers that replace the failed ones."""
        self._failure = self._failure or message

    async def failure(self) -> str | None:
        """Returns the first message that was kept; None if there is none."""
        return self._failure
