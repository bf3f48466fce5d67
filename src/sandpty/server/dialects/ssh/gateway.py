"""The listener, who is let in, and what ends a connection: its key's revocation, the server's end, silence.

A client is authenticated by an API key as the password, by a public key registered with an API key, or by a certificate
that this server made for one. Which sandbox it means is looked at afterwards, where there is a place to say what is
wrong.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Awaitable

import asyncssh
from asyncssh.channel import SSHTCPChannel, SSHUNIXChannel
from asyncssh.constants import OPEN_CONNECT_FAILED

from sandpty import config
from sandpty.server.auth import Principal, Revocation
from sandpty.server.context import Context
from sandpty.server.dialects.ssh.background import Background
from sandpty.server.dialects.ssh.client_agent import ClientAgent
from sandpty.server.dialects.ssh.forwarding import Forwarding
from sandpty.server.dialects.ssh.login import Login, parse
from sandpty.server.dialects.ssh.roles import Role
from sandpty.server.dialects.ssh.seen import Seen
from sandpty.server.dialects.ssh.session import Session
from sandpty.server.dialects.ssh.transport import CIPHERS, KEY_EXCHANGES, MACS, Connection
from sandpty.server.ssh_identity import SshIdentity
from sandpty.wire.errors import SandptyError

log = logging.getLogger(__name__)
_REVOKED = "the API key was revoked"
_STOPPING = "the server stops; terminals live on: ssh again"


class Gateway:
    """`serve` on a listener; `close` cuts every client."""

    def __init__(self, context: Context, identity: SshIdentity) -> None:
        self.context = context
        self.background = Background()
        self.seen = Seen()
        self._identity = identity
        self._clients: set[Client] = set()
        self._logins: dict[Connection, str] = {}  # who has not said yet who it is: its address
        self._authorities: dict[str, str] = {}  # public key -> key id
        context.auth.on_revoked.append(self._revoked)
        context.stopping.append(self.close)
        logging.getLogger("asyncssh").setLevel(logging.WARNING)

    async def serve(self, listener: socket.socket) -> asyncio.Server:
        """Begin to listen; the caller closes what is returned."""
        loop = asyncio.get_running_loop()
        options = await asyncssh.SSHServerConnectionOptions.construct(
            None,
            server_factory=lambda: Client(self),
            server_host_keys=[asyncssh.import_private_key(self._identity.host_key)],
            server_version="sandpty",
            kex_algs=list(KEY_EXCHANGES),
            encryption_algs=list(CIPHERS),
            mac_algs=list(MACS),
            compression_algs=["none"],
            login_timeout=config.SSH_LOGIN_S,
            keepalive_interval=config.SSH_KEEPALIVE_S,
            agent_forwarding=False,
            x11_forwarding=False,
            host_based_auth=False,
            gss_host=None,
            allow_scp=False,
            line_editor=False,
            encoding=None,
        )

        def make() -> Connection:
            return Connection(loop, options, self._has_no_room)

        return await loop.create_server(make, sock=listener, backlog=config.LISTEN_BACKLOG)

    # --- who is there ---

    def _has_no_room(self, connection: Connection, address: str) -> bool:
        """Whether there are too many already; else it counts from now on."""
        same = Counter(self._logins.values())[address]
        if (
            len(self._logins) >= config.SSH_LOGINS_MAX
            or same >= config.SSH_LOGINS_PER_ADDRESS
            or len(self._clients) >= config.SSH_CONNECTIONS_MAX
        ):
            log.debug("no room for a connection of %s", address)
            return True
        self._logins[connection] = address
        return False

    def logged_in(self, client: Client) -> None:
        self._logins.pop(client.connection, None)
        self._clients.add(client)

    def gone(self, client: Client) -> None:
        """Who has not logged in keeps his place for a while: coming again and again gets nobody further."""
        if client.connection in self._logins:
            asyncio.get_running_loop().call_later(config.SSH_PENALTY_S, self._logins.pop, client.connection, None)
        self._clients.discard(client)

    def has_too_many(self, principal: Principal) -> bool:
        """Whether the principal's team has all its connections."""
        return sum(each.principal.id == principal.id for each in self._clients) > config.SSH_CONNECTIONS_PER_TEAM

    def _revoked(self, revocation: Revocation) -> None:
        self._authorities = {}
        for client in list(self._clients):
            if client.principal.key in revocation.keys or client.principal.id in revocation.teams:
                client.connection.say_goodbye(_REVOKED)

    def close(self) -> None:
        """The server stops."""
        for client in list(self._clients):
            client.connection.say_goodbye(_STOPPING)
        for connection in list(self._logins):
            connection.abort()
        self.background.close()

    # --- who it is ---

    def certified(self, authority: asyncssh.SSHKey) -> Principal:
        """Who has certificates of this authority. Raises unauthenticated."""
        for key_id in self.context.auth.key_ids() - frozenset(self._authorities.values()):
            self._authorities[self._identity.authority(key_id)] = key_id
        key_id = self._authorities.get(_public_text(authority), "")
        return self.context.auth.principal_of_key_id(key_id)


