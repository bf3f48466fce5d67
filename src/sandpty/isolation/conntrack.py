"""Where a connection was meant to go before the firewall turned it to the egress process: one question to the kernel.

SO_ORIGINAL_DST answers only in the network namespace of the translation; the egress process lives in another. Layout:
linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address

_NETLINK_NETFILTER = 12
_HEADER = struct.Struct("=IHHII")
_FAMILY = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_NESTED = 0x8000
_GET = (1 << 8) | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_NEW = 1 << 8  # IPCTNL_MSG_CT_NEW: an entry, as an answer
_REQUEST = 1
_TUPLE_ORIGINAL, _TUPLE_REPLY = 1, 2
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_V4_SOURCE, _V4_DESTINATION = 1, 2
_PROTO_NUMBER, _PROTO_SOURCE_PORT, _PROTO_DESTINATION_PORT = 1, 2, 3
_ANSWER_BYTES = 16 * 1024
_TIMEOUT_S = 1.0  # the kernel answers at once


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data)
        if length < _ATTRIBUTE.size:
            return
        yield kind & 0x3FFF, data[_ATTRIBUTE.size : length]
        data = data[(length + 3) & ~3 :]


def request_of(source: tuple[IPv4Address, int], destination: tuple[IPv4Address, int]) -> bytes:
    """Asks for the TCP entry whose answers go from `source` to `destination`."""
    addresses = _attribute(_V4_SOURCE, source[0].packed) + _attribute(_V4_DESTINATION, destination[0].packed)
    ports = _attribute(_PROTO_NUMBER, bytes([socket.IPPROTO_TCP]))
    ports += _attribute(_PROTO_SOURCE_PORT, source[1].to_bytes(2, "big"))
    ports += _attribute(_PROTO_DESTINATION_PORT, destination[1].to_bytes(2, "big"))
    tuple_ = _attribute(_TUPLE_IP | _NESTED, addresses) + _attribute(_TUPLE_PROTO | _NESTED, ports)
    body = _FAMILY.pack(socket.AF_INET, 0, 0) + _attribute(_TUPLE_REPLY | _NESTED, tuple_)
    return _HEADER.pack(_HEADER.size + len(body), _GET, _REQUEST, 1, 0) + body


def original_in(answer: bytes) -> tuple[IPv4Address, int] | None:
    """The destination of the entry's first packet; None when the answer is no entry."""
    if len(answer) < _HEADER.size + _FAMILY.size or _HEADER.unpack_from(answer)[1] != _NEW:
        return None
    fields = dict(_attributes(answer[_HEADER.size + _FAMILY.size :]))
    parts = dict(_attributes(fields.get(_TUPLE_ORIGINAL, b"")))
    address = dict(_attributes(parts.get(_TUPLE_IP, b""))).get(_V4_DESTINATION, b"")
    port = dict(_attributes(parts.get(_TUPLE_PROTO, b""))).get(_PROTO_DESTINATION_PORT, b"")
    if len(address) != 4 or len(port) != 2:
        return None
    return IPv4Address(address), int.from_bytes(port, "big")


def original_destination(
    source: tuple[IPv4Address, int], destination: tuple[IPv4Address, int]
) -> tuple[IPv4Address, int] | None:
    """None: there is no such connection, or this kernel does not tell."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as link:
            link.settimeout(_TIMEOUT_S)
            link.bind((0, 0))
            link.send(request_of(source, destination))
            return original_in(link.recv(_ANSWER_BYTES))
    except OSError:
        return None
