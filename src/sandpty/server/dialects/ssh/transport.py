"""asyncssh's connection and channel, and what they do not do by themselves: tell when the network is slow, count what
was sent, know what the client has taken, leave out packets that only CBC ciphers need, keep bounds.

The only module that touches what asyncssh keeps private; pyproject.toml allows the versions it was read for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import AnyStr

import asyncssh
from asyncssh.channel import SSHChannel
from asyncssh.constants import DISC_BY_APPLICATION, MSG_CHANNEL_WINDOW_ADJUST, MSG_IGNORE, OPEN_RESOURCE_SHORTAGE
from asyncssh.packet import SSHPacket, SSHPacketLogger

from sandpty import config
from sandpty.server.delivery import ClientConnection

_PACKET_BYTES = 32 * 1024  # OpenSSH's own


# No ChaCha20: here it takes four calls of the cipher library for each packet, and a third longer for each key typed.
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
_GCM = [name.encode() for name in CIPHERS if "gcm" in name]
# No UMAC: it is called through ctypes, which takes longer than SHA-256.
MACS = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512")


class _Unlogged:
    """asyncssh puts words together for a log of packets, whether there is one or not: a tenth of a packet's time."""

    def log_sent_packet(self, *_: object) -> None:
        pass

    def log_received_packet(self, *_: object) -> None:
        pass


class Connection(_Unlogged, asyncssh.SSHServerConnection):
    """One client's connection. `flowing` is clear while its network takes nothing."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: asyncssh.SSHServerConnectionOptions,
        refused: Callable[[Connection, str], bool],
    ) -> None:
        """`refused`: whether there is no room for one more connection, of that address."""
        super().__init__(loop, options)
        self._refused = refused
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.sent_bytes = 0
        self._kept_alive_at = 0.0
        self.client: ClientConnection | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")  # uvloop's inherit from nothing
        if self._refused(self, (transport.get_extra_info("peername") or ("",))[0]):
            transport.abort()  # type: ignore[attr-defined]
            return
        transport.set_write_buffer_limits(high=config.CLIENT_WRITE_HIGH_BYTES)  # type: ignore[attr-defined]
        self.client = ClientConnection(transport)  # type: ignore[arg-type]
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None = None) -> None:
        self.flowing.set()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        self.flowing.clear()

    def resume_writing(self) -> None:
        self.flowing.set()

    def say_goodbye(self, reason: str) -> None:
        """Cut it, and say why. The channels are not closed first: a client would leave, and not hear the reason."""
        if self._transport is not None:
            self._send_disconnect(DISC_BY_APPLICATION, reason, "en")
            self._force_close(None)

    def _force_close(self, exc: Exception | None) -> None:
        """As asyncssh's, but that the reason for a disconnect still goes out; no more is taken from now on."""
        transport, self._transport = self._transport, None
        if transport is None:
            return
        transport.close()
        self._loop.call_later(config.SSH_GOODBYE_S, transport.abort)
        self._loop.call_soon(self._cleanup, exc)

    def _cleanup(self, exc: Exception | None) -> None:
        super()._cleanup(exc)
        if self.client is not None:
            self.client.close()

    def _send(self, data: bytes) -> None:
        self.sent_bytes += len(data)
        super()._send(data)

    def _reset_keepalive_timer(self) -> None:
        """Each packet is a sign of life; that they are looked at once a second is enough."""
        now = self._loop.time()
        if now - self._kept_alive_at >= 1:
            self._kept_alive_at = now
            super()._reset_keepalive_timer()

    def _send_kexinit(self) -> None:
        """The client's preference decides, and OpenSSH's is CTR with a MAC before GCM, which is one call for both."""
        if b"OpenSSH" in self._client_version:
            self._enc_algs = _GCM
        super()._send_kexinit()

    def send_packet(self, pkttype: int, *args: bytes, handler: SSHPacketLogger | None = None) -> None:
        """An empty IGNORE before each packet is against an attack on CBC, which is not offered: half of all packets."""
        if pkttype != MSG_IGNORE:
            super().send_packet(pkttype, *args, handler=handler)

    def add_channel(self, chan: SSHChannel[AnyStr]) -> int:
        if len(self._channels) >= config.SSH_CHANNELS_MAX:
            raise asyncssh.ChannelOpenError(OPEN_RESOURCE_SHORTAGE, "too many channels of one connection")
        return super().add_channel(chan)

    def create_server_channel(
        self, encoding: str | None = "", errors: str = "", window: int = 0, max_pktsize: int = 0
    ) -> Channel:
        """Also asyncssh's own way to make the channel of a session."""
        return Channel(self, self._loop)


class Channel(_Unlogged, asyncssh.SSHServerChannel[bytes]):
    """The channel of a session. `taken` is called when the client says how many bytes it took."""

    def __init__(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            connection,
            loop,
            allow_pty=True,
            line_editor=False,
            line_echo=False,
            line_history=0,
            max_line_length=0,
            encoding=None,
            errors="strict",
            window=config.SSH_WINDOW_BYTES,
            max_pktsize=_PACKET_BYTES,
        )
        self.connection = connection
        self.taken: Callable[[int], None] | None = None
        self._took = asyncio.Event()
        self._client_window = 0
        self._env_bytes = 0

    @property
    def client_window_bytes(self) -> int:
        """How far ahead of what it takes the client lets itself be sent."""
        return self._client_window

    @property
    def untaken_bytes(self) -> int:
        """Written and, as far as the client has said, not taken out of its hands yet."""
        return self._client_window - self._send_window + self._send_buf_len

    async def wait_taken(self) -> None:
        """Until the client says that it took something, or the channel is closed."""
        self._took.clear()
        await self._took.wait()

    def _cleanup(self, exc: Exception | None = None) -> None:
        self._took.set()
        super()._cleanup(exc)

    def process_open(self, send_chan: int, send_window: int, send_pktsize: int, session: object) -> None:
        self._client_window = send_window
        super().process_open(send_chan, send_window, send_pktsize, session)  # type: ignore[arg-type]

    def process_packet(self, pkttype: int, pktid: int, packet: SSHPacket) -> bool | Awaitable[None]:
        before = self.untaken_bytes
        done = super().process_packet(pkttype, pktid, packet)
        if pkttype == MSG_CHANNEL_WINDOW_ADJUST:
            taken = before - self.untaken_bytes
            self._client_window = max(self._client_window, self._send_window)  # one that enlarges it
            self._took.set()
            if self.taken is not None:
                self.taken(taken)
        return done

    def _process_exec_request(self, packet: SSHPacket) -> bool:
        """As asyncssh's, for commands that need not be UTF-8."""
        command = packet.get_string()
        packet.check_end()
        return self._start_session(command=command.decode("utf-8", "surrogateescape"))

    def _process_env_request(self, packet: SSHPacket) -> bool:
        """Within bounds."""
        name, value = packet.get_string(), packet.get_string()
        packet.check_end()
        self._env_bytes += len(name) + len(value)
        if len(self._env) >= config.SSH_ENV_VARIABLES or self._env_bytes > config.SSH_ENV_BYTES:
            return False
        self._env[name] = value
        return True
