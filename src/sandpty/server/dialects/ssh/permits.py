"""asyncssh asked whether one may, before it does what a client wants: everything goes by the table of `roles`.

asyncssh's own options are for certain requests, and its own forwarding of agents listens on this host. With
`transport`, `bounds` and `sealing`, all that knows its inside.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import asyncssh
from asyncssh.channel import SSHAgentChannel
from asyncssh.constants import MSG_CHANNEL_OPEN, MSG_GLOBAL_REQUEST, OPEN_ADMINISTRATIVELY_PROHIBITED
from asyncssh.packet import SSHPacket, String
from asyncssh.stream import SSHReader, SSHUNIXStreamSession, SSHWriter

from sandpty import config
from sandpty.server.dialects.ssh import roles
from sandpty.server.dialects.ssh.bounds import BoundedChannel, BoundedConnection
from sandpty.server.dialects.ssh.roles import Kind, Role


class PermittedConnection(BoundedConnection):
    """`role`: a viewer's until it is known who it is."""

    def __init__(self, loop: asyncio.AbstractEventLoop, options: asyncssh.SSHServerConnectionOptions) -> None:
        super().__init__(loop, options)
        self.role = Role.VIEWER

    def process_packet(self, pkttype: int, pktid: int, packet: SSHPacket) -> bool | Awaitable[None]:
        if pkttype == MSG_CHANNEL_OPEN and self._refuses_channel(packet):
            return True
        if pkttype == MSG_GLOBAL_REQUEST and not self._may(Kind.GLOBAL_REQUEST, packet):
            packet.get_string()
            packet = SSHPacket(String(b"refused") + packet.get_remaining_payload())  # in its turn, as what is unknown
        return super().process_packet(pkttype, pktid, packet)

    def _may(self, kind: Kind, packet: SSHPacket) -> bool:
        name = SSHPacket(packet.get_remaining_payload()).get_string()
        return roles.may(self.role, kind, name.decode("ascii", "replace"))

    def _refuses_channel(self, packet: SSHPacket) -> bool:
        if self._may(Kind.CHANNEL, packet):
            return False
        asked = SSHPacket(packet.get_remaining_payload())
        asked.get_string()
        words = roles.ONLY_LOOKS if self.role == Role.VIEWER else "not offered here"
        self.send_channel_open_failure(asked.get_uint32(), OPEN_ADMINISTRATIVELY_PROHIBITED, words, "en")
        return True

    async def open_agent(self) -> tuple[SSHReader[bytes], SSHWriter[bytes]]:
        """A channel to the client's agent. Raises asyncssh.ChannelOpenError."""
        channel = AgentChannel(self, self._loop, None, "strict", config.SSH_AGENT_WINDOW_BYTES, config.SSH_PACKET_BYTES)
        session = await channel.open(SSHUNIXStreamSession[bytes])
        assert isinstance(session, SSHUNIXStreamSession)
        return SSHReader[bytes](session, channel), SSHWriter[bytes](session, channel)


class AgentChannel(BoundedChannel, SSHAgentChannel):
    """A connection of a program in the sandbox to the client's agent."""


class PermittedChannel(BoundedChannel, asyncssh.SSHServerChannel[bytes]):
    """The channel of a session. `agent_requested`: called when the client offers its agent; whether that is taken."""

    agent_requested: Callable[[], bool] | None = None

    def _service_next_request(self) -> None:
        connection = self.get_connection()
        assert isinstance(connection, PermittedConnection)
        if roles.may(connection.role, Kind.SESSION_REQUEST, self._request_queue[0][0]):
            super()._service_next_request()
        else:
            self._report_response(False)

    def _process_auth_agent_req_at_openssh_dot_com_request(self, packet: SSHPacket) -> bool:  # type: ignore[override]
        """Instead of asyncssh's."""
        packet.check_end()
        return self.agent_requested is not None and self.agent_requested()
