"""Two ends of a connection joined: bytes go both ways until both are done, each way at the pace of its reader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from sandpty import config
from sandpty.egress.client_hello import ANSWER_BYTES, HelloError, HelloReader, asks_again
from sandpty.egress.http_requests import RequestError, Requests

_SWITCHED = b" 101 "  # in the status line of the answer to an upgrade
Check = Callable[[bytes], str | bool | None]


class Relay:
    """`first` goes to the server before anything else the client says.

    requests: what the client says goes through it. check: asked of each piece that the client says first, until it
    tells whether that may be said; a text is the server name of its ClientHello. server_name: that of the ClientHello
    in `first`. In both cases a second ClientHello names the same.
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
        check: Check | None = None,
        server_name: str = "",
        chunk_bytes: int = config.EGRESS_CHUNK_BYTES,
    ) -> None:
        self._client = client
        self._to_client = to_client
        self._server = server
        self._to_server = to_server
        self._first = first
        self._requests = requests
        self._check = check
        self._server_name = server_name
        self._chunk_bytes = chunk_bytes
        self._answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()  # how it begins

    async def run(self) -> None:
        """Returns when both directions have ended and everything was delivered; then both ends are closed.

        Raises OSError, TimeoutError, RequestError, HelloError; the server's end is closed then, the client's is the
        caller's.
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
        await self._say(self._first)
        if self._check is not None:
            self._server_name = await self._checked(self._check)
        if self._server_name:
            await self._greeted(self._server_name)
        passing = self._requests is None or await self._asking(self._requests)
        if not passing and self._to_server.can_write_eof():
            self._to_server.write_eof()  # it need not wait for another request
        while data := await self._client.read(self._chunk_bytes):
            if passing:
                await self._say(data)
        _end(self._to_server)

    async def _say(self, data: bytes) -> None:
        if data:
            self._to_server.write(data)
            await self._to_server.drain()

    async def _checked(self, check: Check) -> str:
        said = b""
        may: str | bool | None = None
        while may is None:
            data = await self._client.read(self._chunk_bytes)
            if not data:
                break  # that was all: nothing was asked with it
            said += data
            if len(said) > config.EGRESS_OPENING_BYTES:
                raise RequestError("it does not say what it is for")
            may = check(data)
        if may is False:
            raise RequestError("what it says at last is not allowed")
        await self._say(said)
        return may if isinstance(may, str) else ""

    async def _greeted(self, server_name: str) -> None:
        """Nothing more is passed on before the server has answered, so that a second ClientHello is not missed."""
        async with asyncio.timeout(config.EGRESS_ANSWER_S):
            again = asks_again(await self._answer)
            hello, said, name = HelloReader(again=True), b"", None
            while again and name is None:
                data = await self._client.read(self._chunk_bytes)
                said += data
                if not data or len(said) > config.EGRESS_OPENING_BYTES:
                    raise HelloError("there is no second ClientHello")
                name = hello.feed(data)
        if again and name != server_name:
            raise HelloError("the second ClientHello names another server")
        await self._say(said)

    async def _asking(self, requests: Requests) -> bool:
        """False: the client has nothing more to ask, or may ask nothing more. True: both speak another protocol."""
        while not requests.upgrading:
            data = await self._client.read(self._chunk_bytes)
            if not data:
                return False
            await self._say(requests.feed(data))
        answer = await self._answer
        if not (answer.startswith(b"HTTP/1.") and _SWITCHED in answer[:13]):
            return False  # what was said after it was said in another protocol
        await self._say(requests.rest)
        return True

    async def _downward(self) -> None:
        begun = b""
        while data := await self._server.read(self._chunk_bytes):
            if not self._answer.done():
                begun += data[:ANSWER_BYTES]
                if len(begun) >= ANSWER_BYTES:
                    self._answer.set_result(begun)
            self._to_client.write(data)
            await self._to_client.drain()
        if not self._answer.done():
            self._answer.set_result(begun)
        _end(self._to_client)


def _end(writer: asyncio.StreamWriter) -> None:
    """No more is said. Where that cannot be said alone (TLS), nothing is heard any more either."""
    if not writer.can_write_eof():
        writer.close()
    elif not writer.is_closing():
        writer.write_eof()
