"""One view of one process over a WebSocket: each binary message is an agent frame without its length."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import TypeAlias

from sandpty.sdk._async.sockets import AsyncWebSocket, async_connect_socket, closed_socket
from sandpty.sdk.exceptions import RequestTimeoutError
from sandpty.sdk.websocket import ClosedWebSocketError
from sandpty.wire import frames
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import (
    NO_OFFSET,
    AgentError,
    Attached,
    Exit,
    Gap,
    InputAck,
    Output,
    Pong,
    Resized,
    Target,
)

Event: TypeAlias = Output | Gap | Resized | Exit | InputAck | Pong | AgentError

INPUT_MESSAGE_BYTES = 64 * 1024
# Far less than an agent lets its fastest reader be behind (128 KiB), so that who keeps up never makes it wait.
ACK_EVERY_BYTES = 32 * 1024
_LENGTH_BYTES = 4


class AsyncAttachment:
    """Made by `AsyncClient.attach`. `info` says what was attached to; `position` is the offset of the next output.

    Iterating yields frames as values of sandpty.wire.frames and ends after `Exit`. Output counts as delivered when the
    next event is asked for; until then it fills the window.
    """

    def __init__(
        self,
        url: str,
        path: str,
        headers: Mapping[str, str],
        *,
        window: int,
        answer_timeout_s: float,
        opening: str = "",
    ) -> None:
        """`opening`: what is said first, on a WebSocket that starts what it then shows."""
        self._url = url
        self._path = path
        self._headers = headers
        self._answer_timeout_s = answer_timeout_s
        self._opening = opening
        self._ack_every = min(max(1, window // 4), ACK_EVERY_BYTES)
        self._acked = 0
        self._socket: AsyncWebSocket | None = None
        self.position = 0
        self.exit: Exit | None = None
        self.info: Attached

    async def open(self) -> None:
        """Connect, and learn what was attached to. Raises no_such_process, no_such_sandbox, bad_argument.

        Of one that starts a process what `AsyncClient.start_process` raises.
        """
        self._socket = await async_connect_socket(self._url, self._path, self._headers)
        try:
            if self._opening:
                await self._socket.send(self._opening)
            first = await self._receive(self._answer_timeout_s)
            if not isinstance(first, Attached):
                raise SandptyError("bad_frame", f"{type(first).__name__} where ATTACHED was due")
        except BaseException:
            await self.close()
            raise
        self.info = first
        self.position = self._acked = first.start

    async def close(self) -> None:
        """Detach. The process goes on. What `receive` returned counts as delivered."""
        socket, self._socket = self._socket, None
        if socket is None:
            return
        if self.position > self._acked and self.exit is None:
            # So that a client without offsets, who comes next, continues behind what was seen here.
            with contextlib.suppress(ClosedWebSocketError):
                await socket.send(memoryview(frames.encode_ack(self.position))[_LENGTH_BYTES:])
        await socket.close()

    async def __aenter__(self) -> AsyncAttachment:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while self.exit is None:
            yield await self.receive()

    async def receive(self) -> Event:
        """The next event. Raises sandbox_ended and others that the server closes with, server_unreachable when cut."""
        await self._acknowledge()
        event = await self._receive()
        match event:
            case Output():
                self._expect(event.offset)
                self.position += len(event.data)
            case Gap():
                self._expect(event.start)
                self.position = event.end
            case Exit():
                self._expect(event.end)
                self.exit = event
            case Resized() | InputAck() | Pong() | AgentError():
                pass
            case _:
                raise SandptyError("bad_frame", f"unexpected {type(event).__name__} on an attachment")
        return event

    def _expect(self, offset: int) -> None:
        if offset != self.position:
            raise SandptyError("bad_frame", f"output at offset {offset} where {self.position} was due")

    async def _acknowledge(self) -> None:
        if self.position - self._acked >= self._ack_every:
            self._acked = self.position
            await self._send(frames.encode_ack(self.position))

    async def _receive(self, timeout_s: float | None = None) -> frames.FromAgent:
        try:
            message = await self._connected().receive(timeout_s)
        except ClosedWebSocketError as error:
            raise closed_socket(self._url, error) from error
        except TimeoutError as error:
            raise RequestTimeoutError(f"GET {self._path.partition('?')[0]}", self._answer_timeout_s) from error
        if not message or isinstance(message, str):
            raise SandptyError("bad_frame", "an empty message, or a text, is no frame")
        try:
            return frames.decode(message[0], memoryview(message)[1:])
        except frames.FrameError as error:
            raise SandptyError("bad_frame", str(error)) from error

    async def _send(self, frame: bytes) -> None:
        try:
            await self._connected().send(memoryview(frame)[_LENGTH_BYTES:])
        except ClosedWebSocketError as error:
            raise closed_socket(self._url, error) from error

    def _connected(self) -> AsyncWebSocket:
        if self._socket is None:
            raise SandptyError("conflict", "the attachment is not open")
        return self._socket

    async def send_input(self, data: bytes, offset: int = NO_OFFSET) -> None:
        """Type `data`. With `offset` (of input, see `info.input`) what was already taken from there on is ignored."""
        for at in range(0, len(data), INPUT_MESSAGE_BYTES):
            chunk = data[at : at + INPUT_MESSAGE_BYTES]
            await self._send(frames.encode_input(chunk, NO_OFFSET if offset == NO_OFFSET else offset + at))

    async def resize(self, *, cols: int, rows: int) -> None:
        """Set the window size; it takes its place among the inputs."""
        await self._send(frames.encode_resize(cols, rows))

    async def signal(self, number: int, target: Target = Target.GROUP) -> None:
        """Send a signal to the process that leads, the foreground group, or all that was started."""
        await self._send(frames.encode_signal(number, target))

    async def close_stdin(self) -> None:
        """End of input, for a process with pipes."""
        await self._send(frames.encode_close_stdin())

    async def ack(self, offset: int) -> None:
        """All output below `offset` is delivered; done by `receive` as it goes, needed only to be earlier."""
        self._acked = max(self._acked, offset)
        await self._send(frames.encode_ack(offset))

    async def ping(self, token: int) -> None:
        """Answered by Pong once everything sent before was taken."""
        await self._send(frames.encode_ping(token))
