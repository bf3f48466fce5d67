# Generated from sdk/_async by scripts/generate-sync: change it there.
"""One view of one process over a WebSocket: each binary message is an agent frame without its length."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TypeAlias

from sandpty.sdk._sync.sockets import WebSocket, closed_socket, connect_socket
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


class Attachment:
    """Made by `Client.attach`. `info` says what was attached to; `position` is the offset of the next output.

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
        self._socket: WebSocket | None = None
        self.position = 0
        self.exit: Exit | None = None
        self.info: Attached

    def open(self) -> None:
        """Connect, and learn what was attached to. Raises no_such_process, no_such_sandbox, bad_argument.

        Of one that starts a process what `Client.start_process` raises.
        """
        self._socket = connect_socket(self._url, self._path, self._headers)
        try:
            if self._opening:
                self._socket.send(self._opening)
            first = self._receive(self._answer_timeout_s)
            if not isinstance(first, Attached):
                raise SandptyError("bad_frame", f"{type(first).__name__} where ATTACHED was due")
        except BaseException:
            self.close()
            raise
        self.info = first
        self.position = self._acked = first.start

    def close(self) -> None:
        """Detach. The process goes on. What `receive` returned counts as delivered."""
        socket, self._socket = self._socket, None
        if socket is None:
            return
        if self.position > self._acked and self.exit is None:
            # So that a client without offsets, who comes next, continues behind what was seen here.
            with contextlib.suppress(ClosedWebSocketError):
                socket.send(memoryview(frames.encode_ack(self.position))[_LENGTH_BYTES:])
        socket.close()

    def __enter__(self) -> Attachment:
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Event]:
        while self.exit is None:
            yield self.receive()

    def receive(self) -> Event:
        """The next event. Raises sandbox_ended and others that the server closes with, server_unreachable when cut."""
        self._acknowledge()
        event = self._receive()
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

    def _acknowledge(self) -> None:
        if self.position - self._acked >= self._ack_every:
            self._acked = self.position
            self._send(frames.encode_ack(self.position))

    def _receive(self, timeout_s: float | None = None) -> frames.FromAgent:
        try:
            message = self._connected().receive(timeout_s)
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

    def _send(self, frame: bytes) -> None:
        try:
            self._connected().send(memoryview(frame)[_LENGTH_BYTES:])
        except ClosedWebSocketError as error:
            raise closed_socket(self._url, error) from error

    def _connected(self) -> WebSocket:
        if self._socket is None:
            raise SandptyError("conflict", "the attachment is not open")
        return self._socket

    def send_input(self, data: bytes, offset: int = NO_OFFSET) -> None:
        """Type `data`. With `offset` (of input, see `info.input`) what was already taken from there on is ignored."""
        for at in range(0, len(data), INPUT_MESSAGE_BYTES):
            chunk = data[at : at + INPUT_MESSAGE_BYTES]
            self._send(frames.encode_input(chunk, NO_OFFSET if offset == NO_OFFSET else offset + at))

    def resize(self, *, cols: int, rows: int) -> None:
        """Set the window size; it takes its place among the inputs."""
        self._send(frames.encode_resize(cols, rows))

    def signal(self, number: int, target: Target = Target.GROUP) -> None:
        """Send a signal to the process that leads, the foreground group, or all that was started."""
        self._send(frames.encode_signal(number, target))

    def close_stdin(self) -> None:
        """End of input, for a process with pipes."""
        self._send(frames.encode_close_stdin())

    def ack(self, offset: int) -> None:
        """All output below `offset` is delivered; done by `receive` as it goes, needed only to be earlier."""
        self._acked = max(self._acked, offset)
        self._send(frames.encode_ack(offset))

    def ping(self, token: int) -> None:
        """Answered by Pong once everything sent before was taken."""
        self._send(frames.encode_ping(token))
