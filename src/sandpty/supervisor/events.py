"""Who watches the sandboxes change, and what they are told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sandpty import config
from sandpty.wire import verbs
from sandpty.wire.images import ImportProgress


class Events:
    """Hands every event to every watcher's queue. A watcher that does not read is cut off, never waited for."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[verbs.Message | None]] = set()
        self.listeners: list[Callable[[str, verbs.Sandbox, str], None]] = []  # called at once, in this process

    @contextmanager
    def watching(self) -> Iterator[asyncio.Queue[verbs.Message | None]]:
        """A queue of events from now on; None in it means: you were too slow, go."""
        queue: asyncio.Queue[verbs.Message | None] = asyncio.Queue()
        self._queues.add(queue)
        try:
            yield queue
        finally:
            self._queues.discard(queue)

    def publish(self, event: str, sandbox: verbs.Sandbox, reason: str = "") -> None:
        for listener in self.listeners:
            listener(event, sandbox, reason)
        self._tell(verbs.Message(event=event, sandbox=sandbox, reason=reason))

    def publish_keys(self, keys: list[verbs.KeyHash]) -> None:
        self._tell(verbs.Message(event="keys", keys=keys))

    def publish_import(self, progress: ImportProgress) -> None:
        self._tell(verbs.Message(event="import", progress=progress))

    def _tell(self, message: verbs.Message) -> None:
        for queue in list(self._queues):
            if queue.qsize() >= config.EVENTS_QUEUED_MAX:
                self._queues.discard(queue)
                queue.put_nowait(None)
            else:
                queue.put_nowait(message)
