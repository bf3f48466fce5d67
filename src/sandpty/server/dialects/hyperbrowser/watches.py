"""Watched directories: events with sequence numbers, asked for now and then, or carried over a WebSocket.

The newest HYPERBROWSER_WATCH_EVENTS are kept for each watch, so that who comes back with a cursor (the last `seq` it
has seen) misses none.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

from sandpty import config
from sandpty.server.context import Context
from sandpty.server.dialects.hyperbrowser import file_models as models
from sandpty.server.dialects.hyperbrowser.errors import not_found, replay_window_expired
from sandpty.server.dialects.hyperbrowser.tokens import now_ms
from sandpty.server.files.paths import expand, printable
from sandpty.server.guest_defaults import default_user
from sandpty.terminal.files import Watch, WatchEvent, WatchEventType
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox

_OPS = {
    WatchEventType.CREATE: "create",
    WatchEventType.WRITE: "write",
    WatchEventType.REMOVE: "remove",
    WatchEventType.RENAME: "rename",
    WatchEventType.CHMOD: "chmod",
}


class Watching:
    """One watch. Its task reads what the guest says for as long as it lasts."""

    def __init__(self, sandbox_id: str, path: str, recursive: bool) -> None:
        self.id = "watch_" + secrets.token_hex(8)
        self.sandbox_id = sandbox_id
        self.path = path
        self.recursive = recursive
        self.readers = 0
        self.asked_at = asyncio.get_running_loop().time()
        self._created_ms = now_ms()
        self._stopped_ms: int | None = None
        self._error: str | None = None
        self._events: deque[models.FileEvent] = deque(maxlen=config.HYPERBROWSER_WATCH_EVENTS)
        self._last = 0
        self._news = asyncio.Event()

    @property
    def active(self) -> bool:
        return self._stopped_ms is None

    def add(self, kind: WatchEventType, name: str) -> None:
        self._last += 1
        path = printable(f"{self.path.rstrip('/')}/{name}" if name else self.path)
        self._events.append(models.FileEvent(seq=self._last, path=path, op=_OPS[kind], timestamp=now_ms()))
        self._tell()

    def stop(self, error: str | None = None) -> None:
        """No more events. Safe to repeat."""
        if self.active:
            self._stopped_ms, self._error = now_ms(), error
            self._tell()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    @property
    def _oldest(self) -> int:
        return self._events[0].seq if self._events else self._last + 1

    def status(self, *, events: bool = False) -> models.WatchStatus:
        return models.WatchStatus(
            id=self.id,
            path=printable(self.path),
            recursive=self.recursive,
            active=self.active,
            created_at=self._created_ms,
            stopped_at=self._stopped_ms,
            error=self._error,
            oldest_seq=self._events[0].seq if self._events else 0,
            last_seq=self._last,
            event_count=len(self._events),
            events=list(self._events) if events else None,
        )

    def check(self, cursor: int | None) -> int:
        """The `seq` after which to go on. Raises HyperbrowserError 410 when events after the cursor are gone."""
        if cursor is None:
            return self._oldest - 1
        if cursor < self._oldest - 1:
            raise replay_window_expired()
        return min(cursor, self._last)

    async def after(self, cursor: int) -> AsyncIterator[models.FileEvent]:
        """Events after `cursor`, those to come too, until the watch stops. Raises as `check`."""
        while True:
            news = self._news
            self.check(cursor)
            for event in [event for event in self._events if event.seq > cursor]:
                yield event
                cursor = event.seq
            if cursor == self._last:
                if not self.active:
                    return
                await news.wait()


class Watches:
    """All watches of this server."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._watches: dict[str, Watching] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        context.stopping.append(self._stop)

    async def create(self, sandbox: Sandbox, body: models.WatchBody) -> Watching:
        """Raises no_such_file, not_a_directory, limit, and as FileConnections.watching."""
        async with AsyncExitStack() as stack:
            user = body.run_as or default_user(sandbox)
            files = await stack.enter_async_context(self._context.files.watching(sandbox, user))
            path = expand(body.path, files.account)
            watch = await files.watch(path, recursive=bool(body.recursive))
            watching = Watching(sandbox.id, path, bool(body.recursive))
            close = stack.pop_all()
        self._watches[watching.id] = watching
        self._tasks[watching.id] = asyncio.create_task(self._read(watching, watch, close), name=watching.id)
        return watching

    def find(self, sandbox_id: str, id_: str) -> Watching:
        """Raises HyperbrowserError 404."""
        watching = self._watches.get(id_)
        if watching is None or watching.sandbox_id != sandbox_id:
            raise not_found(f"Watch {id_[:64]!r}")
        watching.asked_at = asyncio.get_running_loop().time()
        return watching

    def remove(self, watching: Watching) -> None:
        """Its streams end at once; its connection to the guest is closed by its task."""
        watching.stop()
        self._watches.pop(watching.id, None)
        if (task := self._tasks.get(watching.id)) is not None:
            task.cancel()

    async def _read(self, watching: Watching, watch: Watch, close: AsyncExitStack) -> None:
        """Until the directory is gone, the sandbox ends, or nobody has asked for a long time."""
        try:
            with (
                self._context.registry.cutting(watching.sandbox_id, lambda: self.remove(watching)),
                suppress(TimeoutError),
            ):
                while (event := await self._event(watching, watch)).type is not WatchEventType.GONE:
                    if event.type is WatchEventType.OVERFLOW:
                        watching.stop("so much happened in the directory that events were lost")
                        return
                    watching.add(event.type, event.name)
                watching.stop("the directory is gone")
        except SandptyError as error:
            watching.stop(error.message)
        finally:
            watching.stop()
            self._tasks.pop(watching.id, None)
            self._forget_later(watching)
            await close.aclose()

    async def _event(self, watching: Watching, watch: Watch) -> WatchEvent:
        """The guest's next event. Raises TimeoutError when nobody has looked for WATCHER_IDLE_S."""
        loop = asyncio.get_running_loop()
        waiting = asyncio.ensure_future(watch.event())
        try:
            while True:
                idle_s = 0.0 if watching.readers else loop.time() - watching.asked_at
                done, _ = await asyncio.wait((waiting,), timeout=max(0.0, config.WATCHER_IDLE_S - idle_s))
                if done:
                    return waiting.result()
                if not watching.readers and loop.time() - watching.asked_at >= config.WATCHER_IDLE_S:
                    raise TimeoutError
        finally:
            waiting.cancel()

    def _forget_later(self, watching: Watching) -> None:
        """One that has ended by itself can be asked about for a while."""
        if watching.id in self._watches:
            loop = asyncio.get_running_loop()
            loop.call_later(config.HYPERBROWSER_WATCH_KEPT_S, self._watches.pop, watching.id, None)

    def _stop(self) -> None:
        for watching in list(self._watches.values()):
            self.remove(watching)
