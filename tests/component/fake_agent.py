"""Agents that are not ours: a unix socket that says whatever a test tells it to."""

from __future__ import annotations

import asyncio
import select
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType

from sandpty.wire import frames
from sandpty.wire.frames import FrameReader, FrameType
from tests.waiting import until

HELLO = frames.frame(FrameType.AGENT_HELLO, struct.pack("<HIQ", 1, 0, 1_700_000_000_000))
STARTED = frames.frame(FrameType.STARTED, struct.pack("<QI", 1, 42))
DONE = frames.frame(FrameType.DONE)
RUNNING_PTY = 1 | 2 | 8


def attached(start: int = 0, end: int = 0, flags: int = RUNNING_PTY) -> bytes:
    """ATTACHED to process 1."""
    return frames.frame(FrameType.ATTACHED, struct.pack("<QIQQHHBQ", 1, 42, start, end, 80, 24, flags, 0))


def output(offset: int, data: bytes, stream: int = 0) -> bytes:
    """OUTPUT, of the PTY unless told."""
    return frames.frame(FrameType.OUTPUT, struct.pack("<BQ", stream, offset) + data)


def gap(start: int, end: int) -> bytes:
    """GAP."""
    return frames.frame(FrameType.GAP, struct.pack("<QQ", start, end))


def exit_(end: int, code: int = 0, reason: int = 0) -> bytes:
    """EXIT with a code."""
    return frames.frame(FrameType.EXIT, struct.pack("<BBBBQ", 0, code, reason, 0, end))


def error(code: int, message: bytes = b"") -> bytes:
    """ERROR."""
    return frames.frame(FrameType.ERROR, struct.pack("<HI", code, len(message)) + message)


def process(argv: tuple[bytes, ...] = (b"sh",), started_ms: int = 1_700_000_000_000) -> bytes:
    """PROCESS 1, running."""
    head = struct.pack("<QIBHHQQQQBBBBI", 1, 42, 0b11, 80, 24, 0, 0, started_ms, 0, 0, 0, 0, 0, 0)
    texts = [struct.pack("<I", len(item)) + item for item in argv]
    body = b"\0\0\0\0" * 3 + struct.pack("<I", len(texts)) + b"".join(texts) + b"\0\0\0\0"
    return frames.frame(FrameType.PROCESS, head + body)


class Peer:
    """The server, seen from the agent."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.writer = writer
        self._frames = FrameReader()
        self._waiting: list[tuple[int, bytes]] = []

    async def request(self) -> tuple[int, bytes]:
        """The next frame the server says. Raises EOFError when it has closed."""
        while not self._waiting:
            data = await self._reader.read(65536)
            if not data:
                raise EOFError
            self._waiting = self._frames.feed(data)
        return self._waiting.pop(0)

    async def greeted(self) -> tuple[int, bytes]:
        """Take the server's HELLO, answer it; the request that follows."""
        kind, _ = await self.request()
        assert kind == FrameType.HELLO
        await self.say(HELLO)
        return await self.request()

    async def say(self, *said: bytes) -> None:
        """Say these frames (or whatever bytes they are), and wait until they are taken."""
        self.writer.write(b"".join(said))
        await self.writer.drain()

    async def until_closed(self) -> None:
        """Take and ignore what the server says until it closes."""
        try:
            while True:
                await self.request()
        except EOFError:
            return

    async def deaf(self, *said: bytes) -> None:
        """Never read again; say these; wait until the server hangs up."""
        self.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await self.say(*said)
        poll = select.poll()
        poll.register(self.writer.get_extra_info("socket").fileno(), 0)  # POLLHUP comes unasked
        await until(lambda: poll.poll(0), 30)


Behaviour = Callable[[Peer], Awaitable[None]]


class FakeAgent:
    """Listens at `path`; every connection gets `behaviour`, and is closed when that returns."""

    def __init__(self, path: Path, behaviour: Behaviour) -> None:
        self.path = path
        self.behaviour = behaviour
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            await self.behaviour(Peer(reader, writer))
        except (EOFError, ConnectionError):
            pass
        finally:
            self.connections -= 1
            self._tasks.discard(task)
            writer.transport.abort()

    async def __aenter__(self) -> FakeAgent:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
