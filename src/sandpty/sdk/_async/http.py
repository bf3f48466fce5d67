"""Requests with small bodies, on connections that are kept: HTTP/1.1 by h11.

httpx can do all this and more, and takes a fifth of a second to load: longer than a whole `sandpty exec` may take. It
serves where a proxy is to be used, and where bodies are streams.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import h11

from sandpty.sdk._concurrency import AsyncByteStream
from sandpty.wire.errors import SandptyError

CONNECT_TIMEOUT_S = 5.0
IDLE_MOST = 8  # connections kept for the next requests


@dataclass(frozen=True, slots=True)
class Answer:
    """`body` is whole, and decoded by nobody."""

    status: int
    body: bytes


class AsyncHttp:
    """One server's, at `url`. `close` it. Every request may have a connection to itself."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._tls = parts.scheme == "https"
        try:
            self._port = parts.port or (443 if self._tls else 80)
        except ValueError as error:
            raise SandptyError("bad_argument", f"{url!r} is not the address of a server") from error
        self._prefix = parts.path.rstrip("/")
        self._headers = [("Host", parts.netloc.rpartition("@")[2]), *headers.items()]
        self._idle: list[_Connection] = []

    async def close(self) -> None:
        while self._idle:
            self._idle.pop().close()

    async def ask(self, method: str, path: str, body: bytes = b"", *, kind: str = "", timeout_s: float) -> Answer:
        """`kind`: the body's content type. Raises OSError (TimeoutError is one), h11.ProtocolError."""
        headers = [*self._headers, ("Content-Length", str(len(body)))] if body or method != "GET" else self._headers
        if kind:
            headers = [*headers, ("Content-Type", kind)]
        request = h11.Request(method=method, target=self._prefix + path, headers=headers)
        connection = self._take_idle() or await self._connect()
        try:
            answer = await connection.exchange(request, body, timeout_s)
        except BaseException:
            connection.close()
            raise
        if connection.is_reusable and len(self._idle) < IDLE_MOST:
            self._idle.append(connection)
        else:
            connection.close()
        return answer

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_stale:
                return connection
            connection.close()
        return None

    async def _connect(self) -> _Connection:
        """Raises OSError, but no TimeoutError: that is for servers that do not answer."""
        try:
            stream = await AsyncByteStream.open(self._host, self._port, tls=self._tls, timeout_s=CONNECT_TIMEOUT_S)
        except TimeoutError as error:
            raise ConnectionError(f"no connection within {CONNECT_TIMEOUT_S:g} s") from error
        return _Connection(stream)


class _Connection:
    def __init__(self, stream: AsyncByteStream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT)

    @property
    def is_reusable(self) -> bool:
        """After an exchange: whether there can be another."""
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    @property
    def is_stale(self) -> bool:
        """Whether the server has closed it, or said something nobody asked for."""
        return self._stream.is_readable

    def close(self) -> None:
        self._stream.close()

    async def exchange(self, request: h11.Request, body: bytes, timeout_s: float) -> Answer:
        if self.is_reusable:
            self._http.start_next_cycle()
        parts = [self._http.send(request), self._http.send(h11.Data(data=body)), self._http.send(h11.EndOfMessage())]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have answered before it read all
            await self._stream.write(b"".join(part for part in parts if part), timeout_s)
        status, answer = 0, bytearray()
        while not isinstance(event := self._http.next_event(), h11.EndOfMessage):
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._stream.read(timeout_s))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                answer += event.data
            elif isinstance(event, h11.ConnectionClosed):
                raise ConnectionResetError("the server closed the connection without an answer")
        return Answer(status, bytes(answer))
