"""After an upgrade: bytes both ways, whatever they mean, each side as fast as the other takes them."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, cast

from aiohttp import web

from sandpty import config
from sandpty.server.ports.links import Link


class _FromClient:
    """Stands where aiohttp's WebSocket parser would, and takes what the client sends. Bounded by pausing the client."""

    def __init__(self, request: web.Request) -> None:
        self._transport = request.transport
        self._data: list[bytes] = []
        self._size = 0
        self._arrived = asyncio.Event()
        self._ended = False

    def feed_data(self, data: bytes, size: int = 0) -> tuple[bool, bytes]:
        """Called by aiohttp's connection."""
        self._data.append(bytes(data))
        self._size += len(data)
        if self._size > config.PORT_READ_BYTES and self._transport is not None:
            self._transport.pause_reading()
        self._arrived.set()
        return False, b""

    def feed_eof(self) -> None:
        self._ended = True
        self._arrived.set()

    def set_exception(self, *_: object) -> None:
        self.feed_eof()

    def rest(self) -> bytes:
        """What arrived and was not taken."""
        return b"".join(self._data)

    async def take(self) -> bytes:
        """What has arrived; empty at the end."""
        await self._arrived.wait()
        data = b"".join(self._data)
        self._data.clear()
        if self._size > config.PORT_READ_BYTES and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()
        self._size = 0
        if not self._ended:
            self._arrived.clear()
        return data


async def tunnel(request: web.Request, link: Link) -> None:
    """Until the service has closed its side, or the client has gone. The 101 has been written."""
    from_client = _FromClient(request)
    protocol = cast(Any, request.protocol)  # its parser need not be one of WebSockets: only `feed_data` is called
    protocol.set_parser(from_client)
    going_in = asyncio.create_task(_send(from_client, link), name="tunnel to the guest")
    try:
        with contextlib.suppress(ConnectionError):
            while data := await link.read():
                if request.transport is None or request.transport.is_closing():
                    return
                request.transport.write(data)
                await request.writer.drain()
    finally:
        going_in.cancel()
        await asyncio.gather(going_in, return_exceptions=True)
        if rest := from_client.rest():
            link.write_last(rest)  # the client said its last words and hung up


async def _send(from_client: _FromClient, link: Link) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await from_client.take():
            await link.write(data)
        link.end()
