"""Forwarded connections: `ssh -L`, `-D` and `-J` into what a sandbox can reach, `ssh -R` out of it.

Every socket is one of the sandbox's own network: its loopback, its firewall, its egress policy. Names are resolved by
the sandbox as well. Nothing is ever connected to or listened on in this host's network.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager

import asyncssh
from asyncssh.constants import OPEN_CONNECT_FAILED
from asyncssh.stream import SSHReader, SSHTCPStreamSession, SSHUNIXStreamSession, SSHWriter

from sandpty import config
from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.dialects.ssh import guest_command, unix_sockets
from sandpty.server.dialects.ssh.background import Background
from sandpty.server.dialects.ssh.login import Login
from sandpty.server.dialects.ssh.transport import Connection
from sandpty.server.guest_defaults import default_user
from sandpty.wire.errors import SandptyError
from sandpty.wire.sockets import SocketKind
from sandpty.wire.verbs import Sandbox

log = logging.getLogger(__name__)
_LOCAL = frozenset(("localhost", "127.0.0.1", "::1", "ip6-localhost"))
_EVERYWHERE = frozenset(("", "*", "0.0.0.0", "::"))
_ADDRESSES_TRIED = 4  # of one name
_NAME_CHARACTERS = 253
_PRIVILEGED = 1024
_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Forwarding:
    """Of one client's connection."""

    def __init__(
        self, context: Context, principal: Principal, login: Login, connection: Connection, background: Background
    ) -> None:
        self._context = context
        self._principal = principal
        self._login = login
        self._connection = connection
        self._background = background
        self._listeners = 0

    async def _sandbox(self) -> Sandbox:
        return await self._context.registry.awake(self._login.sandbox, self._principal)

    # --- into the sandbox ---

    async def connect(self, host: str, port: int) -> asyncssh.SSHTCPSession[bytes]:
        """For a `direct-tcpip` channel. Raises ChannelOpenError with words for a person."""
        try:
            sandbox = await self._sandbox()
            streams = await self._reach(sandbox, host, port)
        except SandptyError as error:
            raise asyncssh.ChannelOpenError(OPEN_CONNECT_FAILED, error.message) from error

        async def carry(reader: SSHReader[bytes], writer: SSHWriter[bytes]) -> None:
            await self._carry(sandbox, streams, reader, writer)

        return SSHTCPStreamSession[bytes](carry)

    async def connect_unix(self, path: str) -> asyncssh.SSHUNIXSession[bytes]:
        """For a `direct-streamlocal` channel. Raises ChannelOpenError with words for a person."""
        try:
            if self._login.read_only:
                raise SandptyError("read_only", "+ro may only look")
            sandbox = await self._sandbox()
            attached = await unix_sockets.connect(sandbox, self._login.user or default_user(sandbox), path)
        except SandptyError as error:
            raise asyncssh.ChannelOpenError(OPEN_CONNECT_FAILED, error.message) from error

        async def carry(reader: SSHReader[bytes], writer: SSHWriter[bytes]) -> None:
            with self.cutting(sandbox, attached.close):
                await unix_sockets.carry(attached, self._connection, reader, writer)

        return SSHUNIXStreamSession[bytes](carry)

    async def _reach(self, sandbox: Sandbox, host: str, port: int) -> _Streams:
        sockets = self._context.guest_sockets
        if host in _LOCAL:
            return await sockets.open(sandbox, port)
        failure = SandptyError("port_closed", f"the sandbox knows no address of {host[:_NAME_CHARACTERS]}")
        for address in await self._addresses(sandbox, host):
            try:
                connected = await sockets.connect_to(sandbox, address, port)
                return await _streams(connected)
            except SandptyError as error:
                failure = error
        raise failure

    async def _addresses(self, sandbox: Sandbox, host: str) -> list[str]:
        """As the sandbox resolves it: its hosts file, its resolvers, its policy."""
        with contextlib.suppress(ValueError):
            return [str(ipaddress.ip_address(host))]
        if len(host) > _NAME_CHARACTERS or host.startswith("-") or "\0" in host:
            raise SandptyError("bad_argument", "that is no name of a host")
        said = await guest_command.run(sandbox, default_user(sandbox), "getent", "ahosts", host)
        found: dict[str, None] = {}
        for line in said.splitlines():
            with contextlib.suppress(ValueError, IndexError):
                found[str(ipaddress.ip_address(line.split()[0]))] = None
        return list(found)[:_ADDRESSES_TRIED]

    async def _carry(
        self, sandbox: Sandbox, inside: _Streams, reader: SSHReader[bytes], writer: SSHWriter[bytes]
    ) -> None:
        """Both ways, until both have ended; half-closed as TCP is."""
        inner_reader, inner_writer = inside
        with self._context.registry.cutting(sandbox.id, inner_writer.transport.abort):
            tasks = (
                asyncio.create_task(self._out(inner_reader, writer), name="ssh-forward-out"),
                asyncio.create_task(_in(reader, inner_writer), name="ssh-forward-in"),
            )
            try:
                await asyncio.gather(*tasks)
            except (OSError, asyncssh.Error) as error:
                log.debug("a forwarded connection ended: %s", error)
                writer.channel.abort()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                inner_writer.transport.abort()
                writer.close()

    async def _out(self, inner: asyncio.StreamReader, writer: SSHWriter[bytes]) -> None:
        while data := await inner.read(config.SSH_FORWARD_READ_BYTES):
            writer.write(data)
            await writer.drain()
            await self._connection.flowing.wait()
        writer.write_eof()

    # --- out of the sandbox ---

    async def listen(self, host: str, port: int) -> asyncssh.SSHListener | None:
        """For `tcpip-forward`: a listener in the sandbox. None refuses; ssh has no words for why."""
        try:
            return await self._listen(host, port)
        except SandptyError as error:
            log.info("no listener on %r port %d in %s: %s", host[:80], port, self._login.sandbox, error)
            return None

    async def _listen(self, host: str, port: int) -> asyncssh.SSHListener:
        if self._listeners >= config.SSH_LISTENERS_MAX:
            raise SandptyError("limit", "too many forwarded ports")
        if port and port < _PRIVILEGED and self._login.user != "root":
            raise SandptyError("permission_denied", "ports below 1024 are root's: log in as ID+user=root")
        sandbox = await self._sandbox()
        address = "0.0.0.0" if host in _EVERYWHERE else "127.0.0.1" if host in _LOCAL else host
        kind: SocketKind = "tcp6" if ":" in address else "tcp4"
        bound = await self._context.guest_sockets.bound(sandbox, kind, address, port)
        try:
            listener = _Listener(self, sandbox, host, bound)
            await listener.begin()
        except BaseException:
            bound.close()
            raise
        self._listeners += 1
        return listener

    def cutting(self, sandbox: Sandbox, cut: Callable[[], None]) -> AbstractContextManager[None]:
        return self._context.registry.cutting(sandbox.id, cut)

    def closed(self) -> None:
        self._listeners -= 1

    async def accepted(self, sandbox: Sandbox, place: tuple[str, int], inside: _Streams) -> None:
        """Somebody in the sandbox has connected to a forwarded port."""
        peer = inside[1].get_extra_info("peername") or ("", 0)
        try:
            reader, writer = await self._connection.open_connection(
                *place, peer[0], peer[1], window=config.SSH_FORWARD_WINDOW_BYTES
            )
        except (asyncssh.Error, OSError) as error:
            log.debug("the client takes no forwarded connection: %s", error)
            inside[1].transport.abort()
            return
        await self._carry(sandbox, inside, reader, writer)

    def spawn_accepted(self, sandbox: Sandbox, place: tuple[str, int], inside: _Streams) -> None:
        self._background.spawn(self.accepted(sandbox, place, inside))


