"""How much of what was written has reached the client's host: what need not be said again to who comes back.

Neither E2B's wire nor SSH has offsets, but TCP acknowledges: the kernel tells how many bytes of a connection are not
yet acknowledged by the other side. Output counts as given once it is, so that what a cut network swallowed is said
again to the client that comes back, and nothing that arrived is.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import termios
from collections import deque
from contextlib import suppress

from sandpty import config

_LINGER_OFF = struct.pack("ii", 1, 0)  # SO_LINGER with no time: close() sends RST


class ClientConnection:
    """The client's TCP connection under a transport. Use as a context manager.

    It holds a duplicate of the descriptor, because what was delivered is asked after the transport has closed its own.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        # TIOCOUTQ is SIOCOUTQ: bytes in the send queue, sent or not, that are not acknowledged.
        self._socket = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))

    def __enter__(self) -> ClientConnection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    @property
    def unsent_bytes(self) -> int:
        """Bytes written that are still with us, not with the kernel."""
        return self._transport.get_write_buffer_size()

    @property
    def undelivered_bytes(self) -> int:
        """Bytes written that the client's host has not acknowledged."""
        queued = self.unsent_bytes
        try:
            return queued + int.from_bytes(fcntl.ioctl(self._socket, termios.TIOCOUTQ, b"\0" * 4), "little")
        except (OSError, ValueError):
            return queued

    @property
    def gone(self) -> bool:
        """Whether the client has closed, though our event loop may not have come to know yet."""
        if self._transport.is_closing():
            return True
        try:
            return self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def reset(self) -> None:
        """Cut the connection with RST: the only end that every SDK version takes for "the sandbox is gone"."""
        with suppress(OSError):  # closed already
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_OFF)
        self._socket.close()
        self._transport.abort()


class Delivery:
    """Maps what TCP acknowledged to offsets of output."""

    def __init__(self, connection: ClientConnection, offset: int) -> None:
        self._connection = connection
        self._written_bytes = 0
        self._marks: deque[tuple[int, int]] = deque()  # (bytes written up to here, offset of output up to here)
        self.offset = offset

    def wrote(self, wire_bytes: int, offset: int | None = None) -> None:
        """`wire_bytes` more were written; with them all output below `offset`."""
        self._written_bytes += wire_bytes
        if offset is None:
            return
        if len(self._marks) >= config.DELIVERY_MARKS:
            self._marks.pop()  # coarser: the merged event counts as delivered when its successor is
        self._marks.append((self._written_bytes, offset))

    @property
    def pending(self) -> bool:
        return bool(self._marks)

    def advance(self) -> bool:
        """Look again; whether `offset` moved."""
        return bool(self._marks) and self._reached(self._written_bytes - self._connection.undelivered_bytes)

    def settle(self, *, cut: bool = False) -> None:
        """The last look. A client that is still there gets what the kernel has; one that has gone, or that is to be
        `cut` off right now, got what it got."""
        if self._marks:
            connection = self._connection
            missing_bytes = connection.undelivered_bytes if cut or connection.gone else connection.unsent_bytes
            self._reached(self._written_bytes - missing_bytes)

    def _reached(self, delivered: int) -> bool:
        before = self.offset
        while self._marks and self._marks[0][0] <= delivered:
            self.offset = self._marks.popleft()[1]
        return self.offset != before


def chunked_bytes(body: bytes) -> int:
    """How long `body` is on the wire as one HTTP chunk."""
    return len(body) + len(f"{len(body):x}") + 4
