"""A binary WebSocket message written straight to the transport, whose buffers are kept small.

aiohttp's own way is a coroutine behind a task: right for whoever has to wait, and a fifth of what the echo of a key
costs the server when nobody has to.
"""

from __future__ import annotations

import asyncio
import socket as sockets
import struct

from sandpty import config

_BINARY = 0x82  # RFC 6455: a final frame, opcode 2; a server does not mask
_TWO_BYTES, _EIGHT_BYTES = 126, 127
_MEDIUM = struct.Struct(">BBH")
_LARGE = struct.Struct(">BBQ")
_JOINED_BYTES_MAX = 4096  # below it one copy is cheaper than two parts in one write


def write_binary(transport: asyncio.WriteTransport, message: bytes | memoryview) -> None:
    """Write one message, whole. The caller looks after the transport's buffer, and that no close was sent."""
    size = len(message)
    if size < _TWO_BYTES:
        head = bytes((_BINARY, size))
    elif size <= 0xFFFF:
        head = _MEDIUM.pack(_BINARY, _TWO_BYTES, size)
    else:
        head = _LARGE.pack(_BINARY, _EIGHT_BYTES, size)
    if size <= _JOINED_BYTES_MAX:
        transport.write(head + message)
    else:
        transport.writelines((head, message))


def keep_little_unsent(transport: asyncio.Transport | None) -> None:
    """What lies in our buffers when the user types Ctrl-C is stale output that nobody can take back.

    The kernel's bound counts only what is not sent yet: a distant client is still sent as much as its way holds.
    """
    if transport is not None and not transport.is_closing():
        transport.set_write_buffer_limits(high=config.CLIENT_UNSENT_BYTES)
        client = transport.get_extra_info("socket")
        client.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_NOTSENT_LOWAT, config.CLIENT_UNSENT_BYTES)
