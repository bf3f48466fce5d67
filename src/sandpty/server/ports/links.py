"""A connection to a service in a sandbox, plain or with TLS: read, write, end.

A plain one is used without a transport: bytes wait in the kernel only, and a service that hangs up while it is still
being written to is heard to its last word (a transport drops what it has not read when a write fails).
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import Protocol

from sandpty import config
from sandpty.terminal.readable import Readable


class Link(Protocol):
    """One user reads, one writes; whoever owns it closes it when both are done."""

    async def read(self) -> bytes:
        """What is there; empty at the end. Raises ConnectionError."""

    async def write(self, data: bytes) -> None:
        """Returns when there is room for more. Raises ConnectionError."""

    def write_last(self, data: bytes) -> None:
        """As much of it as there is room for, without waiting."""

    def end(self) -> None:
        """No more is written. The other side may go on."""

    def cut(self) -> None:
        """Ends both directions at once: who reads or writes learns it."""

    def close(self) -> None:
        """What was written still goes out."""


class PlainLink:
    """On a connected non-blocking socket, which it takes over."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._loop = asyncio.get_running_loop()
        self._readable = Readable(connected.fileno())

    async def read(self) -> bytes:
        while True:
            try:
                return self._socket.recv(config.PORT_READ_BYTES)
            except (BlockingIOError, InterruptedError):
                await self._readable.wait()

    async def write(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._socket, data)

    def write_last(self, data: bytes) -> None:
        with contextlib.suppress(OSError):
            self._socket.send(data)

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._readable.stop()
        self._socket.close()


class TlsLink:
    """With TLS. The service's certificate is the guest's own and is not looked at: nobody can listen on the way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, connected: socket.socket) -> TlsLink:
        """Takes the socket over. Raises OSError (ssl.SSLError is one), TimeoutError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            async with asyncio.timeout(config.GUEST_CONNECT_TIMEOUT_S):
                pair = await asyncio.open_connection(
                    sock=connected, limit=config.PORT_READ_BYTES, ssl=context, server_hostname="localhost"
                )
        except BaseException:
            connected.close()
            raise
        return cls(*pair)

    async def read(self) -> bytes:
        try:
            return await self._reader.read(config.PORT_READ_BYTES)
        except ssl.SSLError as error:
            raise ConnectionResetError("TLS was broken") from error

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def write_last(self, data: bytes) -> None:
        self._writer.write(data)

    def end(self) -> None:
        pass  # TLS has no half-closed connections that services would expect

    def cut(self) -> None:
        self._writer.transport.abort()

    def close(self) -> None:
        transport = self._writer.transport
        unsent = transport.get_write_buffer_size()
        transport.close()
        if unsent:
            asyncio.get_running_loop().call_later(config.PORT_CLOSE_GRACE_S, transport.abort)
