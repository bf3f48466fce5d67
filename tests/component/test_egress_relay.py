"""What passes between a sandbox and a server once the egress process has joined them, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from sandpty import config
from sandpty.egress.client_hello import HelloError
from sandpty.egress.http_requests import RequestError
from sandpty.egress.relay import Relay

WAIT_S = 30.0


@dataclass
class Joined:
    """A client and a server with a relay between them."""

    client: asyncio.StreamWriter
    relay: asyncio.Task[None]
    heard: bytearray = field(default_factory=bytearray)  # by the server, whole once `ended`
    ended: asyncio.Event = field(default_factory=asyncio.Event)


@asynccontextmanager
async def joined(
    check: Callable[[bytes], bool | None] | None = None, *, answer: bytes = b"", server_name: str = ""
) -> AsyncIterator[Joined]:
    """`check`: what the relay asks of a client that was silent so far. `answer`: the server's, `server_name`: whose the
    first ClientHello was."""
    heard, ended = bytearray(), asyncio.Event()
    relays: asyncio.Queue[asyncio.Task[None]] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        while data := await reader.read(65536):
            heard.extend(data)
        ended.set()
        writer.close()

    async def relaying(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server = await asyncio.open_connection(*there.sockets[0].getsockname())
        relay = Relay(reader, writer, *server, check=check, server_name=server_name)
        task = asyncio.create_task(relay.run())
        relays.put_nowait(task)
        await asyncio.wait([task])
        writer.transport.abort()

    there = await asyncio.start_server(serve, "127.0.0.1", 0)
    between = await asyncio.start_server(relaying, "127.0.0.1", 0)
    async with there, between:
        _, client = await asyncio.open_connection(*between.sockets[0].getsockname())
        yield Joined(client, await relays.get(), heard, ended)
        client.transport.abort()


async def test_who_never_says_what_it_wants_says_nothing_unseen_later() -> None:
    """A beginning that is too long to be judged ends the connection: nothing after it is taken for judged."""
    async with joined(lambda _: None) as pair:
        for _ in range(3):
            pair.client.write(b"x" * config.EGRESS_OPENING_BYTES)
        async with asyncio.timeout(WAIT_S):
            with pytest.raises(RequestError):
                await pair.relay
            await pair.ended.wait()
        assert pair.heard == b""


async def test_a_short_last_word_arrives() -> None:
    """Bytes that could have become something else, and did not, are the server's."""
    async with joined(lambda _: None) as pair:
        pair.client.write(b"QUIT")
        pair.client.write_eof()
        async with asyncio.timeout(WAIT_S):
            await pair.relay
            await pair.ended.wait()
        assert pair.heard == b"QUIT"


def hello(name: str) -> bytes:
    """What a client says first to that server."""
    inward, outward = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(inward, outward, server_hostname=name).do_handshake()
    return outward.read()


RETRY = bytes.fromhex(
    "160303003a 02000036 0303 cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c"
) + bytes(20)
BEFORE = bytes.fromhex("140303000101 1703030002aabb")  # a dummy and early data (RFC 8446, D.4)


@pytest.mark.parametrize("name", ["good.test", "evil.test"])
async def test_a_second_hello_names_the_same_server(name: str) -> None:
    """A server that asks for another ClientHello gets one for itself, in whatever pieces, or none."""
    async with joined(answer=RETRY, server_name="good.test") as pair:
        said = BEFORE + hello(name)
        for at in range(0, len(said), 100):
            pair.client.write(said[at : at + 100])
            await pair.client.drain()
        pair.client.write_eof()
        async with asyncio.timeout(WAIT_S):
            if name == "good.test":
                await pair.relay
            else:
                with pytest.raises(HelloError):
                    await pair.relay
            await pair.ended.wait()
        assert pair.heard == (said if name == "good.test" else b"")
