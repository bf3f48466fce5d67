"""The smallest HTTP and WebSocket client that can measure a server: blocking sockets, one request at a time."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import time
from collections.abc import Iterator
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 30.0
RECEIVE_BYTES = 256 * 1024
SLOW_RECEIVE_BYTES = 8 * 1024
PACE_SLACK_S = 0.005  # how late a sleep may have ended without slowing the reader further

INPUT, ACK, ATTACHED, OUTPUT, GAP, EXIT, ERROR = 0x20, 0x24, 0x91, 0xA0, 0xA1, 0xA3, 0xFF
NO_OFFSET = 2**64 - 1
PROMPT_ENDS = (b"$ ", b"# ")


class RefusedError(Exception):
    """The server answered with an error; the text is its answer."""


def _connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname, parts.port), timeout=TIMEOUT_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class Pace:
    """Makes a reader slow: sleeps after each read so that it takes `bytes_per_s`. Time spent waiting is not made up."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._due = time.perf_counter()

    def took(self, size: int) -> None:
        """Sleep until the next read may come."""
        now = time.perf_counter()
        self._due = max(self._due, now - PACE_SLACK_S) + size / self._bytes_per_s
        if self._due > now:
            time.sleep(self._due - now)


class _Buffered:
    def __init__(self, connection: socket.socket, bytes_per_s: float = 0) -> None:
        self.connection = connection
        self.buffer = bytearray()
        self._pace = Pace(bytes_per_s) if bytes_per_s else None

    def more(self) -> None:
        data = self.connection.recv(SLOW_RECEIVE_BYTES if self._pace else RECEIVE_BYTES)
        if not data:
            raise ConnectionError("the server closed the connection")
        self.buffer += data
        if self._pace:
            self._pace.took(len(data))

    def until(self, mark: bytes) -> bytes:
        while (at := self.buffer.find(mark)) < 0:
            self.more()
        return self.take(at + len(mark))

    def take(self, size: int) -> bytes:
        while len(self.buffer) < size:
            self.more()
        taken = bytes(self.buffer[:size])
        del self.buffer[:size]
        return taken


class Http:
    """One kept-alive connection to a server."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        self._stream = _Buffered(_connect(url))
        self._host = urlsplit(url).netloc
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items())

    def __enter__(self) -> Http:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._stream.connection.close()

    def _send(self, method: str, path: str, content: bytes, kind: str, extra: str = "") -> None:
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(content)}\r\n{self._headers}{extra}\r\n"
        )
        self._stream.connection.sendall(head.encode() + content)

    def _answer(self) -> tuple[int, dict[str, str]]:
        lines = self._stream.until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        fields = (line.partition(":") for line in lines[1:] if line)
        return int(lines[0].split()[1]), {name.lower(): value.strip() for name, _, value in fields}

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            return b"".join(self._chunks())
        return self._stream.take(int(headers.get("content-length", 0)))

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self._stream.until(b"\r\n").split(b";")[0], 16):
            yield self._stream.take(size + 2)[:-2]
        self._stream.until(b"\r\n")

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """Send JSON, return the answer's JSON (None when empty). Raises RefusedError on a status of 400 and more."""
        self._send(method, path, b"" if body is None else json.dumps(body).encode(), "application/json")
        status, headers = self._answer()
        content = b"" if status == 204 else self._body(headers)
        if status >= 400:
            raise RefusedError(f"{method} {path}: {status} {content[:500].decode(errors='replace')}")
        return json.loads(content) if content else None

    def stream(self, path: str, message: Any, extra: dict[str, str]) -> bytes:
        """A Connect server-stream call: the whole body of the answer, once it has ended."""
        content = json.dumps(message).encode()
        lines = "".join(f"{name}: {value}\r\n" for name, value in extra.items())
        self._send("POST", path, b"\0" + struct.pack(">I", len(content)) + content, "application/connect+json", lines)
        status, headers = self._answer()
        body = self._body(headers)
        if status != 200:
            raise RefusedError(f"POST {path}: {status} {body[:500].decode(errors='replace')}")
        return body


class WebSocket:
    """One native attachment. `offset` is that of the next output."""

    def __init__(self, url: str, path: str, key: str, bytes_per_s: float = 0) -> None:
        connection = _connect(url)
        self._stream = _Buffered(connection, bytes_per_s)
        self.offset = 0
        nonce = base64.b64encode(os.urandom(16)).decode()
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {nonce}\r\nX-API-Key: {key}\r\n\r\n".encode()
        )
        head = self._stream.until(b"\r\n\r\n")
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise RefusedError(f"GET {path}: {head[:200].decode(errors='replace')}")

    def __enter__(self) -> WebSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._stream.connection.close()

    def _send(self, opcode: int, data: bytes) -> None:
        head = bytes((0x80 | opcode, 0x80 | len(data))) if len(data) < 126 else b""
        if not head:
            head = bytes((0x80 | opcode, 0x80 | 126)) + struct.pack(">H", len(data))
        self._stream.connection.sendall(head + b"\0\0\0\0" + data)  # the mask 0 leaves the data as it is

    def say(self, message: Any) -> None:
        """Send a text: JSON."""
        self._send(1, json.dumps(message).encode())

    def heard(self) -> Any:
        """The next message, which must be a text, as JSON."""
        opcode, data = self._message()
        if opcode != 1:
            raise ConnectionError(f"no text: {data[:300].decode(errors='replace')}")
        return json.loads(data)

    def type(self, data: bytes) -> None:
        """Send INPUT."""
        self._send(2, struct.pack("<BQ", INPUT, NO_OFFSET) + data)

    def acknowledge(self) -> None:
        """Send ACK of everything received."""
        self._send(2, struct.pack("<BQ", ACK, self.offset))

    def _message(self) -> tuple[int, bytes]:
        first, length = self._stream.take(2)
        if length == 126:
            (length,) = struct.unpack(">H", self._stream.take(2))
        elif length == 127:
            (length,) = struct.unpack(">Q", self._stream.take(8))
        return first & 0x0F, self._stream.take(length)

    def frame(self) -> tuple[int, bytes]:
        """The next frame: its type and payload. Raises ConnectionError at the end."""
        while True:
            opcode, data = self._message()
            if opcode == 9:
                self._send(10, data)
            elif opcode == 8:
                raise ConnectionError(f"closed: {data[2:].decode(errors='replace')}")
            elif opcode == 2:
                return data[0], data[1:]

    def output(self) -> bytes:
        """The next OUTPUT's bytes; b"" at EXIT."""
        while True:
            kind, payload = self.frame()
            if kind == OUTPUT:
                self.offset = struct.unpack_from("<Q", payload, 1)[0] + len(payload) - 9
                return payload[9:]
            if kind == EXIT:
                return b""
            if kind == ERROR:
                raise RefusedError(payload[6:].decode(errors="replace"))

    def until(self, *marks: bytes) -> bytes:
        """Everything up to an output that ends with one of `marks`."""
        seen = bytearray()
        while not seen.endswith(marks):
            data = self.output()
            if not data:
                raise ConnectionError(f"the process ended: {bytes(seen[-300:])!r}")
            seen += data
        return bytes(seen)
