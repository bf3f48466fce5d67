"""What differs between the asynchronous source and the synchronous SDK that is generated from it.

Each thing is here twice, `AsyncName` and `Name` (or `async_name` and `name`), with the same shape; the generator turns
one into the other. Nothing else in `_async` may touch asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from sandpty.wire.frames import MAX_FRAME_BYTES

if TYPE_CHECKING:  # each flavour loads its own when it is used
    import websockets.asyncio.client
    import websockets.sync.client

OPEN_TIMEOUT_S = 10.0
HEARTBEAT_S = 15.0  # a connection that died silently is noticed within twice this
CLOSE_TIMEOUT_S = 2.0
QUEUED_MESSAGES = 16  # received but not yet consumed; above it the socket is not read
READ_BYTES = 64 * 1024
JOIN_TIMEOUT_S = 10.0  # of a thread whose connection was closed

AsyncLock = asyncio.Lock
Lock = threading.RLock
AsyncEvent = asyncio.Event
Event = threading.Event
AsyncSocket: TypeAlias = "websockets.asyncio.client.ClientConnection"
Socket: TypeAlias = "websockets.sync.client.ClientConnection"
async_sleep = asyncio.sleep
sleep = time.sleep


def _options(headers: Mapping[str, str], *, direct: bool, patient: bool) -> dict[str, Any]:
    return {
        "additional_headers": dict(headers),
        "compression": None,
        "max_size": MAX_FRAME_BYTES,
        "max_queue": QUEUED_MESSAGES,
        "open_timeout": OPEN_TIMEOUT_S,
        "close_timeout": CLOSE_TIMEOUT_S,
        "ping_interval": HEARTBEAT_S,
        "ping_timeout": None if patient else HEARTBEAT_S,
        "proxy": None if direct else True,
    }


async def async_open_socket(
    address: str, headers: Mapping[str, str], *, direct: bool, patient: bool = False
) -> AsyncSocket:
    """A WebSocket; a patient one waits for ever for heartbeats. Raises InvalidStatus, OSError, WebSocketException."""
    from websockets.asyncio.client import connect

    return await connect(address, **_options(headers, direct=direct, patient=patient))


def open_socket(address: str, headers: Mapping[str, str], *, direct: bool, patient: bool = False) -> Socket:
    """A WebSocket; a patient one waits for ever for heartbeats. Raises InvalidStatus, OSError, WebSocketException."""
    from websockets.sync.client import connect

    opened: Socket = connect(address, **_options(headers, direct=direct, patient=patient)).__enter__()
    return opened


class AsyncByteStream:
    """A TCP connection, with TLS or without."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, host: str, port: int, *, tls: bool, timeout_s: float) -> AsyncByteStream:
        """Raises OSError (TimeoutError is one)."""
        async with asyncio.timeout(timeout_s):
            context = ssl.create_default_context() if tls else None
            return cls(*await asyncio.open_connection(host, port, ssl=context))

    async def read(self, timeout_s: float) -> bytes:
        """What is there; empty at the end. Raises OSError (TimeoutError is one)."""
        async with asyncio.timeout(timeout_s):
            return await self._reader.read(READ_BYTES)

    async def write(self, data: bytes, timeout_s: float) -> None:
        """Raises OSError (TimeoutError is one)."""
        self._writer.write(data)
        async with asyncio.timeout(timeout_s):
            await self._writer.drain()

    @property
    def is_readable(self) -> bool:
        """Whether something, or the end, has come that nobody has read."""
        return self._reader.at_eof() or self._writer.is_closing() or bool(self._reader.exception())

    def close(self) -> None:
        self._writer.transport.abort()


