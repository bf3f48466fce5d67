"""As much HTTP/1.1 as E2B's SDKs and a port proxy speak: requests with bounded bodies, answers whole or streamed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from . import limits

_REASONS = {200: "OK", 201: "Created", 204: "No Content"}


class ProblemError(Exception):
    """An answer that is not what was asked for. `message` is for people."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True)
class Request:
    """`path` is without the query."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> dict[str, Any]:
        """The body as an object; empty is an empty one. Raises ProblemError."""
        try:
            value = json.loads(self.body) if self.body.strip() else {}
        except ValueError:
            raise ProblemError(400, "the body is not JSON") from None
        if not isinstance(value, dict):
            raise ProblemError(400, "the body is not a JSON object")
        return value


class Connection:
    """One client. `gone` is set when it hangs up while an answer is under way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.gone = asyncio.Event()
        self.keep = True
        self._streaming = False

    async def request(self) -> Request | None:
        """The next one; None when there is none. Raises ProblemError."""
        try:
            async with asyncio.timeout(limits.IDLE_TIMEOUT_S):
                head = await self._reader.readuntil(b"\r\n\r\n")
                return await self._rest(head)
        except (asyncio.IncompleteReadError, TimeoutError, ConnectionError):
            return None
        except asyncio.LimitOverrunError:
            raise ProblemError(431, "the request's head is too large") from None

    async def _rest(self, head: bytes) -> Request:
        first, *lines = head.decode("latin-1").split("\r\n")
        words = first.split(" ")
        if len(words) != 3:
            raise ProblemError(400, "this is not HTTP")
        headers = {}
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        self.keep = words[2] == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
        if headers.get("expect", "").lower() == "100-continue":
            self._writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await self._body(headers)
        return Request(words[0], words[1].partition("?")[0], headers, body)

    async def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding", "").lower() == "chunked":
            return await self._chunks()
        text = headers.get("content-length", "0")
        if not text.isdigit():
            raise ProblemError(400, "Content-Length is not a number")
        if int(text) > limits.BODY_BYTES_MAX:
            raise ProblemError(413, f"the body is larger than {limits.BODY_BYTES_MAX} bytes")
        return await self._reader.readexactly(int(text))

    async def _chunks(self) -> bytes:
        body = bytearray()
        while True:
            try:
                size = int((await self._reader.readuntil(b"\r\n")).partition(b";")[0], 16)
            except ValueError:
                raise ProblemError(400, "this is not a chunked body") from None
            if size < 0 or len(body) + size > limits.BODY_BYTES_MAX:
                raise ProblemError(413, f"the body is larger than {limits.BODY_BYTES_MAX} bytes")
            body += await self._reader.readexactly(size)
            await self._reader.readuntil(b"\r\n")
            if size == 0:
                return bytes(body)

    @contextlib.asynccontextmanager
    async def watched(self) -> Any:
        """Meanwhile `gone` is set when the client hangs up. What it sends in between is no use: then we part."""

        async def watch() -> None:
            with contextlib.suppress(ConnectionError):
                if await self._reader.read(1):
                    self.keep = False
                    return
            self.gone.set()

        task = asyncio.create_task(watch())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def answer(self, status: int, value: Any = None) -> None:
        """A whole answer."""
        body = b"" if status == 204 else json.dumps(value).encode()
        self._head(status, _REASONS.get(status, ""), f"Content-Length: {len(body)}\r\n" if status != 204 else "")
        self._writer.write(body)
        await self._writer.drain()

    async def refuse(self, problem: ProblemError) -> None:
        """The reason goes into the status line too: JavaScript's SDK shows nothing else."""
        body = json.dumps({"code": problem.status, "message": problem.message}).encode()
        reason = problem.message.encode("ascii", "replace").decode().replace("\r", " ").replace("\n", " ")[:200]
        self._head(problem.status, reason, f"Content-Length: {len(body)}\r\n")
        self._writer.write(body)
        await self._writer.drain()

    def _head(self, status: int, reason: str, more: str) -> None:
        keep = "keep-alive" if self.keep else "close"
        head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nConnection: {keep}\r\n{more}\r\n"
        self._writer.write(head.encode("latin-1"))

    async def start_lines(self) -> None:
        """The head of an answer that is streamed line by line."""
        self._streaming = True
        self._head(200, "OK", "Transfer-Encoding: chunked\r\nCache-Control: no-store\r\n")
        await self._writer.drain()

    async def send(self, data: bytes) -> None:
        """A piece of it; returns when the client takes more."""
        for start in range(0, len(data), limits.WRITE_BYTES):
            piece = data[start : start + limits.WRITE_BYTES]
            self._writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await self._writer.drain()

    async def end_lines(self) -> None:
        self._streaming = False
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    def close(self) -> None:
        """A stream that was not ended is cut, so that nobody takes it for whole."""
        if self._streaming:
            self._writer.transport.abort()
        self._writer.close()


Handler = Callable[[Request, Connection], Awaitable[None]]


class Server:
    """Serves connections by `handler`."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._count = 0

    async def start(self, host: str, port: int) -> asyncio.Server:
        return await asyncio.start_server(self._serve, host, port, limit=limits.HEAD_BYTES_MAX, backlog=128)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(reader, writer)
        self._count += 1
        try:
            if self._count > limits.CONNECTIONS_MAX:
                connection.keep = False
                await connection.refuse(ProblemError(503, f"more than {limits.CONNECTIONS_MAX} connections"))
            while connection.keep:
                if not await self._one(connection):
                    break
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._count -= 1
            connection.close()

    async def _one(self, connection: Connection) -> bool:
        try:
            request = await connection.request()
            if request is None:
                return False
        except ProblemError as problem:
            connection.keep = False
            await connection.refuse(problem)
            return False
        try:
            await self._handler(request, connection)
        except ProblemError as problem:
            await connection.refuse(problem)
        return True
