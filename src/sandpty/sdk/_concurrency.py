"""What differs between the asynchronous source and the synchronous SDK that is generated from it.

Each thing is here twice, `AsyncName` and `Name` (or `async_name` and `name`), with the same shape; the generator turns
one into the other. Nothing else in `_async` may touch asyncio.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import websockets.asyncio.client
import websockets.sync.client

from sandpty.wire.frames import MAX_FRAME_BYTES

OPEN_TIMEOUT_S = 10.0
HEARTBEAT_S = 15.0  # a connection that died silently is noticed within twice this
CLOSE_TIMEOUT_S = 2.0
QUEUED_MESSAGES = 16  # received but not yet consumed; above it the socket is not read
JOIN_TIMEOUT_S = 10.0  # of a thread whose connection was closed

AsyncLock = asyncio.Lock
Lock = threading.RLock
AsyncEvent = asyncio.Event
Event = threading.Event
AsyncSocket = websockets.asyncio.client.ClientConnection
Socket = websockets.sync.client.ClientConnection
async_sleep = asyncio.sleep
sleep = time.sleep


def _options(headers: Mapping[str, str], *, direct: bool) -> dict[str, Any]:
    return {
        "additional_headers": dict(headers),
        "compression": None,
        "max_size": MAX_FRAME_BYTES,
        "max_queue": QUEUED_MESSAGES,
        "open_timeout": OPEN_TIMEOUT_S,
        "close_timeout": CLOSE_TIMEOUT_S,
        "ping_interval": HEARTBEAT_S,
        "ping_timeout": HEARTBEAT_S,
        "proxy": None if direct else True,
    }


async def async_open_socket(address: str, headers: Mapping[str, str], *, direct: bool) -> AsyncSocket:
    """A WebSocket. Raises InvalidStatus, OSError, WebSocketException."""
    return await websockets.asyncio.client.connect(address, **_options(headers, direct=direct))


def open_socket(address: str, headers: Mapping[str, str], *, direct: bool) -> Socket:
    """A WebSocket. Raises InvalidStatus, OSError, WebSocketException."""
    opened: Socket = websockets.sync.client.connect(address, **_options(headers, direct=direct)).__enter__()
    return opened


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
