"""Forwarded connections: `ssh -L`, `-D` and `-J` into what a sandbox can reach, `ssh -R` and `-A` out of it.

Every socket is one of the sandbox's own network: its loopback, its firewall, its egress policy. Names are resolved by
the sandbox as well. Nothing is ever connected to or listened on in this host's network.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import asyncssh
from asyncssh.constants import OPEN_CONNECT_FAILED
from asyncssh.stream import SSHReader, SSHTCPStreamSession, SSHUNIXStreamSession, SSHWriter

from sandpty import config
from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.dialects.ssh import guest_command, unix_sockets
from sandpty.server.dialects.ssh.background import Background
from sandpty.server.dialects.ssh.listeners import Listener, Listening
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
_UNBOUNDED = float("inf")
_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
_Channel = tuple[SSHReader[bytes], SSHWriter[bytes]]


class Forwarding:
    """Of one client's connection; `close` it with that."""

    def __init__(
        self, context: Context, principal: Principal, login: Login, connection: Connection, background: Background
    ) -> None:
        self._context = context
        self._principal = principal
        self._login = login
        self._connection = connection
        self._background = background
        self._listeners: set[Listener] = set()
        self._agent_channels = 0
        self._closed = False

    def close(self) -> None:
        """Nothing listens any more; connections end with their channels."""
        self._closed = True
        for listener in self._listeners:
            listener.close()

    def user(self, sandbox: Sandbox) -> str:
        """Whose paths and rights unix sockets have."""
        return self._login.user or default_user(sandbox)

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
            sandbox = await self._sandbox()
            connected = await unix_sockets.connect(self._context, sandbox, self.user(sandbox), path)
            streams = await _streams(connected)
        except SandptyError as error:
            raise asyncssh.ChannelOpenError(OPEN_CONNECT_FAILED, error.message) from error

        async def carry(reader: SSHReader[bytes], writer: SSHWriter[bytes]) -> None:
            await self._carry(sandbox, streams, reader, writer)

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
        self,
        sandbox: Sandbox,
        inside: _Streams,
        reader: SSHReader[bytes],
        writer: SSHWriter[bytes],
        most_bytes: float = _UNBOUNDED,
    ) -> None:
        """Both ways, until both have ended; half-closed as TCP is. `most_bytes`: either way, then it is cut."""
        inner_reader, inner_writer = inside
        with self._context.registry.cutting(sandbox.id, inner_writer.transport.abort):
            tasks = (
                asyncio.create_task(self._out(inner_reader, writer, most_bytes), name="ssh-forward-out"),
                asyncio.create_task(_in(reader, inner_writer, most_bytes), name="ssh-forward-in"),
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

    async def _out(self, inner: asyncio.StreamReader, writer: SSHWriter[bytes], most_bytes: float) -> None:
        while data := await inner.read(config.SSH_FORWARD_READ_BYTES):
            most_bytes = _less(most_bytes, data)
            writer.write(data)
            await writer.drain()
            await self._connection.flowing.wait()
        writer.write_eof()

    # --- out of the sandbox ---

    async def listen(self, host: str, port: int) -> asyncssh.SSHListener | None:
        """For `tcpip-forward`: a listener in the sandbox. None refuses; ssh has no words for why."""

        async def opening(inside: asyncio.StreamWriter) -> _Channel:
            peer = inside.get_extra_info("peername") or ("", 0)
            return await self._connection.open_connection(
                host, listener.get_port(), peer[0], peer[1], window=config.SSH_FORWARD_WINDOW_BYTES
            )

        try:
            if port and port < _PRIVILEGED and self._login.user != "root":
                raise SandptyError("permission_denied", "ports below 1024 are root's: log in as ID+user=root")
            sandbox = await self._sandbox()
            listener = self._listener(sandbox, opening)
            await self._begin(listener, sandbox, self._bound(sandbox, host, port))
        except SandptyError as error:
            log.info("no listener on %r port %d in %s: %s", host[:80], port, self._login.sandbox, error)
            return None
        return listener

    @asynccontextmanager
    async def _bound(self, sandbox: Sandbox, host: str, port: int) -> AsyncIterator[Listening]:
        address = "0.0.0.0" if host in _EVERYWHERE else "127.0.0.1" if host in _LOCAL else host
        kind: SocketKind = "tcp6" if ":" in address else "tcp4"
        with contextlib.closing(await self._context.guest_sockets.bound(sandbox, kind, address, port)) as bound:

            async def accept() -> socket.socket:
                return (await asyncio.get_running_loop().sock_accept(bound))[0]

            yield Listening(accept, bound.getsockname()[1])

    async def listen_unix(self, path: str) -> asyncssh.SSHListener | None:
        """For `streamlocal-forward`: a socket at a path of the sandbox. None refuses."""

        async def opening(_: asyncio.StreamWriter) -> _Channel:
            return await self._connection.open_unix_connection(path, window=config.SSH_FORWARD_WINDOW_BYTES)

        try:
            sandbox = await self._sandbox()
            listener = self._listener(sandbox, opening)
            await self._begin(listener, sandbox, self._at_path(sandbox, path))
        except SandptyError as error:
            log.info("no listener at %r in %s: %s", path[:200], self._login.sandbox, error)
            return None
        return listener

    async def listen_for_agent(self, sandbox: Sandbox, path: str) -> Listener:
        """A socket at a path of the sandbox that leads to the client's agent. Raises what listening there raises."""

        async def opening(_: asyncio.StreamWriter) -> _Channel:
            return await self._connection.open_agent()

        listener = self._listener(sandbox, opening, agent=True)
        await self._begin(listener, sandbox, self._at_path(sandbox, path))
        return listener

    def _at_path(self, sandbox: Sandbox, path: str) -> AbstractAsyncContextManager[Listening]:
        return unix_sockets.listening(self._context, sandbox, self.user(sandbox), path)

    def _listener(
        self, sandbox: Sandbox, opening: Callable[[asyncio.StreamWriter], Awaitable[_Channel]], *, agent: bool = False
    ) -> Listener:
        def accepted(inside: socket.socket) -> None:
            bringing = (
                self._bring_to_agent(sandbox, inside, opening) if agent else self._bring(sandbox, inside, opening)
            )
            self._background.spawn(bringing)

        return Listener(accepted)

    async def _begin(
        self, listener: Listener, sandbox: Sandbox, opening: AbstractAsyncContextManager[Listening]
    ) -> None:
        if self._closed or len(self._listeners) >= config.SSH_LISTENERS_MAX:
            raise SandptyError("limit", "too much listens for one connection")
        self._listeners.add(listener)
        try:
            await listener.begin(self._going_with(listener, sandbox, opening), self._background)
        except BaseException:
            self._listeners.discard(listener)
            raise

    @asynccontextmanager
    async def _going_with(
        self, listener: Listener, sandbox: Sandbox, opening: AbstractAsyncContextManager[Listening]
    ) -> AsyncIterator[Listening]:
        """With the sandbox's pause and end; this connection's end is `close`."""
        try:
            with self._context.registry.cutting(sandbox.id, listener.close):
                async with opening as listening:
                    yield listening
        finally:
            self._listeners.discard(listener)

    async def _bring(
        self,
        sandbox: Sandbox,
        inside: socket.socket,
        opening: Callable[[asyncio.StreamWriter], Awaitable[_Channel]],
        most_bytes: float = _UNBOUNDED,
    ) -> None:
        """Somebody in the sandbox has connected to what listens for the client."""
        try:
            streams = await _streams(inside)
        except OSError:  # it has gone again
            return
        try:
            reader, writer = await opening(streams[1])
        except (asyncssh.Error, OSError) as error:
            log.debug("the client takes no forwarded connection: %s", error)
            streams[1].transport.abort()
            return
        await self._carry(sandbox, streams, reader, writer, most_bytes)

    async def _bring_to_agent(
        self, sandbox: Sandbox, inside: socket.socket, opening: Callable[[asyncio.StreamWriter], Awaitable[_Channel]]
    ) -> None:
        if self._agent_channels >= config.SSH_AGENT_CHANNELS_MAX:
            inside.close()
            return
        self._agent_channels += 1
        try:
            await self._bring(sandbox, inside, opening, config.SSH_AGENT_BYTES)
        finally:
            self._agent_channels -= 1


async def _streams(connected: socket.socket) -> _Streams:
    try:
        if connected.family == socket.AF_UNIX:
            return await asyncio.open_unix_connection(sock=connected)
        return await asyncio.open_connection(sock=connected)
    except BaseException:
        connected.close()
        raise


def _less(most_bytes: float, data: bytes) -> float:
    """How much more may come. Raises OSError."""
    if len(data) > most_bytes:
        raise OSError("too much for one connection")
    return most_bytes - len(data)


async def _in(reader: SSHReader[bytes], inner: asyncio.StreamWriter, most_bytes: float) -> None:
    while data := await reader.read(config.SSH_FORWARD_READ_BYTES):
        most_bytes = _less(most_bytes, data)
        inner.write(data)
        await inner.drain()
    with contextlib.suppress(OSError):  # the other side may have gone
        inner.write_eof()
