"""How much of the server's time and memory one ssh client gets: our connection and channels, and a real client."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import asyncssh
import pytest
from asyncssh.constants import MSG_CHANNEL_REQUEST, MSG_IGNORE, MSG_USERAUTH_REQUEST
from asyncssh.packet import Boolean, SSHPacket, String, UInt32
from asyncssh.stream import SSHReader, SSHTCPStreamSession

from sandpty import config
from sandpty.server.dialects.ssh.bounds import TcpChannel
from sandpty.server.dialects.ssh.transport import KEY_EXCHANGES, Channel, Connection
from tests.waiting import pace, turn, until

FLOOD = 2000


class Quiet(asyncssh.SSHServerSession[bytes]):
    """Takes the first that comes, and nothing more until it is told to."""

    def __init__(self) -> None:
        self.channel: Channel
        self.got = bytearray()

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        assert isinstance(chan, Channel)
        self.channel = chan

    def exec_requested(self, command: str) -> bool:
        return True

    def data_received(self, data: bytes, datatype: int | None) -> None:
        assert type(data) is bytes
        self.got += data
        self.channel.pause_reading()


@dataclass
class Gate(asyncssh.SSHServer):
    """Lets everybody in whose password is not awaited, and keeps what they open."""

    password: str = ""
    sessions: list[Quiet] = field(default_factory=list)

    def begin_auth(self, username: str) -> bool:
        return bool(self.password)

    def password_auth_supported(self) -> bool:
        return True

    async def validate_password(self, username: str, password: str) -> bool:
        await pace(0.01, "an account that is looked up elsewhere")
        return password == self.password

    def session_requested(self) -> Quiet:
        self.sessions.append(Quiet())
        return self.sessions[-1]


@asynccontextmanager
async def listening(gate: Gate) -> AsyncIterator[tuple[int, list[Connection]]]:
    """A port, and who has come to it."""
    loop = asyncio.get_running_loop()
    made: list[Connection] = []
    options = await asyncssh.SSHServerConnectionOptions.construct(
        None,
        server_factory=lambda: gate,
        server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
        kex_algs=list(KEY_EXCHANGES),
        encoding=None,
    )

    def make() -> Connection:
        made.append(Connection(loop, options, lambda *_: False))
        return made[-1]

    server = await loop.create_server(make, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], made
    finally:
        server.close()
        for connection in made:
            connection.abort()


async def connect(port: int, **options: object) -> asyncssh.SSHClientConnection:
    """With nothing of this machine's."""
    return await asyncssh.connect(
        "127.0.0.1", port, username="x", known_hosts=None, config=None, client_keys=None, agent_path=None, **options
    )


@asynccontextmanager
async def met() -> AsyncIterator[tuple[asyncssh.SSHClientConnection, Connection, Gate]]:
    """Both ends of a connection that is logged in."""
    gate = Gate()
    async with listening(gate) as (port, made):
        client = await connect(port)
        try:
            yield client, made[0], gate
        finally:
            client.abort()


async def open_session(
    client: asyncssh.SSHClientConnection, gate: Gate
) -> tuple[asyncssh.SSHClientChannel[bytes], Quiet]:
    """Both ends of a session."""
    channel, _ = await client.create_session(asyncssh.SSHClientSession, "x", encoding=None)
    return channel, gate.sessions[-1]


async def answered(client: asyncssh.SSHClientConnection) -> bool:
    """Whether the server has taken all that was sent before."""
    return bool((await client._make_global_request(b"keepalive@openssh.com"))[0] == 81)


async def test_a_flood_of_small_packets_leaves_others_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop goes round again and again while it is taken; all of it is."""
    monkeypatch.setattr(config, "SSH_TURN_S", 0.0)
    async with met() as (client, server, _):
        before = server._recv_seq
        for _ in range(FLOOD):
            client.send_packet(MSG_IGNORE, String(b""))
        rounds = 0
        asked = asyncio.create_task(answered(client))
        while not asked.done():
            await turn()
            rounds += 1
        assert await asked
        assert server._recv_seq - before >= FLOOD
        assert rounds > FLOOD


async def test_answers_that_nobody_takes_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks without listening is not listened to; when he listens, he is answered."""
    monkeypatch.setattr(config, "SSH_UNREAD_BYTES", 100_000)
    async with met() as (client, server, gate):
        ours, theirs = server._transport, client._transport
        assert ours is not None
        assert theirs is not None
        ours.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        theirs.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        _, session = await open_session(client, gate)
        theirs.pause_reading()
        session.channel.write(bytes(1_500_000))  # all that the client's window allows: its network takes little of it
        assert not server.flowing.is_set()
        assert not ours.is_reading()
        asked = asyncio.create_task(answered(client))
        theirs.resume_reading()
        assert await asked
        assert server.flowing.is_set()
        assert ours.is_reading()