class _Listener(asyncssh.SSHListener):
    """A port of a sandbox; goes with the sandbox's pause and end."""

    def __init__(self, forwarding: Forwarding, sandbox: Sandbox, host: str, bound: socket.socket) -> None:
        super().__init__()
        self._forwarding = forwarding
        self._sandbox = sandbox
        self._bound = bound
        self._place: tuple[str, int] = (host, bound.getsockname()[1])
        self._server: asyncio.Server | None = None
        self._held = contextlib.ExitStack()

    async def begin(self) -> None:
        self._server = await asyncio.start_server(self._accepted, sock=self._bound)
        self._held.enter_context(self._forwarding.cutting(self._sandbox, self.close))

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._forwarding.spawn_accepted(self._sandbox, self._place, (reader, writer))

    def get_port(self) -> int:
        return self._place[1]

    def close(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
            self._held.close()
            self._forwarding.closed()


async def _streams(connected: socket.socket) -> _Streams:
    try:
        return await asyncio.open_connection(sock=connected)
    except BaseException:
        connected.close()
        raise


async def _in(reader: SSHReader[bytes], inner: asyncio.StreamWriter) -> None:
    while data := await reader.read(config.SSH_FORWARD_READ_BYTES):
        inner.write(data)
        await inner.drain()
    with contextlib.suppress(OSError):  # the other side may have gone
        inner.write_eof()
