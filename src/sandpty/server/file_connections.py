"""Files connections that are kept open for the next request: a new one costs a fork in the guest, about a millisecond.

Everything of a sandbox is closed when it pauses or ends, also what is in use: whoever waits for an answer gets an error
that says why, and no connection to a frozen agent is ever handed out.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field

from sandpty import config
from sandpty.server.registry import Registry
from sandpty.terminal.files import Files, open_files
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox


@dataclass(slots=True)
class _Idle:
    files: Files
    since: float  # by the event loop's clock


@dataclass(slots=True)
class _Shelf:
    """What one sandbox has open."""

    forget: Callable[[], None]  # no longer told when the sandbox is cut
    places: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(config.FILE_CONNECTIONS_MAX))
    users: int = 0  # who holds, or waits for, a connection
    watching: int = 0
    idle: dict[str, list[_Idle]] = field(default_factory=dict)  # by user, the oldest first
    expiry: asyncio.TimerHandle | None = None  # one for all: a timer for each lease costs more than all else of it
    busy: set[Files] = field(default_factory=set)

    def close(self) -> None:
        if self.expiry is not None:
            self.expiry.cancel()
        for waiting in self.idle.values():
            for item in waiting:
                item.files.close()
        self.idle.clear()
        for files in self.busy:
            files.close()


class FileConnections:
    """Idle connections per sandbox and user; they go when the sandbox pauses or ends."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._shelves: dict[str, _Shelf] = {}

    @asynccontextmanager
    async def lease(self, sandbox: Sandbox, user: str) -> AsyncIterator[Files]:
        """A connection that acts as `user`, for one caller at a time; given back when the block is left.

        What was left unfinished is given up with its connection. Waits while the sandbox has FILE_CONNECTIONS_MAX.
        Raises no_such_user, limit, no_such_sandbox, sandbox_paused, agent_unreachable.
        """
        shelf = self._shelf(sandbox.id)
        shelf.users += 1
        try:
            async with shelf.places:
                files = self._take(shelf, user) or await self._open(sandbox, user)
                shelf.busy.add(files)
                try:
                    yield files
                except SandptyError as error:
                    self._explain(sandbox, error)
                    raise
                finally:
                    shelf.busy.discard(files)
                    self._give_back(sandbox.id, shelf, user, files)
        finally:
            shelf.users -= 1
            self._drop_if_empty(sandbox.id, shelf)

    @asynccontextmanager
    async def watching(self, sandbox: Sandbox, user: str) -> AsyncIterator[Files]:
        """A connection of its own for a watch or a listening socket: never waited for, closed when the block is left.

        Raises as `lease`; limit when the sandbox has FILE_WATCHES_MAX.
        """
        shelf = self._shelf(sandbox.id)
        if shelf.watching >= config.FILE_WATCHES_MAX:
            most = config.FILE_WATCHES_MAX
            raise SandptyError("limit", f"this sandbox has its {most} watches and listening sockets already")
        shelf.users += 1
        shelf.watching += 1
        try:
            files = await self._open(sandbox, user)
            shelf.busy.add(files)
            try:
                yield files
            except SandptyError as error:
                self._explain(sandbox, error)
                raise
            finally:
                shelf.busy.discard(files)
                files.close()
        finally:
            shelf.watching -= 1
            shelf.users -= 1
            self._drop_if_empty(sandbox.id, shelf)

    def close(self) -> None:
        """Close every connection, also those in use."""
        for sandbox_id in list(self._shelves):
            self._cut(sandbox_id)

    # --- inside ---

    def _shelf(self, sandbox_id: str) -> _Shelf:
        self._registry.running(sandbox_id)
        shelf = self._shelves.get(sandbox_id)
        if shelf is None:
            told = ExitStack()
            told.enter_context(self._registry.cutting(sandbox_id, lambda: self._cut(sandbox_id)))
            shelf = self._shelves[sandbox_id] = _Shelf(told.close)
        return shelf

    def _cut(self, sandbox_id: str) -> None:
        """The sandbox has paused or ended: whoever still uses the shelf keeps it, the next one gets a new one."""
        shelf = self._shelves.pop(sandbox_id, None)
        if shelf is not None:
            shelf.forget()
            shelf.close()

    def _drop_if_empty(self, sandbox_id: str, shelf: _Shelf) -> None:
        if not shelf.users and not shelf.idle and self._shelves.get(sandbox_id) is shelf:
            del self._shelves[sandbox_id]
            shelf.forget()

    def _take(self, shelf: _Shelf, user: str) -> Files | None:
        waiting = shelf.idle.get(user, [])
        while waiting:
            item = waiting.pop()
            if not waiting:
                del shelf.idle[user]
            if item.files.reusable:
                return item.files
            item.files.close()
        return None

    async def _open(self, sandbox: Sandbox, user: str) -> Files:
        """As the registry knows the sandbox now: while we waited it may have paused, ended or come back."""
        now = self._registry.running(sandbox.id)
        try:
            files = await open_files(now.socket, user)
        except SandptyError as error:
            self._explain(sandbox, error)
            raise
        try:
            if self._registry.running(sandbox.id).boot_id != now.boot_id:
                raise SandptyError("agent_unreachable", "the sandbox was started again meanwhile")
        except BaseException:
            files.close()
            raise
        return files

    def _give_back(self, sandbox_id: str, shelf: _Shelf, user: str, files: Files) -> None:
        waiting = shelf.idle.get(user, [])
        kept = self._shelves.get(sandbox_id) is shelf and len(waiting) < config.FILE_CONNECTIONS_IDLE
        if not kept or not files.at_rest:
            files.close()
            return
        loop = asyncio.get_running_loop()
        now = loop.time()
        shelf.idle.setdefault(user, []).append(_Idle(files, now))
        if shelf.expiry is None:
            shelf.expiry = loop.call_at(now + config.FILE_CONNECTION_IDLE_S, self._expire, sandbox_id, shelf)

    def _expire(self, sandbox_id: str, shelf: _Shelf) -> None:
        """Close what has been idle for long enough, and look again when the oldest of the others will have been."""
        loop = asyncio.get_running_loop()
        shelf.expiry = None
        last = loop.time() - config.FILE_CONNECTION_IDLE_S
        for user, waiting in list(shelf.idle.items()):
            while waiting and waiting[0].since <= last:
                waiting.pop(0).files.close()
            if not waiting:
                del shelf.idle[user]
        if shelf.idle:
            oldest = min(waiting[0].since for waiting in shelf.idle.values())
            due = oldest + config.FILE_CONNECTION_IDLE_S
            shelf.expiry = loop.call_at(due, self._expire, sandbox_id, shelf)
        self._drop_if_empty(sandbox_id, shelf)

    def _explain(self, sandbox: Sandbox, error: SandptyError) -> None:
        """Raise what became of the sandbox when that is why a connection was lost."""
        if error.reason.name != "agent_unreachable":
            return
        try:
            self._registry.running(sandbox.id)
        except SandptyError as known:
            if known.reason.name == "no_such_sandbox":
                raise SandptyError("sandbox_ended", "the sandbox was killed or reached its end of life") from error
            raise known from error
