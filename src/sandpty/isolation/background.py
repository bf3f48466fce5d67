"""Tasks that outlive the request that caused them, with an owner that logs their failures and ends them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

log = logging.getLogger(__name__)
T = TypeVar("T")


class Background:
    """Owns tasks; use as `async with`: leaving cancels and awaits what still runs."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Background:
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._tasks:
            for task in self._tasks:
                task.cancel()
            await asyncio.wait(self._tasks)

    async def settle(self, timeout_s: float) -> None:
        """Let what runs come to its end, at most `timeout_s`."""
        if tasks := self._tasks - {asyncio.current_task()}:
            await asyncio.wait(tasks, timeout=timeout_s)

    def spawn(self, work: Coroutine[Any, Any, T], name: str, *, expected: bool = False) -> asyncio.Task[T]:
        """Run `work`; unless `expected` (somebody awaits it), a failure is logged."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done if not expected else self._awaited)
        return task

    def _awaited(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # retrieved: the awaiter reports it, if it is still there

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed", task.get_name(), exc_info=error)

    async def finish(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """Await `work`, but let it run to its end when the awaiter is cancelled."""
        return await asyncio.shield(self.spawn(work, name, expected=True))
