"""Connections to servers on behalf of sandboxes: straight or through the sandbox's proxy, which nothing goes around."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence

import dns.rdatatype

from sandpty import config
from sandpty.egress.resolver import ResolveError, Resolver
from sandpty.egress.socks import tunnel
from sandpty.wire.network_policy import EgressProxy
from sandpty.wire.network_rules import ipv4, is_open

_ADDRESSES_TRIED = 4
_READER_BYTES = config.EGRESS_CHUNK_BYTES // 4  # at twice that, reading pauses
HTTP = "http/1.1"
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def bound(writer: asyncio.StreamWriter, chunk_bytes: int) -> None:
    """How much is read at once from a connection, and waits for its other end."""
    # An attribute without an underscore of asyncio's transports, which their documentation leaves out; 256 KiB else.
    if hasattr(writer.transport, "max_size"):
        writer.transport.max_size = chunk_bytes
    writer.transport.set_write_buffer_limits(high=chunk_bytes)


async def server_of(listener: socket.socket, accepted: object) -> asyncio.Server:
    """Serve connections of sandboxes."""
    return await asyncio.start_server(accepted, sock=listener, limit=_READER_BYTES)  # type: ignore[arg-type]


def _trust() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


class Upstream:
    """Whom servers are to be vouched for by (the system's authorities) is read when this is made."""

    def __init__(self, resolver: Resolver) -> None:
        self.resolver = resolver
        self._proxy_trust = _trust()
        self._trust = _trust()
        self._trust.set_alpn_protocols([HTTP])

    async def connect(
        self,
        addresses: Sequence[str],
        port: int,
        *,
        chunk_bytes: int,
        proxy: EgressProxy | None,
        resolvers: Sequence[str],
        tls_name: str = "",
    ) -> Streams:
        """The first that accepts. tls_name: whose certificate the server must have.

        Raises OSError (ssl.SSLError for a certificate that is not good), TimeoutError, ResolveError.
        """
        failure: Exception = OSError("the name has no address")
        for address in addresses[:_ADDRESSES_TRIED]:
            writer = None
            try:
                async with asyncio.timeout(config.EGRESS_OPENING_S / _ADDRESSES_TRIED):
                    if proxy is None:
                        reader, writer = await asyncio.open_connection(address, port, limit=_READER_BYTES)
                    else:
                        reader, writer = await self._to_proxy(proxy, resolvers)
                        await tunnel(reader, writer, proxy, address, port)
                    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                    bound(writer, chunk_bytes)
                    if tls_name:
                        await writer.start_tls(self._trust, server_hostname=tls_name)
                    return reader, writer
            except (OSError, TimeoutError) as error:
                failure = error
                if writer is not None:
                    writer.transport.abort()
            except BaseException:
                if writer is not None:
                    writer.transport.abort()
                raise
        raise failure

    async def _to_proxy(self, proxy: EgressProxy, resolvers: Sequence[str]) -> Streams:
        """Its host is resolved each time; addresses that are never open are not among the answer's."""
        addresses = await self.addresses_of(proxy.host, resolvers)
        if not addresses:
            raise ResolveError("the proxy's host has no address that may be reached")
        if proxy.tls is None:
            return await asyncio.open_connection(addresses[0], proxy.port, limit=_READER_BYTES)
        trust = self._proxy_trust
        if proxy.tls.ca_cert:
            trust = ssl.create_default_context(cadata=proxy.tls.ca_cert)
            trust.minimum_version = ssl.TLSVersion.TLSv1_2
        name = proxy.tls.server_name or proxy.host
        return await asyncio.open_connection(
            addresses[0], proxy.port, limit=_READER_BYTES, ssl=trust, server_hostname=name
        )

    async def addresses_of(self, host: str, resolvers: Sequence[str]) -> tuple[str, ...]:
        """That may be reached. Raises ResolveError."""
        address = ipv4(host)
        if address is not None:
            return (host,) if is_open(address) else ()
        return (await self.resolver.find(host.lower(), dns.rdatatype.A, resolvers)).addresses
