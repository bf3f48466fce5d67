"""A sandbox's TCP connections that its policy has looked at or sent through a proxy.

What a connection says it is for decides where it goes: the server name of a ClientHello, the Host of a request. Both
are resolved here. The address that the sandbox dialled counts where neither decides: on other ports than 80 and 443 it
may stand for an allowed name; with headers or a proxy in the policy it may be one that the policy leaves open. Whoever
is refused is reset.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import dns.rdatatype

from sandpty import config
from sandpty.egress import client_hello, inspection
from sandpty.egress.authority import Authority
from sandpty.egress.client_hello import HelloError, HelloReader
from sandpty.egress.guests import Guest, Guests, Open
from sandpty.egress.http_requests import RequestError, Requests, may_be_http
from sandpty.egress.relay import Check, Relay
from sandpty.egress.resolver import ResolveError, Resolver
from sandpty.egress.upstream import Streams, Upstream, bound, server_of

log = logging.getLogger(__name__)
_AT_ONCE = struct.pack("ii", 1, 0)
Original = Callable[[str, int, int], Awaitable[tuple[str, int] | None]]


class RefusedError(Exception):
    """The connection may not be; the message is for the log."""


@dataclass(slots=True)
class Client:
    """The sandbox's end, and what it has said so far. `port`: of the server; `dialled`: its address, once known."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    guest: Guest
    connection: Open
    port: int
    dialled: str = ""
    said: bytes = b""

    @property
    def chunk_bytes(self) -> int:
        return config.EGRESS_CHUNK_BYTES if self.connection.wide else config.EGRESS_NARROW_BYTES

    async def more(self) -> bytes:
        """The next piece of what it says. Raises RefusedError when that was all or too much."""
        data = await self.reader.read(self.chunk_bytes)
        self.said += data
        if not data or len(self.said) > config.EGRESS_OPENING_BYTES:
            raise RefusedError("it does not say what it is for")
        return data


