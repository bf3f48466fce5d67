"""Both ends of the port proxy for tests: services that say any bytes, and clients that read every byte."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from tests.component.fake_host import FakeHost

DEADLINE_S = 30.0
HEAD_BYTES = 1 << 20


@dataclass
class Seen:
    """A request as a service got it, and the connection that it came on."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    line: str = ""
    headers: tuple[tuple[str, str], ...] = ()

    def all(self, name: str) -> list[str]:
        """The values of a header."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    async def read_head(self) -> Seen:
        """Read the head that comes now."""
        text = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        self.line, *lines = text[:-4].split("\r\n")
        self.headers = tuple((name, value) for name, _, value in (line.partition(": ") for line in lines))
        return self

    async def body(self) -> bytes:
        """The body, framed as the head says."""
        if self.all("Transfer-Encoding"):
            data = b""
            while size := int(await self.reader.readline(), 16):
                data += await self.reader.readexactly(size)
                await self.reader.readline()
            await self.reader.readline()
            return data
        return await self.reader.readexactly(int((self.all("Content-Length") or ["0"])[0]))

    async def say(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()


Service = Callable[[Seen], Awaitable[None]]


@contextlib.asynccontextmanager
async def service(behaviour: Service, *, read_head: bool = True) -> AsyncIterator[int]:
    """A service on a free port of the loopback; the port."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        seen = Seen(reader, writer)
        try:
            if read_head:
                await seen.read_head()
            await behaviour(seen)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=HEAD_BYTES)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def says(answer: bytes) -> Service:
    """A service that answers any request with these bytes and hangs up."""

    async def behaviour(seen: Seen) -> None:
        await seen.say(answer)

    return behaviour


@dataclass
class Answer:
    """What a client got: `broken` when it ended by a reset or in the middle."""

    status: int
    headers: dict[str, str]
    body: bytes
    broken: bool = False


class Client:
    """One connection to the server, byte for byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the answer that comes now."""
        text = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), DEADLINE_S)).decode("latin-1")
        line, *lines = text[:-4].split("\r\n")
        match = re.fullmatch(r"HTTP/1\.[01] (\d{3}) ?.*", line)
        assert match, line
        return int(match[1]), {name.lower(): value for name, _, value in (each.partition(": ") for each in lines)}

    async def answer(self, *, method: str = "GET") -> Answer:
        """A whole answer."""
        status, headers = await self.head()
        answer = Answer(status, headers, b"")
        if method == "HEAD" or status in (204, 304):
            return answer
        try:
            async with asyncio.timeout(DEADLINE_S):
                if headers.get("transfer-encoding") == "chunked":
                    while size := int(await self.reader.readuntil(b"\r\n"), 16):
                        answer.body += await self.reader.readexactly(size)
                        assert await self.reader.readexactly(2) == b"\r\n"
                    assert await self.reader.readexactly(2) == b"\r\n"
                elif "content-length" in headers:
                    answer.body = await self.reader.readexactly(int(headers["content-length"]))
                else:
                    answer.body = await self.reader.read(-1)
        except (ConnectionError, asyncio.IncompleteReadError):
            answer.broken = True
        return answer

    async def ended(self) -> bytes:
        """What comes up to the end of the connection, however that ends."""
        data = b""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(DEADLINE_S):
                while more := await self.reader.read(65536):
                    data += more
        return data


@contextlib.asynccontextmanager
async def client(host: FakeHost) -> AsyncIterator[Client]:
    """A connection."""
    port = int(host.url.rsplit(":", 1)[1])
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=HEAD_BYTES)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


def get(sandbox_id: str, port: int, path: str = "/", *headers: str, method: str = "GET", version: str = "1.1") -> bytes:
    """A request without a body, for a port of a sandbox by its host name."""
    lines = [f"{method} {path} HTTP/{version}", f"Host: {port}-{sandbox_id}.example.test", *headers, "", ""]
    return "\r\n".join(lines).encode("latin-1")


async def ask(host: FakeHost, request: bytes, *, method: str = "GET") -> Answer:
    """One request on a connection of its own."""
    async with client(host) as connected:
        await connected.send(request)
        return await connected.answer(method=method)
