"""The client's side of SOCKS5, up to where the tunnel begins. Sources: RFC 1928, RFC 1929. The proxy is not trusted."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Address

from sandpty.wire.network_policy import EgressProxy

_VERSION = 5
_NO_LOGIN, _PASSWORD = 0, 2
_LOGIN_VERSION = 1
_CONNECT, _IPV4, _NAME, _IPV6 = 1, 1, 3, 4
_ADDRESS_BYTES = {_IPV4: 4, _IPV6: 16}


class SocksError(OSError):
    """The proxy does not speak SOCKS5, does not take our word, or does not reach the server."""


async def tunnel(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, proxy: EgressProxy, address: str, port: int
) -> None:
    """Ask for a connection to an IPv4 address; what is written afterwards goes there. Raises SocksError, OSError."""
    method = _PASSWORD if proxy.username else _NO_LOGIN
    try:
        writer.write(bytes([_VERSION, 1, method]))
        if await reader.readexactly(2) != bytes([_VERSION, method]):
            raise SocksError("the proxy is no SOCKS5 proxy, or does not take this way to log in")
        if proxy.username:
            words = (proxy.username.encode(), proxy.password.encode())
            writer.write(bytes([_LOGIN_VERSION]) + b"".join(bytes([len(word)]) + word for word in words))
            if (await reader.readexactly(2))[1] != 0:
                raise SocksError("the proxy does not take the user name and password")
        wanted = bytes([_VERSION, _CONNECT, 0, _IPV4]) + IPv4Address(address).packed + port.to_bytes(2, "big")
        writer.write(wanted)
        version, status, _, kind = await reader.readexactly(4)
        if version != _VERSION or status != 0:
            raise SocksError(f"the proxy does not reach the server: {status}")
        bound = _ADDRESS_BYTES.get(kind) or ((await reader.readexactly(1))[0] if kind == _NAME else -1)
        if bound < 0:
            raise SocksError("the proxy's answer has an address of an unknown kind")
        await reader.readexactly(bound + 2)  # and its port
    except asyncio.IncompleteReadError as error:
        raise SocksError("the proxy closed the connection") from error
