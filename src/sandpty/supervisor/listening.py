"""Unix sockets for one account: their files are its own, and who connects is looked at."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
from collections.abc import Container

log = logging.getLogger(__name__)
_PEER = struct.Struct("iII")


def listen(path: str, uid: int, backlog: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
    """At `path`, 0600 and `uid`'s, instead of whatever was there; non-blocking. The caller closes it."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    try:
        listener.bind(path)
        os.chmod(path, 0o600)
        if os.geteuid() == 0:
            os.chown(path, uid, 0)
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def is_from(peer: socket.socket, allowed: Container[int]) -> bool:
    """Whether who has connected is one of these accounts."""
    uid = peer_uid(peer)
    if uid not in allowed:
        log.warning("refused a connection of uid %d", uid)
    return uid in allowed


def peer_uid(peer: socket.socket) -> int:
    """Who has connected."""
    uid: int = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[1]
    return uid
