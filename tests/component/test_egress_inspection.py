"""Connections whose TLS the egress process ends: clients and servers that stall hold none of it for long."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import dns.rcode
import pytest
import pytest_asyncio

from sandpty import config
from sandpty.egress.authority import CERTIFICATE, open_authority
from sandpty.egress.guests import Guest, Guests
from sandpty.egress.proxy import Proxy
from sandpty.egress.resolver import Found, Resolver
from sandpty.egress.upstream import Streams, Upstream
from sandpty.wire.verbs import GuestRules
from tests.component.fake_internet import Authority
from tests.waiting import pace, until

HERE, NAME = "127.0.0.1", "good.test"
GET = f"GET / HTTP/1.1\r\nHost: {NAME}\r\n\r\n".encode()
WAIT_S = 30.0


class Names:
    """Every name is here."""

    async def find(self, *_: object) -> Found:
        return Found(dns.rcode.NOERROR, (), (HERE,), 60)


class Stage:
    """This process is a sandbox whose requests to NAME are given a header, and the site, which only accepts."""

    def __init__(self, guest: Guest, trust: ssl.SSLContext, port: int, site_port: int) -> None:
        self.guest = guest
        self.trust = trust
        self.port = port
        self.site_port = site_port
        self.accepted: asyncio.Queue[Streams] = asyncio.Queue()

    async def connect(self) -> Streams:
        """To the site, by TLS that ends on the way."""
        return await asyncio.open_connection(HERE, self.port, ssl=self.trust, server_hostname=NAME)

    async def plain(self) -> Streams:
        """The same without TLS."""
        return await asyncio.open_connection(HERE, self.port)

    async def is_empty(self) -> None:
        """Nothing is counted for the sandbox any more."""
        await until(
            lambda: self.guest.connections.taken == self.guest.inspected.taken == 0, WAIT_S, "connections are given up"
        )


@pytest_asyncio.fixture
async def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stage]:
    """With patience of half a second instead of ten."""
    monkeypatch.setattr(config, "EGRESS_OPENING_S", 0.5)
    internet = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(internet.pem))
    guests, names = Guests(), cast(Resolver, Names())
    guests.set(GuestRules(address=HERE, names=(NAME,), headers={NAME: {"X-Key": "secret"}}))
    guest = guests.get(HERE)
    assert guest is not None

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        stage.accepted.put_nowait((reader, writer))

    site = await asyncio.start_server(accepted, HERE, 0, ssl=internet.context(NAME))

    async def original(*_: object) -> tuple[str, int]:
        return HERE, stage.site_port

    (tmp_path / "egress").mkdir()
    proxy = Proxy(guests, names, Upstream(names), open_authority(tmp_path / "egress"), original)
    listener = await asyncio.start_server(lambda reader, writer: proxy._accepted(reader, writer, 0), HERE, 0)
    trust = ssl.create_default_context(cafile=str(tmp_path / "egress" / CERTIFICATE))
    async with site, listener:
        stage = Stage(guest, trust, *(each.sockets[0].getsockname()[1] for each in (listener, site)))
        yield stage
        guests.forget(HERE)
        while not stage.accepted.empty():
            stage.accepted.get_nowait()[1].transport.abort()


async def test_who_stalls_before_a_request_is_cut(stage: Stage) -> None:
    """In the middle of a ClientHello, after it, after the handshake, and in a head that comes byte by byte."""
    hello = ssl.MemoryBIO()
    half = stage.trust.wrap_bio(ssl.MemoryBIO(), hello, server_hostname=NAME)
    with pytest.raises(ssl.SSLWantReadError):
        half.do_handshake()
    said = hello.read()
    stalled = [await stage.plain(), await stage.plain(), await stage.connect(), await stage.connect()]
    stalled[0][1].write(said[:40])
    stalled[1][1].write(said)
    dripping = stalled[3]

    async def drip() -> None:
        for byte in GET * 100:
            dripping[1].write(bytes([byte]))
            await dripping[1].drain()
            await pace(0.05, "a client that says one byte after the other")

    task = asyncio.create_task(drip())
    try:
        await stage.is_empty()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for _, writer in stalled:
            writer.transport.abort()
    assert stage.accepted.empty()


async def test_a_server_that_stalls_is_given_up(stage: Stage) -> None:
    """One that accepts and does not speak TLS: the program is told so, and nothing is kept."""
    ended = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65536):
            pass
        writer.close()
        ended.set()

    server = await asyncio.start_server(silent, HERE, 0)
    async with server:
        stage.site_port = server.sockets[0].getsockname()[1]
        reader, writer = await stage.connect()
        writer.write(GET)
        assert (await asyncio.wait_for(reader.read(), WAIT_S)).startswith(b"HTTP/1.1 502 ")
        await stage.is_empty()
        await asyncio.wait_for(ended.wait(), WAIT_S)
    writer.close()


async def test_who_leaves_leaves_nothing(stage: Stage) -> None:
    """Client or server, in the middle of an answer that nobody reads or a body that nobody takes."""
    for client_leaves in (True, False):
        for says in (GET, GET.replace(b"GET", b"POST").replace(b"\r\n\r\n", b"\r\nContent-Length: 99999999\r\n\r\n")):
            _, writer = await stage.connect()
            writer.write(says)
            there = await asyncio.wait_for(stage.accepted.get(), WAIT_S)
            assert b"X-Key: secret" in await asyncio.wait_for(there[0].readuntil(b"\r\n\r\n"), WAIT_S)
            for end in (writer, there[1]):
                end.write(bytes(1 << 22))  # more than all buffers on the way hold
            (writer if client_leaves else there[1]).transport.abort()
            await stage.is_empty()
            (there[1] if client_leaves else writer).transport.abort()
