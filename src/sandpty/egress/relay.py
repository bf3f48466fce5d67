"""Two ends of a connection joined: bytes go both ways until both are done, each way at the pace of its reader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sandpty import config
from sandpty.egress.http_requests import RequestError, Requests

_SWITCHED = b" 101 "  # in the status line of the answer to an upgrade
_STATUS_LINE_BYTES = 16


class Relay:
    """`first` goes to the server before anything else the client says.

    requests: what the client says goes through it. check: asked of each piece that the client says first, until it
    tells whether that may be said.
    """

    def __init__(
        self,
        client: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
        server: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
        *,
        first: bytes = b"",
        requests: Requests | None = None,
        check: Callable[[bytes], bool | None] | None = None,
    ) -> None:
        self._client = client
        self._to_client = to_client
        self._server = server
        self._to_server = to_server
        self._first = first
        self._requests = requests
        self._check = check
        self._switched: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Returns when both directions have ended and everything was delivered; then both ends are closed.

        Raises OSError, RequestError, HelloError; the server's end is closed then, the client's is the caller's.
        """
        ways = [asyncio.ensure_future(way) for way in (self._upward(), self._downward())]
        try:
            await asyncio.gather(*ways)
            for end in (self._to_client, self._to_server):
                end.close()
                await end.wait_closed()
        finally:
            for way in ways:
                way.cancel()
            self._to_server.transport.abort()

    async def _upward(self) -> None:
        if self._first:
            self._to_server.write(self._first)
            await self._to_server.drain()
        if self._check is not None:
            await self._checked(self._check)
        if self._requests is None or await self._asking(self._requests):
            await _copy(self._client, self._to_server)
        else:
            _end(self._to_server)

    async def _checked(self, check: Callable[[bytes], bool | None]) -> None:
        said = b""
        may: bool | None = None
        while may is None:
            data = await self._client.read(config.EGRESS_CHUNK_BYTES)
            if not data:
                break  # that was all: nothing was asked with it
            said += data
            if len(said) > config.EGRESS_OPENING_BYTES:
                raise RequestError("it does not say what it is for")
            may = check(data)
        if may is False:
            raise RequestError("what it says at last is not allowed")
        self._to_server.write(said)
        await self._to_server.drain()

    async def _asking(self, requests: Requests) -> bool:
        """False: the client has nothing more to ask, or may ask nothing more. True: both speak another protocol."""
        while not requests.upgrading:
            data = await self._client.read(config.EGRESS_CHUNK_BYTES)
            if not data:
                return False
            self._to_server.write(requests.feed(data))
            await self._to_server.drain()
        if not await self._switched:
            return False  # what was said after it was said in another protocol
        self._to_server.write(requests.rest)
        return True

    async def _downward(self) -> None:
        begun = b""
        while data := await self._server.read(config.EGRESS_CHUNK_BYTES):
            if not self._switched.done():
                begun += data[:_STATUS_LINE_BYTES]
                if len(begun) >= _STATUS_LINE_BYTES:
                    self._switched.set_result(begun.startswith(b"HTTP/1.") and _SWITCHED in begun[:13])
            self._to_client.write(data)
            await self._to_client.drain()
        if not self._switched.done():
            self._switched.set_result(False)
        _end(self._to_client)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(config.EGRESS_CHUNK_BYTES):
        writer.write(data)
        await writer.drain()
    _end(writer)


def _end(writer: asyncio.StreamWriter) -> None:
    if writer.can_write_eof() and not writer.is_closing():
        writer.write_eof()
