"""Descriptors that come with a message over a unix socket."""

from __future__ import annotations

import array
import socket


def receive(connection: socket.socket, bytes_max: int, descriptors_max: int) -> tuple[bytes, list[int]]:
    """A message and its descriptors, which no program inherits that we start. Raises OSError.

    `socket.recv_fds` does not pass its flags on (Python 3.11).
    """
    room = socket.CMSG_LEN(descriptors_max * array.array("i").itemsize)
    data, parts, _, _ = connection.recvmsg(bytes_max, room, socket.MSG_CMSG_CLOEXEC)
    found = array.array("i")
    for level, kind, part in parts:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(part[: len(part) - len(part) % found.itemsize])
    return data, list(found)
