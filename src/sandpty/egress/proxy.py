"""A sandbox's TCP connections on behalf of its allowed names: looked at, then passed on.

What a connection says it is for decides where it goes: the server name of a ClientHello, the Host of a request. Both
are resolved here; the address that the sandbox dialled counts only where neither is said (other ports than 80 and
443), and then it must be one that stands for an allowed name. Whoever is refused is reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import dns.rdatatype

from sandpty import config
from sandpty.egress import client_hello
from sandpty.egress.client_hello import HelloError, HelloReader
from sandpty.egress.guests import Guest, Guests, Open
from sandpty.egress.http_requests import RequestError, Requests, may_be_http
from sandpty.egress.relay import Relay
from sandpty.egress.resolver import ResolveError, Resolver

log = logging.getLogger(__name__)
_ADDRESSES_TRIED = 4
_AT_ONCE = struct.pack("ii", 1, 0)
Original = Callable[[str, int], Awaitable[tuple[str, int] | None]]


class RefusedError(Exception):
    """The connection may not be; the message is for the log."""


@dataclass(slots=True)
class Client:
    """The sandbox's end, and what it has said so far. `port`: of the server; `dialled`: its address where it counts."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    guest: Guest
    connection: Open
    port: int
    dialled: str
    said: bytes = b""

    async def more(self) -> bytes:
        """The next piece of what it says. Raises RefusedError when that was all or too much."""
        data = await self.reader.read(config.EGRESS_CHUNK_BYTES)
        self.said += data
        if not data or len(self.said) > config.EGRESS_OPENING_BYTES:
            raise RefusedError("it does not say what it is for")
        return data


class Proxy:
    """`open` it on each port."""

    def __init__(self, guests: Guests, resolver: Resolver, original: Original) -> None:
        self._guests = guests
        self._resolver = resolver
        self._original = original
        self._count = 0
        self._servers: list[asyncio.Server] = []

    async def open(self, listener: socket.socket, port: int) -> None:
        """port: of the servers that connections to this listener are meant for; 0: of any."""

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._accepted(reader, writer, port)

        self._servers.append(await asyncio.start_server(accepted, sock=listener, limit=config.EGRESS_CHUNK_BYTES))

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        address, source_port = writer.get_extra_info("peername")[:2]
        guest = self._guests.get(address)
        if guest is None or guest.full or self._count >= config.EGRESS_CONNECTIONS_MAX:
            _reset(writer)
            return
        self._count += 1
        task = asyncio.current_task()
        assert task is not None

        def cut() -> None:
            task.cancel()

        try:
            with guest.opening(cut) as connection:
                client = Client(reader, writer, guest, connection, port, "")
                await self._serve(client, source_port)
        except (RefusedError, RequestError, HelloError, ResolveError, TimeoutError, OSError) as error:
            log.debug("refused %s: %s", address, error)
        except asyncio.CancelledError:
            pass  # cut: the rules have changed
        finally:
            self._count -= 1
            _reset(writer)

    async def _serve(self, client: Client, source_port: int) -> None:
        if client.port == 0:
            original = await self._original(client.guest.address, source_port)
            if original is None:
                raise RefusedError("nobody knows where it was meant to go")
            client.dialled, client.port = original
        async with asyncio.timeout(config.EGRESS_OPENING_S):
            relay = await self._opened(client)
        await relay.run()

    async def _opened(self, client: Client) -> Relay:
        """Decide by the first bytes, and connect. Raises what `_accepted` catches."""
        silent = False
        if client.dialled:
            try:
                async with asyncio.timeout(config.EGRESS_SILENCE_S):
                    await client.more()
            except TimeoutError:
                silent = True
        else:
            await client.more()
        if silent:
            return await self._dialled(client, looked_at=False)
        if client.said[0] == client_hello.HANDSHAKE:
            return await self._tls(client)
        if await self._is_http(client):
            return await self._http(client)
        if not client.dialled:
            raise RefusedError("neither TLS nor HTTP")
        return await self._dialled(client, looked_at=True)

    async def _is_http(self, client: Client) -> bool:
        while (found := may_be_http(client.said)) is None:
            await client.more()
        return found

    async def _tls(self, client: Client) -> Relay:
        hello = HelloReader()
        name = hello.feed(client.said)
        while name is None:
            name = hello.feed(await client.more())
        if not client.guest.allows(name):
            client.writer.write(client_hello.REFUSAL)
            client.writer.close()
            raise RefusedError(f"server name {name[:253]!r} is not allowed")
        return Relay(client.reader, client.writer, *await self._connect(client, name), first=client.said)

    async def _http(self, client: Client) -> Relay:
        requests = Requests(client.guest.allows)
        first = requests.feed(client.said)
        while not requests.host:
            first += requests.feed(await client.more())
        server = await self._connect(client, requests.host)
        return Relay(client.reader, client.writer, *server, first=first, requests=requests)

    async def _dialled(self, client: Client, *, looked_at: bool) -> Relay:
        """To the address that was dialled. Not `looked_at`: what the client says at last must still be."""
        name = client.guest.name_of(client.dialled)
        if name is None:
            raise RefusedError("the address stands for no allowed name")
        client.connection.name = name
        server = await _connected([client.dialled], client.port)
        check = None if looked_at else _late_check(client.guest)
        return Relay(client.reader, client.writer, *server, first=client.said, check=check)

    async def _connect(self, client: Client, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        found = await self._resolver.find(name, dns.rdatatype.A, client.guest.servers)
        if not client.guest.allows(name):
            raise RefusedError("the rules have changed meanwhile")
        client.connection.name = name
        return await _connected(list(found.addresses[:_ADDRESSES_TRIED]), client.port)


def _late_check(guest: Guest) -> Callable[[bytes], bool | None]:
    """Whether a client that was silent may say this to the server it dialled; None: more is needed to tell."""
    said, hello = bytearray(), HelloReader()

    def may_say(data: bytes) -> bool | None:
        said.extend(data)
        if said[0] == client_hello.HANDSHAKE:
            name = hello.feed(data)
            return None if name is None else guest.allows(name)
        http = may_be_http(said)
        return None if http is None else not http  # no program waits before it asks over HTTP

    return may_say


async def _connected(addresses: list[str], port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The first that accepts. Raises OSError, TimeoutError."""
    failure: Exception = OSError("the name has no address")
    for address in addresses:
        try:
            async with asyncio.timeout(config.EGRESS_OPENING_S / _ADDRESSES_TRIED):
                reader, writer = await asyncio.open_connection(address, port, limit=config.EGRESS_CHUNK_BYTES)
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                return reader, writer
        except (OSError, TimeoutError) as error:
            failure = error
    raise failure


def _reset(writer: asyncio.StreamWriter) -> None:
    """End it at once, so that the program sees an error; nothing to do when it was closed properly."""
    if not writer.transport.is_closing():
        with contextlib.suppress(OSError):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        writer.transport.abort()
