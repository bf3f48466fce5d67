"""Waiting until a descriptor has something to read, again and again, without asking the kernel anew each time.

An event loop's own `sock_recv` registers the descriptor for every wait and takes it out again: eight system calls with
uvloop, which cost more than the read itself. Here it stays registered while waits follow one another, and is taken out
when something came that nobody waits for.
"""

from __future__ import annotations

import asyncio


class Readable:
    """Of one non-blocking descriptor; one waits at a time. `stop` before the descriptor is closed."""

    def __init__(self, descriptor: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._waiting: asyncio.Future[None] | None = None
        self._watched = False

    async def wait(self) -> None:
        """Until there is something to read, an end, or `stop` was called. Try to read first: nothing is remembered."""
        self._waiting = self._loop.create_future()
        if not self._watched:
            self._watched = True
            self._loop.add_reader(self._descriptor, self._tell)
        try:
            await self._waiting
        finally:
            self._waiting = None

    def stop(self) -> None:
        """Not watched any more; who waits is woken, and learns from the descriptor what became of it."""
        if self._watched:
            self._watched = False
            self._loop.remove_reader(self._descriptor)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _tell(self) -> None:
        if self._waiting is None:
            self.stop()  # the kernel would say it again and again
        elif not self._waiting.done():
            self._waiting.set_result(None)
