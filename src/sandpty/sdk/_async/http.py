"""Requests with small bodies, on connections that are kept: HTTP/1.1 by h11.

httpx can do all this and more, and takes a fifth of a second to load: longer than a whole `sandpty exec` may take. It
serves where bodies are streams, and requests that go through a proxy.
"""

from __future__ import annotations

import binascii
import contextlib
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

import h11

from sandpty.sdk._awaiting import AsyncByteStream
from sandpty.wire.errors import SandptyError

CONNECT_TIMEOUT_S = 5.0
IDLE_MOST = 8  # connections kept for the next requests
_PORTS = {"https": 443, "wss": 443}


class Answer(NamedTuple):
    """`body` is whole, and decoded by nobody."""

    status: int
    body: bytes


class Upgraded(NamedTuple):
    """A connection that speaks something else now. `rest`: what came of that already."""

    stream: AsyncByteStream
    headers: Mapping[bytes, bytes]  # names in small letters
    rest: bytes


class AsyncHttp:
    """One server's, at `url`. `close` it. Every request may have a connection to itself."""

    def __init__(self, url: str, headers: Mapping[str, str]) -> None:
        self._parts = urlsplit(url)
        port_of(self._parts)
        self._prefix = self._parts.path.rstrip("/")
        self._headers = [("Host", self._parts.netloc.rpartition("@")[2]), *headers.items()]
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
        connection = self._take_idle() or await _connect(self._parts)
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

    async def upgrade(
        self, path: str, headers: Mapping[str, str], *, proxy: SplitResult | None, timeout_s: float
    ) -> Upgraded | Answer:
        """A connection of its own, which becomes what `headers` ask for; or why not. Raises as `ask` does."""
        request = h11.Request(method="GET", target=self._prefix + path, headers=[*self._headers, *headers.items()])
        connection = await _connect(self._parts, proxy)
        try:
            answer = await connection.exchange(request, b"", timeout_s)
            if connection.is_switched:
                return Upgraded(connection.stream, connection.headers, connection.rest)
        except BaseException:
            connection.close()
            raise
        connection.close()
        return answer

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.stream.is_readable:  # else the server has closed it, or said what nobody asked for
                return connection
            connection.close()
        return None


def port_of(parts: SplitResult) -> int:
    """Of an address. Raises bad_argument."""
    try:
        return parts.port or _PORTS.get(parts.scheme, 80)
    except ValueError as error:
        raise SandptyError("bad_argument", f"{parts.geturl()!r} is not an address: {error}") from error


async def _connect(to: SplitResult, proxy: SplitResult | None = None) -> _Connection:
    """Raises OSError, but no TimeoutError: that is for servers that do not answer."""
    if proxy is not None and proxy.scheme != "http":
        raise ConnectionError(
            f"terminals do not go through {proxy.hostname}, a proxy that is reached by {proxy.scheme}"
        )
    first = proxy or to
    try:
        stream = await AsyncByteStream.open(first.hostname or "", port_of(first), CONNECT_TIMEOUT_S)
        try:
            if proxy is not None:
                await _tunnel(stream, proxy, f"{to.hostname}:{port_of(to)}")
            if to.scheme == "https":
                await stream.start_tls(to.hostname or "", CONNECT_TIMEOUT_S)
        except BaseException:
            stream.close()
            raise
    except TimeoutError as error:
        raise ConnectionError(f"no connection within {CONNECT_TIMEOUT_S:g} s") from error
    return _Connection(stream)


async def _tunnel(stream: AsyncByteStream, proxy: SplitResult, to: str) -> None:
    """Through a proxy, which sees no more than where to. Raises OSError, h11.ProtocolError."""
    headers = [("Host", to)]
    if proxy.username is not None:
        login = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}".encode()
        headers.append(("Proxy-Authorization", "Basic " + binascii.b2a_base64(login, newline=False).decode()))
    connection = _Connection(stream)
    request = h11.Request(method="CONNECT", target=to, headers=headers)
    answer = await connection.exchange(request, b"", CONNECT_TIMEOUT_S)
    if not connection.is_switched:
        raise ConnectionError(f"the proxy {proxy.hostname} answered {answer.status}")


class _Connection:
    def __init__(self, stream: AsyncByteStream) -> None:
        self.stream = stream
        self._http = h11.Connection(h11.CLIENT)
        self.headers: dict[bytes, bytes] = {}  # of the last answer, names in small letters

    @property
    def is_reusable(self) -> bool:
        """After an exchange: whether there can be another."""
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    @property
    def is_switched(self) -> bool:
        """After an exchange: whether the server speaks something else now."""
        return self._http.their_state is h11.SWITCHED_PROTOCOL

    @property
    def rest(self) -> bytes:
        """What came behind the answer."""
        return bytes(self._http.trailing_data[0])

    def close(self) -> None:
        self.stream.close()

    async def exchange(self, request: h11.Request, body: bytes, timeout_s: float) -> Answer:
        if self.is_reusable:
            self._http.start_next_cycle()
        parts = [self._http.send(request), self._http.send(h11.Data(data=body)), self._http.send(h11.EndOfMessage())]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have answered before it read all
            await self.stream.write(b"".join(part for part in parts if part), timeout_s)
        status, answer = 0, bytearray()
        while not (self.is_switched or isinstance(event := self._http.next_event(), h11.EndOfMessage)):
            if event is h11.NEED_DATA:
                self._http.receive_data(await self.stream.read(timeout_s))
            elif isinstance(event, h11.Response | h11.InformationalResponse):
                status, self.headers = event.status_code, dict(event.headers)
            elif isinstance(event, h11.Data):
                answer += event.data
            elif isinstance(event, h11.ConnectionClosed):
                raise ConnectionResetError("the server closed the connection without an answer")
        return Answer(status, bytes(answer))
