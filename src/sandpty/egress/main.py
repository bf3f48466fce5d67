"""The egress process: `python -m sandpty.egress.main UID DIRECTORY`, started by the supervisor as root with a listening
socket as descriptor 3. It leaves the host's network, opens its ports, reads the key of its certificate authority in
DIRECTORY, becomes UID without any right, and then serves.
"""

from __future__ import annotations

import asyncio
import asyncio.sslproto
import contextlib
import ctypes
import importlib
import logging
import os
import resource
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import dns.asyncbackend
import dns.rdata

from sandpty import config
from sandpty.egress.authority import Authority, open_authority
from sandpty.egress.control import Control
from sandpty.egress.guests import Guests
from sandpty.egress.names import Names
from sandpty.egress.proxy import Proxy
from sandpty.egress.resolver import Resolver
from sandpty.egress.upstream import Upstream
from sandpty.server.privileges import Account, drop_to

_CLONE_NEWNET = 0x40000000
_CLONE_NEWNS = 0x00020000
_MS_REC_PRIVATE = 0x4000 | (1 << 18)
_MNT_DETACH = 2
_STAGES = b"/run/sandpty-"  # where the supervisor of each data directory mounts
_CONTROL_FD = 3
_LAZY_MODULES = ("asyncio.staggered", "encodings.idna", "encodings.latin_1", "linecache", "traceback")
NAMES_PORT, HTTP_PORT, TLS_PORT, OTHER_PORT = 53, 80, 443, 1  # as the firewall's rules say


@dataclass(frozen=True, slots=True)
class Sockets:
    """All that listens; made before the rights are given up."""

    names_udp: socket.socket
    names_tcp: socket.socket
    http: socket.socket
    tls: socket.socket
    other: socket.socket


def leave_network() -> None:
    """Into a network namespace of our own, which is empty until the supervisor joins it to the host's."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def leave_mounts() -> None:
    """What the supervisor mounted: we may outlive it, and a mount that we keep keeps the disk of what was removed."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0 or libc.mount(b"none", b"/", None, ctypes.c_ulong(_MS_REC_PRIVATE), None) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    for line in reversed(Path("/proc/self/mounts").read_bytes().splitlines()):
        if (place := line.split(b" ")[1]).startswith(_STAGES):
            libc.umount2(place, _MNT_DETACH)


def open_sockets() -> Sockets:
    def tcp(port: int) -> socket.socket:
        return socket.create_server(("0.0.0.0", port), backlog=config.LISTEN_BACKLOG)

    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("0.0.0.0", NAMES_PORT))
    udp.setblocking(False)
    return Sockets(udp, tcp(NAMES_PORT), tcp(HTTP_PORT), tcp(TLS_PORT), tcp(OTHER_PORT))


async def serve(sockets: Sockets, listener: socket.socket, authority: Authority, upstream: Upstream) -> None:
    guests, resolver = Guests(), upstream.resolver
    control = Control(guests, upstream)
    proxy = Proxy(guests, resolver, upstream, authority, control.original)
    await Names(guests, resolver).open(sockets.names_udp, sockets.names_tcp)
    await proxy.open(sockets.http, HTTP_PORT)
    await proxy.open(sockets.tls, TLS_PORT)
    await proxy.open(sockets.other, 0)
    await control.open(listener)  # last: who is answered finds everything ready
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, control.ended.set)
    await control.ended.wait()
    await asyncio.sleep(0)  # the answer to the word that ended us


def main() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s egress: %(message)s")
    uid = int(sys.argv[1])
    listener = socket.socket(fileno=_CONTROL_FD)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    leave_mounts()
    leave_network()
    sockets = open_sockets()
    authority, upstream = open_authority(Path(sys.argv[2])), Upstream(Resolver())
    # What would be imported when it is first needed cannot be read then.
    for name in _LAZY_MODULES:
        importlib.import_module(name)
    dns.rdata.load_all_types()  # type: ignore[no-untyped-call]
    dns.asyncbackend.get_backend("asyncio")
    os.chdir("/")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    drop_to(Account(uid, uid, str(uid)))  # by which it also becomes a process that others cannot look into
    asyncio.sslproto.SSLProtocol.max_size = config.EGRESS_TLS_BYTES
    asyncio.run(serve(sockets, listener, authority, upstream))


if __name__ == "__main__":
    main()