def _public_text(key: asyncssh.SSHKey) -> str:
    return " ".join(key.export_public_key().decode().split()[:2])


class Client(asyncssh.SSHServer):
    """One connection, as asyncssh asks about it. `principal` is of use once it is logged in."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._context = gateway.context
        self.connection: Connection
        self.principal: Principal
        self._candidate: Principal | None = None  # of the last proof, which asyncssh goes on to check
        self._name = ""
        self._forwarding: Forwarding | None = None
        self._agent: ClientAgent | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        assert isinstance(conn, Connection)
        self.connection = conn

    def connection_lost(self, exc: Exception | None) -> None:
        self._gateway.gone(self)
        if self._forwarding is not None:
            self._forwarding.close()

    # --- logging in ---

    def begin_auth(self, username: str) -> bool:
        self._name = username
        return True

    def password_auth_supported(self) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    async def validate_password(self, username: str, password: str) -> bool:
        self._candidate = None
        try:
            principal = self._context.auth.principal(password)
        except SandptyError:
            await asyncio.sleep(config.SSH_LOGIN_PAUSE_S)
            self.connection.send_auth_banner("sandpty: the password is an API key of this server\r\n")
            return False
        self._candidate = principal
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        self._candidate = None
        try:
            self._candidate = self._context.auth.principal_of_ssh_key(_public_text(key))
        except SandptyError:
            return False
        return True

    def validate_ca_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        self._candidate = None
        try:
            self._candidate = self._gateway.certified(key)
        except SandptyError:
            return False
        return True

    def auth_completed(self) -> None:
        assert self._candidate is not None
        self.principal = self._candidate
        try:
            self.connection.role = self._login().role
        except SandptyError:
            self.connection.role = (
                Role.WRITER
            )  # of nothing: what is wrong with its name is said to whatever it asks for
        self._gateway.logged_in(self)
        if not self._context.auth.has_key(self.principal.key):  # revoked meanwhile
            self.connection.say_goodbye(_REVOKED)
        elif self._gateway.has_too_many(self.principal):
            self.connection.say_goodbye(f"your team has its {config.SSH_CONNECTIONS_PER_TEAM} connections already")

    # --- what it wants ---

    def _login(self) -> Login:
        return parse(self._name)

    def session_requested(self) -> Session:
        return Session(self._context, self.principal, self._login, self._gateway, self._offered_agent)

    def _offered_agent(self) -> ClientAgent | None:
        """To be called when the client offers its agent; None refuses."""
        if not self._context.settings.ssh_agents:
            return None
        if not self.connection.check_certificate_permission("agent-forwarding"):
            return None
        if self._agent is None:
            self._agent = ClientAgent(self._context, self._forward())
        return self._agent

    def _forward(self) -> Forwarding:
        if self._forwarding is None:
            self._forwarding = Forwarding(
                self._context, self.principal, self._login(), self.connection, self._gateway.background
            )
        return self._forwarding

    def connection_requested(
        self, dest_host: str, dest_port: int, orig_host: str, orig_port: int
    ) -> tuple[SSHTCPChannel[bytes], Awaitable[asyncssh.SSHTCPSession[bytes]]]:
        try:
            forwarding = self._forward()
        except SandptyError as error:
            raise asyncssh.ChannelOpenError(OPEN_CONNECT_FAILED, error.message) from error
        channel: SSHTCPChannel[bytes] = self.connection.create_tcp_channel(window=config.SSH_FORWARD_WINDOW_BYTES)
        return channel, forwarding.connect(dest_host, dest_port)

    def unix_connection_requested(
        self, dest_path: str
    ) -> tuple[SSHUNIXChannel[bytes], Awaitable[asyncssh.SSHUNIXSession[bytes]]]:
        try:
            forwarding = self._forward()
        except SandptyError as error:
            raise asyncssh.ChannelOpenError(OPEN_CONNECT_FAILED, error.message) from error
        channel: SSHUNIXChannel[bytes] = self.connection.create_unix_channel(window=config.SSH_FORWARD_WINDOW_BYTES)
        return channel, forwarding.connect_unix(dest_path)

    def server_requested(  # type: ignore[override]
        self, listen_host: str, listen_port: int
    ) -> Awaitable[asyncssh.SSHListener | None] | bool:
        try:
            return self._forward().listen(listen_host, listen_port)
        except SandptyError:
            return False

    def unix_server_requested(  # type: ignore[override]
        self, listen_path: str
    ) -> Awaitable[asyncssh.SSHListener | None] | bool:
        try:
            return self._forward().listen_unix(listen_path)
        except SandptyError:
            return False
