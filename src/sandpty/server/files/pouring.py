"""Big downloads past our own memory: from the guest's socket to the client's, moved by the kernel.

A copy into this process and one out of it are what a download costs; on a machine whose cores are busy they decide how
fast it is. Where the answer is neither compressed, nor chunked, nor encrypted, nobody needs to see its bytes.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from sandpty import config
from sandpty.terminal.files import Reading


def may_pour(request: web.Request, length: int | None) -> bool:
    """Whether an answer of `length` bytes (None: chunked) to this request is worth it, and can be."""
    transport = request.transport
    return (
        length is not None
        and length >= config.FILE_POUR_BYTES
        and transport is not None
        and transport.get_extra_info("ssl_object") is None
        and transport.get_extra_info("socket") is not None
    )


async def _drained(transport: asyncio.Transport) -> None:
    """Until our transport holds nothing: then its socket is ours to write to."""
    while not transport.is_closing():
        if not (unsent := transport.get_write_buffer_size()):
            return
        await asyncio.sleep(0 if unsent < 1024 else config.FILE_DRAIN_POLL_S)
    raise ConnectionResetError("the client has gone")


@contextmanager
def _raw(transport: asyncio.Transport) -> Iterator[socket.socket]:
    """The transport's socket under a descriptor of its own (the event loop minds the other), with room for much."""
    raw = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
    try:
        raw.setblocking(False)
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, config.FILE_CLIENT_BUFFER_BYTES)
        yield raw
    finally:
        try:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, config.CLIENT_SEND_BUFFER_BYTES)
        finally:
            raw.close()


async def pour(request: web.Request, reading: Reading, most: int) -> int:
    """After an answer's head and whatever was written of its body: `most` bytes of `reading`. How many there were.

    Raises ConnectionError when the client has gone, TimeoutError when it takes nothing for FILE_STALL_S.
    """
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has gone")
    async with asyncio.timeout(config.FILE_STALL_S):
        await _drained(transport)
    with _raw(transport) as raw:
        return await reading.pour(raw, most, config.FILE_STALL_S)
