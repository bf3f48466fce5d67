"""Watches that clients ask for news from time to time, instead of holding a stream open.

Nothing is queued here: until the client asks, events wait in the guest's kernel, which keeps some 16,000 and then says
that it dropped some. A watcher ends with its sandbox, when it is removed, or when nobody has asked for a long time.
"""

from __future__ import annotations

import asyncio
import secrets
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from sandpty import config
from sandpty.server.file_connections import FileConnections
from sandpty.server.registry import Registry
from sandpty.terminal.files import Watch, WatchEvent, WatchEventType
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox


@dataclass(eq=False, slots=True)
class _Watcher:
    sandbox_id: str
    watch: Watch
    close: AsyncExitStack
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    expiry: asyncio.TimerHandle | None = None
    lost: bool = False  # the kernel has dropped events, and the client does not know yet


class Watchers:
    """All polled watchers of this server. Ids start with `w`; one sandbox's are unknown to another."""

    def __init__(self, registry: Registry, connections: FileConnections) -> None:
        self._registry = registry
        self._connections = connections
        self._watchers: dict[str, _Watcher] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._watchers)

    async def create(
        self, sandbox: Sandbox, user: str, path: str, *, recursive: bool, entries: bool, network_file_systems: bool
    ) -> str:
        """The new watcher's id. Raises as FileConnections.watching and Files.watch."""
        async with AsyncExitStack() as stack:
            files = await stack.enter_async_context(self._connections.watching(sandbox, user))
            watch = await files.watch(
                path, recursive=recursive, entries=entries, network_file_systems=network_file_systems
            )
            id_ = "w" + secrets.token_hex(8)
            watcher = _Watcher(sandbox.id, watch, stack)
            stack.enter_context(self._registry.cutting(sandbox.id, lambda: self._drop(id_)))
            watcher.close = stack.pop_all()
            self._watchers[id_] = watcher
            self._rearm(id_, watcher)
            return id_

    def _rearm(self, id_: str, watcher: _Watcher) -> None:
        if watcher.expiry is not None:
            watcher.expiry.cancel()
        watcher.expiry = asyncio.get_running_loop().call_later(config.WATCHER_IDLE_S, self._drop, id_)

    def _find(self, sandbox_id: str, id_: str) -> _Watcher:
        watcher = self._watchers.get(id_)
        if watcher is None or watcher.sandbox_id != sandbox_id:
            raise SandptyError("no_such_watcher", f"watcher with id {id_[:64]} not found")
        return watcher

    async def events(self, sandbox_id: str, id_: str) -> list[WatchEvent]:
        """What happened since the last call, all that the kernel knows of by now.

        Raises no_such_watcher; events_lost once, after what was kept, when the kernel dropped some.
        """
        watcher = self._find(sandbox_id, id_)
        self._rearm(id_, watcher)
        # A client that goes away in the middle must not leave half a conversation on the watch's connection.
        return await asyncio.shield(asyncio.ensure_future(self._pending(watcher)))

    async def _pending(self, watcher: _Watcher) -> list[WatchEvent]:
        async with watcher.lock:
            if watcher.lost:
                watcher.lost = False
                raise SandptyError("events_lost", "so much happened in the directory that events were lost")
            events = await watcher.watch.pending()
            kept = [event for event in events if event.type is not WatchEventType.OVERFLOW]
            watcher.lost = len(kept) < len(events)
            return kept

    async def remove(self, sandbox_id: str, id_: str) -> None:
        """Raises no_such_watcher."""
        self._find(sandbox_id, id_)
        self._drop(id_)
        await asyncio.sleep(0)

    def _drop(self, id_: str) -> None:
        """Synchronously out of sight; its connection closes a moment later, in a task of its own."""
        watcher = self._watchers.pop(id_, None)
        if watcher is None:
            return
        if watcher.expiry is not None:
            watcher.expiry.cancel()
        task = asyncio.get_running_loop().create_task(watcher.close.aclose())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def stop(self) -> None:
        """The server is stopping: let go of all."""
        for id_ in list(self._watchers):
            self._drop(id_)
