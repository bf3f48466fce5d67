"""What the asynchronous SDK is made of. `_blocking` has the same, name by name and with the same shape: `AsyncName` is
`Name` there, `async_name` is `name`. The generator turns one into the other; nothing else in `_async` touches asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from sandpty.sdk._blocking import PIECE_BYTES, READ_BYTES, as_bytes, pieces

AsyncLock = asyncio.Lock
AsyncEvent = asyncio.Event
async_sleep = asyncio.sleep


async def async_acquired(lock: asyncio.Lock, timeout_s: float) -> bool:
    """Whether the lock could be had within that time; 0 asks once."""
    if timeout_s == 0 and lock.locked():
        return False
    try:
        async with asyncio.timeout(timeout_s or None):
            return await lock.acquire()
    except TimeoutError:
        return False


class AsyncByteStream:
    """A TCP connection, with TLS or without. One task may read while another writes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, host: str, port: int, timeout_s: float) -> AsyncByteStream:
        """Raises OSError (TimeoutError is one)."""
        async with asyncio.timeout(timeout_s):
            return cls(*await asyncio.open_connection(host, port))

    async def start_tls(self, host: str, timeout_s: float) -> None:
        """From now on with TLS, to a server that proves to be `host`. Raises OSError."""
        async with asyncio.timeout(timeout_s):
            await self._writer.start_tls(ssl.create_default_context(), server_hostname=host)

    async def read(self, timeout_s: float) -> bytes:
        """What is there; empty at the end. Raises OSError (TimeoutError is one)."""
        async with asyncio.timeout(timeout_s):
            return await self._reader.read(READ_BYTES)

    async def write(self, data: bytes, timeout_s: float | None) -> None:
        """All of it; None waits for ever. Raises OSError (TimeoutError is one)."""
        self._writer.write(data)
        async with asyncio.timeout(timeout_s):
            await self._writer.drain()

    @property
    def is_readable(self) -> bool:
        """Whether the end has come, that nobody has read."""
        return self._reader.at_eof() or self._writer.is_closing() or bool(self._reader.exception())

    def close(self) -> None:
        self._writer.transport.abort()


class AsyncPulse:
    """Calls `beat` every `period_s` until it is let go."""

    def __init__(self, beat: Callable[[], Awaitable[None]], period_s: float) -> None:
        async def run() -> None:
            while True:
                await asyncio.sleep(period_s)
                await beat()

        self._task = asyncio.create_task(run(), name="sandpty heartbeat")

    def leave(self) -> None:
        self._task.cancel()


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


AsyncCallback = Callable[[Any], Awaitable[None] | None]


async def async_call(callback: AsyncCallback, value: Any) -> None:
    """Call it, and wait for what it returns when that can be waited for."""
    result = callback(value)
    if result is not None and hasattr(result, "__await__"):
        await result


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
