"""TLS of a sandbox ended here, for hosts whose requests are given headers.

asyncio starts TLS on connections of which nothing was read yet; of these the ClientHello was. So what the sandbox says
and hears goes through a pair of sockets, at whose other end TLS begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sandpty import config
from sandpty.egress.http_requests import RequestError, Requests
from sandpty.egress.relay import Relay
from sandpty.egress.upstream import Streams, bound


@asynccontextmanager
async def decrypted(client: Streams, said: bytes, context: ssl.SSLContext, chunk_bytes: int) -> AsyncIterator[Streams]:
    """What the sandbox says inside TLS, and hears. Raises OSError, TimeoutError."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        outer = await asyncio.open_connection(sock=ours, limit=chunk_bytes)
        bound(outer[1], chunk_bytes)
        carrying = asyncio.create_task(Relay(*client, *outer, first=said, chunk_bytes=chunk_bytes).run())
        try:
            async with asyncio.timeout(config.EGRESS_OPENING_S):
                inner = await _tls_server(theirs, context, chunk_bytes)
            try:
                yield inner
            finally:
                inner[1].close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(config.EGRESS_FLUSH_S):
                    await asyncio.shield(carrying)
        finally:
            carrying.cancel()
            await asyncio.gather(carrying, return_exceptions=True)


async def _tls_server(end: socket.socket, context: ssl.SSLContext, chunk_bytes: int) -> Streams:
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=chunk_bytes)
    protocol = asyncio.StreamReaderProtocol(reader)
    end.setblocking(False)
    transport, _ = await loop.connect_accepted_socket(
        lambda: protocol, end, ssl=context, ssl_handshake_timeout=config.EGRESS_OPENING_S
    )
    writer = asyncio.StreamWriter(transport, protocol, reader, loop)
    bound(writer, chunk_bytes)
    return reader, writer


async def first_request(reader: asyncio.StreamReader, requests: Requests, chunk_bytes: int) -> bytes:
    """The first head, written anew, with what followed it. Raises RequestError, TimeoutError."""
    said = b""
    async with asyncio.timeout(config.EGRESS_OPENING_S):
        while not requests.host:
            data = await reader.read(chunk_bytes)
            if not data:
                raise RequestError("it asks for nothing")
            said += requests.feed(data)
    return said


def refusal(why: str) -> bytes:
    """An answer of our own, where a program can show what went wrong."""
    body = f"sandpty: {why}\n".encode()
    head = b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body
