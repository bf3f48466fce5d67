"""asyncssh's connection and channel, and what they do not do by themselves: tell when the network is slow, count what
was sent, know what the client has taken, leave out packets that only CBC ciphers need.

With `bounds` and `sealing` all that touches what asyncssh keeps private; pyproject.toml allows the versions they were
read for.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable

import asyncssh
from asyncssh.constants import MSG_CHANNEL_DATA, MSG_CHANNEL_WINDOW_ADJUST, MSG_IGNORE
from asyncssh.packet import SSHPacket, SSHPacketLogger
from asyncssh.session import DataType

from sandpty import config
from sandpty.server.delivery import ClientConnection
from sandpty.server.dialects.ssh.permits import PermittedChannel, PermittedConnection
from sandpty.server.dialects.ssh.sealing import Gcm

_DATA_HEAD = struct.Struct(">BII")  # type, channel, length
_OPENED_HEAD = struct.Struct(">BBII")  # of an opened packet: the padding's length, and those
_SEQUENCES = 1 << 32


# No ChaCha20: here it takes four calls of the cipher library for each packet.
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "aes128-ctr", "aes192-ctr", "aes256-ctr")
_GCM = [name.encode() for name in CIPHERS if "gcm" in name]
# None that takes ten times as long for the server (DH with groups of thousands of bits), before anybody has logged in.
KEY_EXCHANGES = (
    "mlkem768x25519-sha256",
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
)
# No UMAC: it is called through ctypes, which takes longer than SHA-256.
MACS = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512")


class _Unlogged:
    """asyncssh puts words together for a log of packets, whether there is one or not: a tenth of a packet's time."""

    def log_sent_packet(self, *_: object) -> None:
        pass

    def log_received_packet(self, *_: object) -> None:
        pass


class Connection(_Unlogged, PermittedConnection):
    """One client's connection."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        options: asyncssh.SSHServerConnectionOptions,
        refused: Callable[[Connection, str], bool],
    ) -> None:
        """`refused`: whether there is no room for one more connection, of that address."""
        super().__init__(loop, options)
        self._refused = refused
        self.sent_bytes = 0
        self._heard_at = 0.0
        self.client: ClientConnection | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")  # uvloop's inherit from nothing
        if self._refused(self, (transport.get_extra_info("peername") or ("",))[0]):
            transport.abort()  # type: ignore[attr-defined]
            return
        transport.set_write_buffer_limits(high=config.CLIENT_WRITE_HIGH_BYTES)  # type: ignore[attr-defined]
        self.client = ClientConnection(transport)  # type: ignore[arg-type]
        super().connection_made(transport)

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
        """Each packet is a sign of life. A timer is not made anew for each: it looks when the last one came."""
        self._heard_at = self._loop.time()
        if self._keepalive_timer is None:
            super()._reset_keepalive_timer()

    def _keepalive_timer_callback(self) -> None:
        silent_s = self._loop.time() - self._heard_at
        if silent_s < self._keepalive_interval:
            left_s = self._keepalive_interval - silent_s
            self._keepalive_timer = self._loop.call_later(left_s, self._keepalive_timer_callback)
        else:
            super()._keepalive_timer_callback()

    # --- a key, and its echo ---

    def send_newkeys(self, k: bytes, h: bytes) -> None:
        super().send_newkeys(k, h)
        self._send_encryption = Gcm.instead_of(self._send_encryption)
        self._next_recv_encryption = Gcm.instead_of(self._next_recv_encryption)

    def data_received(self, data: bytes, datatype: DataType = None) -> None:
        """What is typed comes as one packet of data alone, and goes the short way; else nothing has been done."""
        sealing = self._recv_encryption
        if (
            type(sealing) is Gcm
            and not self._inpbuf
            and self._recv_handler == self._recv_pkthdr
            and (packet := sealing.opened(data)) is not None
            and len(packet) >= _OPENED_HEAD.size
            and (head := _OPENED_HEAD.unpack_from(packet))[1] == MSG_CHANNEL_DATA
            and type(channel := self._channels.get(head[2])) is Channel
            and len(typed := packet[_OPENED_HEAD.size : -head[0]]) == head[3]
            and channel.take(typed)
        ):
            sealing.passed()
            self._recv_seq = (self._recv_seq + 1) % _SEQUENCES
            self._heard_at = self._loop.time()
        else:
            super().data_received(data, datatype)

    def _send_kexinit(self) -> None:
        """The client's preference decides, and OpenSSH's is CTR with a MAC before GCM, which is one call for both."""
        if b"OpenSSH" in self._client_version:
            self._enc_algs = _GCM
        super()._send_kexinit()

    def send_packet(self, pkttype: int, *args: bytes, handler: SSHPacketLogger | None = None) -> None:
        """An empty IGNORE before each packet is against an attack on CBC, which is not offered: half of all packets."""
        if pkttype != MSG_IGNORE:
            super().send_packet(pkttype, *args, handler=handler)

    def create_server_channel(
        self, encoding: str | None = "", errors: str = "", window: int = 0, max_pktsize: int = 0
    ) -> Channel:
        """Also asyncssh's own way to make the channel of a session."""
        return Channel(self, self._loop)


