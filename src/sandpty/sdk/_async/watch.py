"""A watched directory, across lost connections."""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any

from sandpty.sdk._async.client import AsyncClient
from sandpty.sdk._async.patience import LOST, RECONNECT_TIMEOUT_S, AsyncPatience
from sandpty.sdk._async.sockets import AsyncWebSocket, closed_socket
from sandpty.sdk._awaiting import (
    AsyncCallback,
    AsyncEvent,
    AsyncLock,
    AsyncWorker,
    async_call,
)
from sandpty.sdk.file_values import FilesystemEvent, FilesystemEventType, event_of
from sandpty.sdk.websocket import GOOD_END, ClosedWebSocketError, Message
from sandpty.wire.errors import SandptyError

EVENTS_KEPT = 65_536  # that nobody has taken; above it the newest are dropped, and that is told
_MISSED = FilesystemEvent(name="", type=FilesystemEventType.OVERFLOW)


class AsyncWatchHandle:
    """Made by `files.watch_dir`. Iterate over it, ask `get_new_events` now and then, or give callbacks.

    A worker takes events as they come. Use it as a context manager, or `stop` it. After GONE there are no more.
    """

    def __init__(self, client: AsyncClient, address: str, *, timeout_s: float | None) -> None:
        self._client = client
        self._address = address
        self._until = None if timeout_s is None else time.monotonic() + timeout_s
        self._socket: AsyncWebSocket
        self._events: deque[FilesystemEvent] = deque()
        self._news = AsyncEvent()
        self._asking = AsyncLock()
        # Of `sync`: said so far, said on connections that were lost, answered. Changed under _asking, but the last.
        self._asked = self._lost = self._answered = 0
        self._over = False
        self._error: SandptyError | None = None
        self._workers: list[AsyncWorker] = []

    async def open(self) -> None:
        """Begin. What fails here is raised, not tried again."""
        self._socket = await self._client.connect_socket(self._address)
        self._workers.append(AsyncWorker(self._read, "watch"))

    def listen(self, on_event: AsyncCallback | None, on_exit: AsyncCallback | None) -> None:
        """Call them in the background, `on_exit` with what ended the watch, or None."""

        async def tell() -> None:
            failure: Exception | None = None
            try:
                async for event in self:
                    if on_event is not None:
                        await async_call(on_event, event)
            except Exception as error:
                failure = error
            if on_exit is not None:
                await async_call(on_exit, failure)

        self._workers.append(AsyncWorker(tell, "watch's callbacks"))

    async def stop(self) -> None:
        """Watch no more. Safe to repeat."""
        self._over = True
        self._news.set()
        await self._socket.close()
        workers, self._workers = self._workers, []
        for worker in workers:
            if not worker.is_current:
                await worker.leave()

    async def __aenter__(self) -> AsyncWatchHandle:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # --- taking ------------------------------------------------------------------------------------------------------

    async def get_new_events(self) -> list[FilesystemEvent]:
        """All that has happened since the last call, or since the beginning, until now.

        Raises what ended the watch, once all events were taken.
        """
        async with self._asking:
            self._asked += 1
            wanted = self._asked
            with contextlib.suppress(ClosedWebSocketError):  # the reader finds it too, and counts it as answered
                await self._socket.send("sync")
        await self._wait(lambda: self._answered >= wanted)
        events = [self._events.popleft() for _ in range(len(self._events))]
        if not events and self._error is not None:
            raise self._error
        return events

    def __aiter__(self) -> AsyncWatchHandle:
        return self

    async def __anext__(self) -> FilesystemEvent:
        await self._wait(lambda: bool(self._events))
        if self._events:
            return self._events.popleft()
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    async def _wait(self, there: Callable[[], bool]) -> None:
        """Until it is there, or nothing comes any more."""
        while True:
            self._news.clear()  # before looking: what comes between the two is not slept through
            if self._over or there():
                return
            await self._news.wait()

    # --- the worker --------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        try:
            while not self._over:
                message = await self._message()
                if message is None:
                    break
                self._take(json.loads(message if isinstance(message, str) else bytes(message)))
        except SandptyError as error:
            self._error = error
        except (ValueError, KeyError, TypeError) as error:
            self._error = SandptyError("bad_frame", f"the server says what no watch says: {error}")
        finally:
            self._over = True
            self._news.set()
            await self._socket.close()

    async def _message(self) -> Message | None:
        """The next one; None at the end."""
        while not self._over:
            left_s = None if self._until is None else max(0.0, self._until - time.monotonic())
            try:
                return await self._socket.receive(left_s)
            except TimeoutError:
                return None
            except ClosedWebSocketError as error:
                if error.code == GOOD_END:
                    return None
                await self._connect_again(closed_socket(self._client.url, error))
        return None

    def _take(self, said: dict[str, Any]) -> None:
        if "synced" in said:
            self._answered = self._lost + int(said["synced"])
        for each in said.get("events", ()):
            event = event_of(each)
            if event is None:
                continue
            if len(self._events) < EVENTS_KEPT:
                self._events.append(event)
            elif self._events[-1] is not _MISSED:
                self._events.append(_MISSED)
        self._news.set()

    async def _connect_again(self, cause: SandptyError) -> None:
        """What happened meanwhile nobody knows: that is an event. Raises what ends the watch."""
        patience = AsyncPatience(RECONNECT_TIMEOUT_S)
        while not self._over:
            if cause.reason.name not in LOST:
                raise cause
            await patience.pause(cause)
            try:
                socket = await self._client.connect_socket(self._address)
            except SandptyError as error:
                gone = error.reason.name == "no_such_sandbox"  # it was there when we began
                cause = SandptyError("sandbox_ended", "the sandbox has ended") if gone else error
                continue
            async with self._asking:
                self._socket = socket
                self._lost = self._answered = self._asked
                self._events.append(_MISSED)
            self._news.set()
            if self._over:
                await socket.close()
            return
