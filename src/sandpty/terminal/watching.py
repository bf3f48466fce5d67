"""A watched directory of a guest, made by `Files.watch`."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator

from sandpty.terminal.file_socket import FileSocket
from sandpty.wire import file_frames
from sandpty.wire.errors import SandptyError
from sandpty.wire.file_frames import FileFrame
from sandpty.wire.file_types import WatchEvent, WatchEventType
from sandpty.wire.frames import FrameError


class Watch:
    """An async iterator of events, and its connection's last use. Only the kernel's queue holds what is not taken.

    Iterate, or ask `pending` now and then; not both at once. Ends after GONE.
    """

    def __init__(self, connection: FileSocket, path: str) -> None:
        self._socket = connection
        self._path = path
        self._base = path.rstrip("/") + "/"
        self._waiting: deque[WatchEvent] = deque()
        self._token = 0
        self.over = False

    def __aiter__(self) -> AsyncIterator[WatchEvent]:
        return self._events()

    async def _events(self) -> AsyncIterator[WatchEvent]:
        while self._waiting or not self.over:
            yield await self.event()

    def _take(self, kind: int, payload: bytes) -> None:
        self._socket.check(kind, payload, FileFrame.EVENTS, self._path)
        try:
            events = file_frames.decode_events(payload, self._base)
        except FrameError as error:
            raise self._socket.misbehaved(str(error)) from error
        self.over = self.over or any(event.type is WatchEventType.GONE for event in events)
        self._waiting.extend(events)

    async def event(self) -> WatchEvent:
        """The next event. After GONE there is none (raises conflict)."""
        while not self._waiting:
            if self.over:
                raise SandptyError("conflict", f"{self._path} is watched no more: it has gone")
            self._take(*await self._socket.frame())
        return self._waiting.popleft()

    async def pending(self) -> list[WatchEvent]:
        """All that happened until now (drains the kernel's queue before it answers), without waiting for more."""
        self._token += 1
        await self._socket.send(file_frames.encode_sync(self._token))
        while True:
            kind, payload = await self._socket.frame()
            if kind == FileFrame.SYNCED:
                break
            self._take(kind, payload)
        events = list(self._waiting)
        self._waiting.clear()
        return events

    async def ask_all(self) -> int:
        """For who takes `news`: the number that comes once all that has happened until now was told."""
        self._token += 1
        await self._socket.send(file_frames.encode_sync(self._token))
        return self._token

    async def news(self) -> list[WatchEvent] | int:
        """What the guest says next: events, as they come, or the number of an `ask_all`. Not beside `pending`."""
        kind, payload = await self._socket.frame()
        if kind == FileFrame.SYNCED:
            try:
                return file_frames.decode_number(payload)
            except FrameError as error:
                raise self._socket.misbehaved(str(error)) from error
        self._take(kind, payload)
        events = list(self._waiting)
        self._waiting.clear()
        return events

    def close(self) -> None:
        """Watch no more. Safe to repeat."""
        self._socket.close()