class Channel(_Unlogged, PermittedChannel):
    """The channel of a session.

    `taken` is called when the client says how many bytes it took; `typed`, once it is set, with what comes the short
    way.
    """

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
            window=connection.window_bytes(config.SSH_WINDOW_BYTES),
            max_pktsize=config.SSH_PACKET_BYTES,
        )
        self.connection = connection
        self.taken: Callable[[int], None] | None = None
        self.typed: Callable[[bytes], None] | None = None
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

    def take(self, data: bytes) -> bool:
        """Data that has come in, if nothing waits or is to be said before it. False: nothing was done."""
        left = self._recv_window - len(data)
        if not data or self._recv_paused or self._recv_state != "open" or 2 * left < self._init_recv_window:
            return False
        if self._send_state != "open":
            return False
        if self.typed is None:
            self._accept_data(data)
        else:
            self._recv_window = left
            self.typed(data)
        return True

    def write(self, data: bytes, datatype: DataType = None) -> None:
        """In packets that go the short way, as far as they can."""
        at = 0
        while datatype is None and at < len(data) and self.write_at_once(data[at : at + self._send_pktsize]):
            at += self._send_pktsize
        if at < len(data):
            super().write(data[at:], datatype)

    def write_at_once(self, data: bytes) -> bool:
        """When nothing waits before it, and it fits into one packet that the client allows. False: nothing was done."""
        size = len(data)
        connection = self.connection
        sealing = connection._send_encryption
        if (
            type(sealing) is not Gcm
            or self._send_buf
            or self._send_state != "open"
            or self._send_chan is None
            or not 0 < size <= self._send_window
            or size > self._send_pktsize
            or not connection.writable
            or not connection._kex_complete
            or connection._transport is None
            or connection._rekey_bytes_sent >= connection._rekey_bytes
            or (connection._rekey_seconds and connection._heard_at >= connection._rekey_time)  # both monotonic
        ):
            return False
        wire = sealing.seal(_DATA_HEAD.pack(MSG_CHANNEL_DATA, self._send_chan, size), data)
        connection._send_seq = (connection._send_seq + 1) % _SEQUENCES
        connection._rekey_bytes_sent += len(wire)
        connection.sent_bytes += len(wire)
        connection._transport.write(wire)
        self._send_window -= size
        return True

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
        """What can be a variable, within bounds."""
        name, value = packet.get_string(), packet.get_string()
        packet.check_end()
        self._env_bytes += len(name) + len(value)
        if len(self._env) >= config.SSH_ENV_VARIABLES or self._env_bytes > config.SSH_ENV_BYTES:
            return False
        if not name or b"=" in name or b"\0" in name + value:
            return False
        self._env[name] = value
        return True