class ByteStream:
    """A TCP connection, with TLS or without."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected

    @classmethod
    def open(cls, host: str, port: int, *, tls: bool, timeout_s: float) -> ByteStream:
        """Raises OSError (TimeoutError is one)."""
        connected = socket.create_connection((host, port), timeout_s)
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls:
                connected = ssl.create_default_context().wrap_socket(connected, server_hostname=host)
        except BaseException:
            connected.close()
            raise
        return cls(connected)

    def read(self, timeout_s: float) -> bytes:
        """What is there; empty at the end. Raises OSError (TimeoutError is one)."""
        self._socket.settimeout(timeout_s)
        return self._socket.recv(READ_BYTES)

    def write(self, data: bytes, timeout_s: float) -> None:
        """Raises OSError (TimeoutError is one)."""
        self._socket.settimeout(timeout_s)
        self._socket.sendall(data)

    @property
    def is_readable(self) -> bool:
        """Whether something, or the end, has come that nobody has read."""
        try:
            return bool(select.select([self._socket], [], [], 0)[0])
        except (OSError, ValueError):  # closed, or a descriptor beyond what select knows
            return True

    def close(self) -> None:
        self._socket.close()


async def async_receive(socket: AsyncSocket, timeout_s: float | None) -> str | bytes:
    """The next message. Raises TimeoutError, ConnectionClosed."""
    async with asyncio.timeout(timeout_s):
        return await socket.recv()


def receive(socket: Socket, timeout_s: float | None) -> str | bytes:
    """The next message. Raises TimeoutError, ConnectionClosed."""
    message: str | bytes = socket.recv(timeout_s)
    return message


class AsyncWorker:
    """Runs one function beside its caller. `join` waits for its end and raises what it raised."""

    def __init__(self, work: Callable[[], Awaitable[None]], name: str) -> None:
        async def run() -> None:
            await work()

        self._task = asyncio.create_task(run(), name=name)

    @property
    def is_current(self) -> bool:
        """Whether the caller is this worker itself."""
        return asyncio.current_task() is self._task

    async def join(self) -> None:
        await asyncio.shield(self._task)

    async def leave(self) -> None:
        """Wait for the end of a worker that has been told to end; what it raises is nobody's any more."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await self._task


class Worker:
    """Runs one function in a thread that does not keep the program alive. `join` raises what it raised."""

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self._work = work
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._error = error

    @property
    def is_current(self) -> bool:
        """Whether the caller is this worker itself."""
        return threading.current_thread() is self._thread

    def join(self) -> None:
        self._thread.join()
        if self._error is not None:
            raise self._error

    def leave(self) -> None:
        """Wait for the end of a worker that has been told to end; what it raises is nobody's any more."""
        self._thread.join(JOIN_TIMEOUT_S)


AsyncCallback = Callable[[Any], Awaitable[None] | None]
Callback = Callable[[Any], None]


async def async_call(callback: AsyncCallback, value: Any) -> None:
    """Call it, and wait for what it returns when that can be waited for."""
    result = callback(value)
    if result is not None and hasattr(result, "__await__"):
        await result


def call(callback: Callback, value: Any) -> None:
    """Call it."""
    callback(value)


PIECE_BYTES = 256 * 1024  # of what is uploaded: one write of the server's, too


async def async_pieces(data: Any) -> AsyncIterator[bytes]:
    """Content as it is sent: of text, bytes, a file object (read in a thread), an iterable or an async iterable."""
    if hasattr(data, "__aiter__"):
        async for piece in data:
            yield as_bytes(piece)
    elif hasattr(data, "read"):
        while piece := as_bytes(await asyncio.to_thread(data.read, PIECE_BYTES)):
            yield piece
    else:
        for piece in pieces(data):
            yield piece


def pieces(data: Any) -> Iterator[bytes]:
    """Content as it is sent: of text, bytes, a file object or an iterable."""
    if isinstance(data, str | bytes | bytearray | memoryview):
        view = memoryview(as_bytes(data))
        for at in range(0, len(view), PIECE_BYTES):
            yield bytes(view[at : at + PIECE_BYTES])
    elif hasattr(data, "read"):
        while piece := as_bytes(data.read(PIECE_BYTES)):
            yield piece
    elif hasattr(data, "__iter__"):
        yield from map(as_bytes, data)
    else:
        kind = type(data).__name__
        raise TypeError(f"content is text, bytes, a binary file or an iterable of bytes, not {kind}")


def as_bytes(piece: Any) -> bytes:
    """Text as UTF-8."""
    if isinstance(piece, str):
        return piece.encode()
    if isinstance(piece, bytes | bytearray | memoryview):
        return bytes(piece)
    raise TypeError(f"a piece of content is bytes, not {type(piece).__name__}")