class Proxy:
    """`open` it on each port."""

    def __init__(
        self, guests: Guests, resolver: Resolver, upstream: Upstream, authority: Authority, original: Original
    ) -> None:
        self._guests = guests
        self._resolver = resolver
        self._upstream = upstream
        self._authority = authority
        self._original = original
        self._servers: list[asyncio.Server] = []

    async def open(self, listener: socket.socket, port: int) -> None:
        """port: of the servers that connections to this listener are meant for; 0: of any."""

        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await self._accepted(reader, writer, port)

        self._servers.append(await server_of(listener, accepted))

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        address, source_port = writer.get_extra_info("peername")[:2]
        guest = self._guests.get(address)
        if guest is None or guest.connections.full:
            _reset(writer)
            return
        task = asyncio.current_task()
        assert task is not None

        def cut() -> None:
            task.cancel()

        try:
            with guest.opening(cut) as connection:
                client = Client(reader, writer, guest, connection, port)
                bound(writer, client.chunk_bytes)
                await self._serve(client, source_port)
        except (RefusedError, RequestError, HelloError, ResolveError, TimeoutError, OSError) as error:
            log.debug("refused %s: %s", address, error)
        except asyncio.CancelledError:
            pass  # cut: the rules have changed
        finally:
            _reset(writer)

    async def _serve(self, client: Client, source_port: int) -> None:
        named_port = client.port != 0
        if not named_port or client.guest.dials:
            original = await self._original(
                client.guest.address, source_port, client.writer.get_extra_info("sockname")[1]
            )
            if original is None:
                raise RefusedError("nobody knows where it was meant to go")
            client.dialled, client.port = original
        if not (named_port or client.guest.names):
            await (await self._dialled(client, looked_at=True)).run()  # all that is of interest is its proxy
            return
        async with asyncio.timeout(config.EGRESS_OPENING_S):
            way = await self._way(client)
        if isinstance(way, Relay):
            await way.run()
        else:
            await self._inspected(client, way)

    async def _way(self, client: Client) -> Relay | str:
        """Decide by the first bytes, and connect; a text: the server name of TLS that is to end here."""
        if client.dialled:
            try:
                async with asyncio.timeout(config.EGRESS_SILENCE_S):
                    await client.more()
            except TimeoutError:
                return await self._dialled(client, looked_at=False)
        else:
            await client.more()
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

    async def _tls(self, client: Client) -> Relay | str:
        hello, name = HelloReader(), None
        try:
            name = hello.feed(client.said)
            while name is None:
                name = hello.feed(await client.more())
        except HelloError:
            if not client.guest.opens(client.dialled):
                raise
            name = ""
        if client.guest.headers_of(name):
            return name
        if client.guest.allows(name):
            server = await self._connect(client, name)
            return self._relay(client, server, server_name=name)
        if not client.guest.opens(client.dialled):
            client.writer.write(client_hello.REFUSAL)
            client.writer.close()
            raise RefusedError(f"server name {name[:253]!r} is not allowed")
        return await self._dialled(client, looked_at=True)

    async def _http(self, client: Client) -> Relay:
        guest = client.guest
        requests = Requests(lambda host: guest.allows(host) or bool(guest.headers_of(host)), guest.headers_of)
        try:
            first = requests.feed(client.said)
            while not requests.host:
                first += requests.feed(await client.more())
        except RequestError:
            if not guest.opens(client.dialled):
                raise
            return await self._dialled(client, looked_at=True)  # for nobody in particular: its own affair
        server = await self._connect(client, requests.host)
        return self._relay(client, server, first=first, requests=requests)

    async def _dialled(self, client: Client, *, looked_at: bool) -> Relay:
        """To the address that was dialled. Not `looked_at`: what the client says at last must still be."""
        guest, connection = client.guest, client.connection
        name = None if guest.opens(client.dialled) else guest.name_of(client.dialled)
        if name is not None:
            connection.name = name
        elif guest.opens(client.dialled):
            connection.address = client.dialled
        else:
            raise RefusedError("the address stands for no allowed name")
        server = await self._reach(client, [client.dialled])
        check = None if looked_at or name is None else _late_check(guest)
        return self._relay(client, server, check=check)

    async def _inspected(self, client: Client, name: str) -> None:
        """Requests inside TLS to a host that are given headers."""
        guest = client.guest
        requests = Requests(lambda host: host == name, guest.headers_of)
        if guest.inspected.full:
            raise RefusedError("too many connections are looked into already")
        with guest.inspected.taking():
            if not (self._authority.has(name) or guest.may_have_leaf()):
                raise RefusedError("too many certificates are made for it already")
            streams = (client.reader, client.writer)
            context = self._authority.context(name)
            client.connection.name = name
            async with inspection.decrypted(streams, client.said, context, client.chunk_bytes) as inner:
                first = await inspection.first_request(inner[0], requests, client.chunk_bytes)
                try:
                    server = await self._connect(client, name, tls=True)
                except (OSError, TimeoutError, ResolveError) as error:
                    why = error.verify_message if isinstance(error, ssl.SSLCertVerificationError) else "no connection"
                    inner[1].write(inspection.refusal(f"{name}: {why}"))
                    return
                await Relay(*inner, *server, first=first, requests=requests, chunk_bytes=client.chunk_bytes).run()

    async def _connect(self, client: Client, name: str, *, tls: bool = False) -> Streams:
        found = await self._resolver.find(name, dns.rdatatype.A, client.guest.servers)
        addresses = list(found.addresses)
        if not client.guest.allows(name):
            if not client.guest.headers_of(name):
                raise RefusedError("the rules have changed meanwhile")
            addresses = [address for address in addresses if client.guest.opens(address)]
        client.connection.name = name
        return await self._reach(client, addresses, tls_name=name if tls else "")

    async def _reach(self, client: Client, addresses: list[str], tls_name: str = "") -> Streams:
        return await self._upstream.connect(
            addresses,
            client.port,
            chunk_bytes=client.chunk_bytes,
            proxy=client.guest.proxy,
            resolvers=client.guest.resolvers,
            tls_name=tls_name,
        )

    def _relay(
        self,
        client: Client,
        server: Streams,
        *,
        first: bytes | None = None,
        requests: Requests | None = None,
        check: Check | None = None,
        server_name: str = "",
    ) -> Relay:
        return Relay(
            client.reader,
            client.writer,
            *server,
            first=client.said if first is None else first,
            requests=requests,
            check=check,
            server_name=server_name,
            chunk_bytes=client.chunk_bytes,
        )


def _late_check(guest: Guest) -> Check:
    """Whether a client that was silent may say this to the server it dialled; None: more is needed to tell."""
    said, hello = bytearray(), HelloReader()

    def may_say(data: bytes) -> str | bool | None:
        said.extend(data)
        if said[0] == client_hello.HANDSHAKE:
            name = hello.feed(data)
            return name if name is None or guest.allows(name) else False
        http = may_be_http(said)
        return None if http is None else not http  # no program waits before it asks over HTTP

    return may_say


def _reset(writer: asyncio.StreamWriter) -> None:
    """End it at once, so that the program sees an error; nothing to do when it was closed properly."""
    if not writer.transport.is_closing():
        with contextlib.suppress(OSError):
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        writer.transport.abort()