async def test_who_does_not_finish_an_exchange_of_keys_gets_nothing_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sessions wait, as for a network that takes nothing; who asks on is cut."""
    monkeypatch.setattr(config, "SSH_DEFERRED_PACKETS", 50)
    async with met() as (client, server, gate):
        await open_session(client, gate)
        client._recv_pkthdr = lambda: False  # type: ignore[method-assign]  # it hears nothing more
        client._recv_handler = client._recv_pkthdr
        assert server.flowing.is_set()
        client._send_kexinit()
        await until(lambda: not server.flowing.is_set(), what="the exchange begins")
        client._kex_complete = True
        for _ in range(100):
            client.send_packet(MSG_CHANNEL_REQUEST, UInt32(0), String("x"), Boolean(True))
        await until(server.is_closed, what="it is cut")
        assert len(server._deferred_packets) < 60


async def test_what_waits_is_kept_in_few_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small it came: each piece costs more than what is in it. Nothing of it is lost."""
    monkeypatch.setattr(config, "SSH_PIECES_WAITING", 10)
    async with met() as (client, _, gate):
        channel, session = await open_session(client, gate)
        data = bytes(range(256)) * 10
        for byte in data:
            channel.write(bytes([byte]))
        assert await answered(client)
        assert len(session.channel._recv_buf) == 1
        session.channel.resume_reading()
        assert session.got == data

        forwarded = TcpChannel(session.channel.connection, asyncio.get_running_loop(), None, "strict", 3000, 1000)
        stream = SSHTCPStreamSession[bytes]()
        stream.connection_made(forwarded)
        forwarded._session, forwarded._recv_paused, forwarded._send_state = stream, False, "open"
        for byte in data:
            forwarded._accept_data(bytes([byte]))
        assert len(stream._recv_buf[None]) + len(forwarded._recv_buf) < 20
        assert await SSHReader(stream, forwarded).readexactly(len(data)) == data


async def test_a_connection_has_room_for_a_few_wide_channels() -> None:
    """And for many narrow ones, so that all that may wait is bounded."""
    async with met() as (client, server, gate):
        for _ in range(config.SSH_WIDE_CHANNELS + 3):
            await open_session(client, gate)
        windows = [session.channel.get_recv_window() for session in gate.sessions]
        assert windows == [config.SSH_WINDOW_BYTES] * config.SSH_WIDE_CHANNELS + [config.SSH_NARROW_WINDOW_BYTES] * 3
        assert server.create_tcp_channel().get_recv_window() == config.SSH_NARROW_WINDOW_BYTES
        with pytest.raises(asyncssh.ChannelOpenError, match="so small"):
            await client.create_session(asyncssh.SSHClientSession, "x", encoding=None, max_pktsize=1)


@pytest.mark.parametrize("kind", ["global", "channel"])
async def test_requests_behind_one_that_takes_its_time_are_few(kind: str) -> None:
    """The connection of who asks on is cut."""
    async with met() as (client, server, gate):
        channel, session = await open_session(client, gate)
        if kind == "global":
            server._global_request_queue.append((None, SSHPacket(b""), False))
        else:
            session.channel._request_queue.append(("slow", SSHPacket(b""), False))
        for _ in range(config.SSH_REQUESTS_WAITING + 1):
            if kind == "global":
                client._send_global_request(b"x")
            else:
                channel._send_request(b"x")
        await until(server.is_closed, what="it is cut")


class Impatient(asyncssh.SSHClient):
    """Tries the next password before it hears of the last one."""

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        self.connection = conn

    def password_auth_requested(self) -> str:
        words = String("x"), String("ssh-connection"), String("password"), Boolean(False), String("wrong")
        for _ in range(2 * config.SSH_LOGIN_TRIES):
            self.connection.send_packet(MSG_USERAUTH_REQUEST, *words)
        return "right"


async def test_passwords_are_tried_a_few_times_only() -> None:
    """Also by who does not wait to be told that one was wrong."""
    async with listening(Gate(password="right")) as (port, made):
        with pytest.raises(asyncssh.DisconnectError, match="too many keys and passwords"):
            await connect(port, client_factory=Impatient)
        assert made[0]._tries == config.SSH_LOGIN_TRIES + 1
        async with await connect(port, password="right"):
            pass
