"""Connections into sandboxes, to what their programs serve on any address of theirs, loopback included."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import select
import socket
from collections import OrderedDict
from dataclasses import dataclass

from sandpty import config
from sandpty.server.socket_source import SocketSource
from sandpty.server.spare_sockets import Cutting, SpareSockets
from sandpty.wire.errors import SandptyError
from sandpty.wire.sockets import SocketKind, SocketRequest
from sandpty.wire.verbs import Sandbox

# Nobody listens there, or there is no such address: another one may do.
_ELSEWHERE = frozenset(
    (
        errno.ECONNREFUSED,
        errno.ECONNRESET,
        errno.EADDRNOTAVAIL,
        errno.EAFNOSUPPORT,
        errno.ENETUNREACH,
        errno.EHOSTUNREACH,
        errno.EPERM,  # a firewall of the guest's own
    )
)
_LOOPBACK4, _LOOPBACK6 = "127.0.0.1", "::1"


@dataclass(frozen=True, slots=True)
class _Place:
    """One address of a guest."""

    kind: SocketKind
    address: str


class GuestSockets:
    """Sockets inside sandboxes' networks, on `Context` as `guest_sockets`. `close` it.

    Whoever keeps one beyond a moment guards it with `registry.cutting`: the socket lives on when the sandbox is paused.
    """

    def __init__(self, path: str, cutting: Cutting) -> None:
        """`cutting`: the registry's."""
        self._source = SocketSource(path)
        self._spares = SpareSockets(self._source, cutting)
        self._found: OrderedDict[tuple[str, int], _Place] = OrderedDict()  # where a port was last found

    def close(self) -> None:
        self._spares.close()
        self._source.close()

    async def connect(
        self, sandbox: Sandbox, port: int, timeout_s: float = config.GUEST_CONNECT_TIMEOUT_S
    ) -> socket.socket:
        """A connected non-blocking TCP socket: to 127.0.0.1, else ::1, else the guest's own address.

        Raises port_closed (nobody listens), timeout, bad_argument, sandbox_paused, no_such_sandbox, sandbox_ended,
        unsupported (the process tier has no network of its own), supervisor_down.
        """
        if sandbox.state != "running":
            raise SandptyError("sandbox_paused", f"sandbox {sandbox.id} is paused")
        if not 1 <= port <= 65535:
            raise SandptyError("bad_argument", f"{port} is not a port")
        try:
            async with asyncio.timeout(timeout_s):
                return await self._connect(sandbox.id, port)
        except TimeoutError as error:
            raise SandptyError("timeout", f"port {port} did not answer within {timeout_s:g} s") from error

    async def open(
        self, sandbox: Sandbox, port: int, timeout_s: float = config.GUEST_CONNECT_TIMEOUT_S
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """As `connect`, as a pair of streams."""
        connected = await self.connect(sandbox, port, timeout_s)
        try:
            return await asyncio.open_connection(sock=connected)
        except BaseException:
            connected.close()
            raise

    async def connect_to(
        self, sandbox: Sandbox, address: str, port: int, timeout_s: float = config.GUEST_CONNECT_TIMEOUT_S
    ) -> socket.socket:
        """As `connect`, to any IP address, as the sandbox's programs would reach it: its network policy holds."""
        if sandbox.state != "running":
            raise SandptyError("sandbox_paused", f"sandbox {sandbox.id} is paused")
        if not 1 <= port <= 65535:
            raise SandptyError("bad_argument", f"{port} is not a port")
        try:
            kind: SocketKind = "tcp4" if ipaddress.ip_address(address).version == 4 else "tcp6"
        except ValueError:
            raise SandptyError("bad_argument", f"{address[:80]!r} is no IP address") from None
        try:
            async with asyncio.timeout(timeout_s):
                connected, _ = await self._attempt(sandbox.id, port, _Place(kind, address))
        except TimeoutError as error:
            raise SandptyError("timeout", f"{address} port {port} did not answer within {timeout_s:g} s") from error
        if connected is None:
            raise SandptyError("port_closed", f"{address} port {port} cannot be reached from sandbox {sandbox.id}")
        return connected

    async def bound(self, sandbox: Sandbox, kind: SocketKind, address: str, port: int) -> socket.socket:
        """A non-blocking socket bound inside the sandbox; of TCP it listens. Port 0: any; see `getsockname`.

        The supervisor binds it: ports that need privileges are the caller's to refuse. Raises conflict (in use),
        bad_argument (no such address there), and what `connect` does of sandboxes.
        """
        if sandbox.state != "running":
            raise SandptyError("sandbox_paused", f"sandbox {sandbox.id} is paused")
        made, _ = await self._source.ask(SocketRequest(sandbox.id, (kind,), address, port))
        return made[0]

    async def _connect(self, sandbox_id: str, port: int) -> socket.socket:
        key = (sandbox_id, port)
        tried = self._found.get(key)
        if tried is not None and (connected := (await self._attempt(sandbox_id, port, tried))[0]):
            return connected
        places = [_Place("tcp4", _LOOPBACK4), _Place("tcp6", _LOOPBACK6)]
        for place in places:
            if place == tried:
                continue
            connected, own = await self._attempt(sandbox_id, port, place)
            if connected is not None:
                self._remember(key, place)
                return connected
            if own and place.kind == "tcp6":
                places.append(_Place("tcp4", own))
        self._found.pop(key, None)
        raise SandptyError("port_closed", f"nothing listens on port {port} of sandbox {sandbox_id}")

    async def _attempt(self, sandbox_id: str, port: int, place: _Place) -> tuple[socket.socket | None, str]:
        """A connection if somebody listens there; the guest's own address."""
        made, own = await self._socket(sandbox_id, place.kind)
        try:
            await _connected(made, (place.address, port))
        except OSError as error:
            made.close()
            if error.errno in _ELSEWHERE:
                return None, own
            raise SandptyError("port_closed", f"port {port}: {(error.strerror or str(error)).lower()}") from error
        except BaseException:
            made.close()
            raise
        return made, own

    async def _socket(self, sandbox_id: str, kind: SocketKind) -> tuple[socket.socket, str]:
        if kind == "tcp4" and (spare := self._spares.take(sandbox_id)) is not None:
            return spare
        made, own = await self._source.ask(SocketRequest(sandbox_id, (kind,)))
        return made[0], own

    def _remember(self, key: tuple[str, int], place: _Place) -> None:
        self._found[key] = place
        self._found.move_to_end(key)
        while len(self._found) > config.GUEST_PORTS_REMEMBERED_MAX:
            self._found.popitem(last=False)


async def _connected(made: socket.socket, address: tuple[str, int]) -> None:
    """Raises OSError. On a loopback the answer is there by the time that `connect` returns."""
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    number = made.connect_ex(address)
    if number == errno.EINPROGRESS:
        poll = select.poll()
        poll.register(made, select.POLLOUT)
        if not poll.poll(0):
            await _writable(made)
        number = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number:
        raise OSError(number, os.strerror(number))


async def _writable(made: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def writable() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_writer(made.fileno(), writable)
    try:
        await ready
    finally:
        loop.remove_writer(made.fileno())
