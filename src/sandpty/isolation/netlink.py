"""The few rtnetlink requests a sandbox's network needs, several to one system call.

A general library costs milliseconds per sandbox here; these cost microseconds. Layout: rtnetlink(7), linux/if_link.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from ipaddress import IPv4Address

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR = struct.Struct("=BxxxiHBB")
_ERROR = struct.Struct("=i")

_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_CREATE, _NLM_F_EXCL, _NLM_F_REPLACE = 1, 4, 0x400, 0x200, 0x100
_NLMSG_ERROR = 2
_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWADDR = 16, 17, 20
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_NEWNEIGH = 24, 25, 28
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINKINFO, _IFLA_NET_NS_FD = 1, 3, 4, 18, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_IFF_UP = 1
_RT_TABLE_MAIN, _RTPROT_STATIC, _RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK, _RTN_UNICAST = 254, 4, 0, 253, 1
_NUD_PERMANENT = 0x80

Message = tuple[int, int, bytes]  # type, flags, payload


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def _name(name: str) -> bytes:
    return _attribute(_IFLA_IFNAME, name.encode() + b"\0")


def new_veth(name: str, mac: bytes, *, peer: str, peer_mac: bytes, peer_index: int, netns_fd: int) -> Message:
    """A pair of interfaces, the peer born in another network namespace."""
    inner = _IFINFO.pack(0, 0, peer_index, 0, 0) + _name(peer) + _attribute(_IFLA_ADDRESS, peer_mac)
    inner += _attribute(_IFLA_NET_NS_FD, struct.pack("=I", netns_fd))
    data = _attribute(_VETH_INFO_PEER, inner)
    info = _attribute(_IFLA_INFO_KIND, b"veth") + _attribute(_IFLA_INFO_DATA, data)
    body = _IFINFO.pack(0, 0, 0, 0, 0) + _name(name) + _attribute(_IFLA_ADDRESS, mac)
    return _RTM_NEWLINK, _NLM_F_CREATE | _NLM_F_EXCL, body + _attribute(_IFLA_LINKINFO, info)


def link_up(index: int) -> Message:
    return _RTM_NEWLINK, 0, _IFINFO.pack(0, 0, index, _IFF_UP, _IFF_UP)


def delete_link(name: str) -> Message:
    return _RTM_DELLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + _name(name)


def new_address(index: int, address: IPv4Address) -> Message:
    """A /32."""
    raw = address.packed
    body = _IFADDR.pack(socket.AF_INET, 32, 0, _RT_SCOPE_UNIVERSE, index)
    return _RTM_NEWADDR, _NLM_F_CREATE | _NLM_F_REPLACE, body + _attribute(2, raw) + _attribute(1, raw)


def new_neighbour(index: int, address: IPv4Address, mac: bytes) -> Message:
    body = _NEIGHBOUR.pack(socket.AF_INET, index, _NUD_PERMANENT, 0, 0)
    return _RTM_NEWNEIGH, _NLM_F_CREATE | _NLM_F_REPLACE, body + _attribute(1, address.packed) + _attribute(2, mac)


def _route(index: int, to: IPv4Address | None, via: IPv4Address | None) -> bytes:
    scope = _RT_SCOPE_UNIVERSE if via else _RT_SCOPE_LINK
    length = 32 if to else 0
    body = _ROUTE.pack(
        socket.AF_INET, length, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, scope, _RTN_UNICAST, 0
    ) + _attribute(_RTA_OIF, struct.pack("=I", index))
    if to:
        body += _attribute(_RTA_DST, to.packed)
    if via:
        body += _attribute(_RTA_GATEWAY, via.packed)
    return body


def new_route(index: int, to: IPv4Address | None, via: IPv4Address | None = None) -> Message:
    """`to` None: the default route."""
    return _RTM_NEWROUTE, _NLM_F_CREATE | _NLM_F_REPLACE, _route(index, to, via)


def delete_route(index: int, to: IPv4Address | None, via: IPv4Address | None = None) -> Message:
    return _RTM_DELROUTE, 0, _route(index, to, via)


def _errors(data: bytes) -> list[int]:
    numbers = []
    while len(data) >= _HEADER.size:
        length, kind, _, _, _ = _HEADER.unpack_from(data)
        if kind == _NLMSG_ERROR:
            numbers.append(-_ERROR.unpack_from(data, _HEADER.size)[0])
        data = data[(length + 3) & ~3 :]
    return numbers


def request(messages: list[Message], *, ignore: tuple[int, ...] = ()) -> None:
    """Send all in one go, in this thread's network namespace. Raises OSError with the first errno not in `ignore`."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as link:
        link.bind((0, 0))
        packed = b""
        for sequence, (kind, flags, body) in enumerate(messages, 1):
            length = _HEADER.size + len(body)
            header = _HEADER.pack(length, kind, flags | _NLM_F_REQUEST | _NLM_F_ACK, sequence, 0)
            packed += header + body + bytes(-length % 4)
        link.send(packed)
        answered: list[int] = []
        while len(answered) < len(messages):
            answered += _errors(link.recv(64 * 1024))
    for number in answered:
        if number and number not in ignore:
            raise OSError(number, os.strerror(number), "rtnetlink")


GONE = (errno.ENODEV, errno.ESRCH)
