"""What keeps one client from taking more than its share of the server: of its time, and of its memory.

asyncssh takes what comes for as long as it comes, keeps it in as many pieces as the client cut it into, and puts its
answers on a pile, whether anybody takes them or not. With `transport`, `permits` and `sealing`, all that knows its
inside.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import AnyStr

import asyncssh
from asyncssh.channel import SSHChannel, SSHTCPChannel, SSHUNIXChannel
from asyncssh.constants import (
    DISC_BY_APPLICATION,
    MSG_CHANNEL_OPEN,
    MSG_CHANNEL_REQUEST,
    MSG_GLOBAL_REQUEST,
    MSG_USERAUTH_REQUEST,
    OPEN_RESOURCE_SHORTAGE,
)
from asyncssh.packet import SSHPacket, SSHPacketLogger
from asyncssh.session import DataType
from asyncssh.stream import SSHStreamSession

from sandpty import config


class Turns:
    """For work that may never have to wait by itself: `take` one before each piece of it."""

    def __init__(self) -> None:
        self._ends = 0.0

    async def take(self) -> None:
        """Others get theirs when this one is over."""
        if time.monotonic() >= self._ends:
            await asyncio.sleep(0)
            self._ends = time.monotonic() + config.SSH_TURN_S


class BoundedConnection(asyncssh.SSHServerConnection):
    """`flowing` is clear while the network takes nothing, and while keys are exchanged, when nothing may be said."""

    def __init__(self, loop: asyncio.AbstractEventLoop, options: asyncssh.SSHServerConnectionOptions) -> None:
        super().__init__(loop, options)
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.writable = True
        self._unread = False  # its answers pile up: nothing more is taken from it
        self._turn: asyncio.Handle | None = None  # the end of this one
        self._turn_ends = 0.0
        self._turn_packets = 0
        self._turn_over = False  # before all was taken that is there
        self._tries = 0

    def say_goodbye(self, reason: str) -> None:
        """Cut it, and say why. The channels are not closed first: a client would leave, and not hear the reason."""
        if self._transport is not None:
            self._send_disconnect(DISC_BY_APPLICATION, reason, "en")
            self._force_close(None)

    # --- time: everybody in turn ---

    def data_received(self, data: bytes, datatype: DataType = None) -> None:
        self._begin_turn()
        super().data_received(data, datatype)

    def _begin_turn(self) -> None:
        """What is read several times in one turn of the event loop is one turn."""
        if self._turn is None:
            self._turn_ends = time.monotonic() + config.SSH_TURN_S
            self._turn_packets = 0
            self._turn = self._loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._turn = None
        if self._turn_over and self._transport is not None:
            self._turn_over = False
            self._begin_turn()
            self._recv_data()
            self._read_on()

    def _recv_pkthdr(self) -> bool:
        """Before each packet, of which a turn has at least one."""
        self._begin_turn()
        self._turn_packets += 1
        if self._turn_packets == 1 or time.monotonic() < self._turn_ends or self._transport is None:
            return super()._recv_pkthdr()
        self._turn_over = True
        self._transport.pause_reading()
        return False

    def _read_on(self) -> None:
        if self._transport is not None and not self._turn_over and not self._unread:
            self._transport.resume_reading()

    # --- memory: what is not taken ---

    def pause_writing(self) -> None:
        self.writable = False
        self.flowing.clear()

    def resume_writing(self) -> None:
        self.writable = True
        self._unread = False
        self._read_on()
        self._flow()

    def _flow(self) -> None:
        if self.writable and self._kex_complete:
            self.flowing.set()

    def connection_lost(self, exc: Exception | None = None) -> None:
        self.flowing.set()
        super().connection_lost(exc)

    def _send(self, data: bytes) -> None:
        super()._send(data)
        if (
            not self.writable
            and self._transport is not None
            and self._transport.get_write_buffer_size() > config.SSH_UNREAD_BYTES
        ):
            self._unread = True
            self._transport.pause_reading()

    def _send_kexinit(self) -> None:
        super()._send_kexinit()
        self.flowing.clear()

    def send_newkeys(self, k: bytes, h: bytes) -> None:
        super().send_newkeys(k, h)
        self._flow()

    def send_packet(self, pkttype: int, *args: bytes, handler: SSHPacketLogger | None = None) -> None:
        super().send_packet(pkttype, *args, handler=handler)
        if len(self._deferred_packets) > config.SSH_DEFERRED_PACKETS:
            self.say_goodbye("it asks for too much while keys are exchanged")

    def process_packet(self, pkttype: int, pktid: int, packet: SSHPacket) -> bool | Awaitable[None]:
        if pkttype == MSG_GLOBAL_REQUEST and len(self._global_request_queue) >= config.SSH_REQUESTS_WAITING:
            raise asyncssh.ProtocolError("Too many requests at once")
        if pkttype == MSG_CHANNEL_OPEN and self._too_small(packet):
            return True
        trying = self._auth.task if pkttype == MSG_USERAUTH_REQUEST and self._auth is not None else None
        if trying is not None and not trying.done():
            self._count_try()  # it is given up for this one, and never answered
        return super().process_packet(pkttype, pktid, packet)

    def _too_small(self, packet: SSHPacket) -> bool:
        """Whether each packet of the channel would have to be tiny, and take as long as one that is not."""
        asked = SSHPacket(packet.get_remaining_payload())
        asked.get_string()
        theirs, _, packet_bytes = asked.get_uint32(), asked.get_uint32(), asked.get_uint32()
        if packet_bytes >= config.SSH_PACKET_MIN_BYTES:
            return False
        self.send_channel_open_failure(theirs, OPEN_RESOURCE_SHORTAGE, "packets so small are not sent here", "en")
        return True

    def window_bytes(self, usual: int) -> int:
        """Of the next channel: how much its client may send ahead of what is taken."""
        return usual if len(self._channels) < config.SSH_WIDE_CHANNELS else min(usual, config.SSH_NARROW_WINDOW_BYTES)

    def add_channel(self, chan: SSHChannel[AnyStr]) -> int:
        if len(self._channels) >= config.SSH_CHANNELS_MAX:
            raise asyncssh.ChannelOpenError(OPEN_RESOURCE_SHORTAGE, "too many channels of one connection")
        return super().add_channel(chan)

    def create_tcp_channel(
        self,
        encoding: str | None = None,
        errors: str = "strict",
        window: int = config.SSH_FORWARD_WINDOW_BYTES,
        max_pktsize: int = config.SSH_PACKET_BYTES,
    ) -> TcpChannel:
        return TcpChannel(self, self._loop, encoding, errors, self.window_bytes(window), max_pktsize)

    def create_unix_channel(
        self,
        encoding: str | None = None,
        errors: str = "strict",
        window: int = config.SSH_FORWARD_WINDOW_BYTES,
        max_pktsize: int = config.SSH_PACKET_BYTES,
    ) -> UnixChannel:
        return UnixChannel(self, self._loop, encoding, errors, self.window_bytes(window), max_pktsize)

    # --- who it is ---

    def send_userauth_failure(self, partial_success: bool) -> None:
        super().send_userauth_failure(partial_success)
        self._count_try()

    def _count_try(self) -> None:
        """The first is `none`, with which clients ask what they may try."""
        self._tries += 1
        if self._tries > config.SSH_LOGIN_TRIES:
            self.say_goodbye("too many keys and passwords were tried")


class BoundedChannel(SSHChannel[bytes]):
    """Keeps what waits in pieces of a sensible size, however small they came."""

    def process_packet(self, pkttype: int, pktid: int, packet: SSHPacket) -> bool | Awaitable[None]:
        if pkttype == MSG_CHANNEL_REQUEST and len(self._request_queue) >= config.SSH_REQUESTS_WAITING:
            raise asyncssh.ProtocolError("Too many requests at once")
        return super().process_packet(pkttype, pktid, packet)

    def _accept_data(self, data: bytes, datatype: DataType = None) -> None:
        if data and self._recv_paused and self._recv_buf and self._send_state not in ("close_pending", "closed"):
            waiting, kind = self._recv_buf[-1]
            if kind == datatype and len(waiting) + len(data) <= config.SSH_PIECE_BYTES:
                pieces = waiting if isinstance(waiting, bytearray) else bytearray(waiting)
                pieces += data
                self._recv_buf[-1] = (pieces, kind)  # type: ignore[assignment]  # bytes again, when delivered
                self._recv_window -= len(data)
                return
        super()._accept_data(data, datatype)

    def _deliver_data(self, data: bytes, datatype: DataType) -> None:
        super()._deliver_data(bytes(data), datatype)
        session = self._session
        if isinstance(session, SSHStreamSession) and len(session._recv_buf[datatype]) > config.SSH_PIECES_WAITING:
            session._read_paused = True  # it goes on when something is read
            self.pause_reading()


class TcpChannel(BoundedChannel, SSHTCPChannel[bytes]):
    """A connection that is forwarded to or from a port of the sandbox."""


class UnixChannel(BoundedChannel, SSHUNIXChannel[bytes]):
    """The same, of a unix socket."""
