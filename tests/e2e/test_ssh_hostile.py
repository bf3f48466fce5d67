"""ssh clients that mean no good, or nothing at all: what they cost is bounded, and the others notice nothing."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import asyncssh
import pytest
from asyncssh.constants import MSG_CHANNEL_DATA, MSG_CHANNEL_EOF, MSG_REQUEST_SUCCESS
from asyncssh.packet import Boolean, String, UInt32

from sandpty import config
from tests.e2e.ssh_client import TIMEOUT_S, Client, client_of
from tests.server_fixture import RunningServer
from tests.waiting import until


@pytest.fixture(scope="module")
def ssh(ssh_server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """OpenSSH for the key of this machine."""
    return client_of(ssh_server, tmp_path_factory.mktemp("ssh"))


@pytest.fixture(scope="module")
def box(ssh: Client) -> Iterator[str]:
    """The ID of a sandbox for all tests."""
    made = ssh.cli("create").stdout.strip()
    yield made
    ssh.cli("kill", made)


@asynccontextmanager
async def attacker(ssh: Client, user: str, password: str = "") -> AsyncIterator[asyncssh.SSHClientConnection]:
    """Somebody who may log in, and says what one tells him."""
    connection = await asyncssh.connect(
        "127.0.0.1",
        ssh.port,
        username=user,
        password=password or ssh.server.api_key,
        known_hosts=None,
        config=None,
        client_keys=None,
        agent_path=None,
    )
    try:
        yield connection
    finally:
        connection.abort()


class Said(asyncssh.SSHClientSession[bytes]):
    """What a session says."""

    def __init__(self) -> None:
        self.out = b""
        self.err = b""

    def data_received(self, data: bytes, datatype: int | None) -> None:
        if datatype is None:
            self.out += data
        else:
            self.err += data


async def session(
    connection: asyncssh.SSHClientConnection, command: str, **options: object
) -> tuple[asyncssh.SSHClientChannel[bytes], Said]:
    """A command that runs: what it says first has come."""
    channel, said = await connection.create_session(Said, command, encoding=None, **options)
    await until(lambda: said.out, what="it runs")
    return channel, said


def server_pid(ssh: Client) -> int:
    """Of the server process."""
    assert ssh.server.process is not None
    return ssh.server.process.pid


def descriptors(ssh: Client) -> int:
    """That the server has open."""
    return len(os.listdir(f"/proc/{server_pid(ssh)}/fd"))


async def answered(connection: asyncssh.SSHClientConnection) -> bool:
    """Whether the server has taken all that was sent before, and lets it be."""
    return bool((await connection._make_global_request(b"keepalive@openssh.com"))[0] == MSG_REQUEST_SUCCESS)


async def test_what_is_against_the_protocol_costs_one_connection(ssh: Client, box: str) -> None:
    """Logged in or not, by whatever way a packet would go: it is cut; who is beside it goes on."""

    def unknown_channel(connection: asyncssh.SSHClientConnection, _: int) -> None:
        connection.send_packet(MSG_CHANNEL_DATA, UInt32(77), String("x"))

    def beyond_the_window(connection: asyncssh.SSHClientConnection, number: int) -> None:
        for _ in range(config.SSH_WINDOW_BYTES // 30_000 + 2):
            connection.send_packet(MSG_CHANNEL_DATA, UInt32(number), String(bytes(30_000)))

    def wrong_length(connection: asyncssh.SSHClientConnection, number: int) -> None:
        connection.send_packet(MSG_CHANNEL_DATA, UInt32(number), UInt32(3), b"four")

    def garbled(connection: asyncssh.SSHClientConnection, _: int) -> None:
        connection._send(os.urandom(64))

    def too_long(connection: asyncssh.SSHClientConnection, number: int) -> None:
        connection.send_packet(MSG_CHANNEL_DATA, UInt32(number), String(bytes(400_000)))

    def after_the_end(connection: asyncssh.SSHClientConnection, number: int) -> None:
        connection.send_packet(MSG_CHANNEL_EOF, UInt32(number))
        connection.send_packet(MSG_CHANNEL_DATA, UInt32(number), String("x"))

    async with attacker(ssh, box) as beside:
        channel, said = await session(beside, "echo here; exec cat")
        for wrong in (unknown_channel, beyond_the_window, wrong_length, garbled, too_long, after_the_end):
            async with attacker(ssh, box) as connection:
                own, _ = await session(connection, "echo here; exec sleep 1000", term_type="xterm")
                wrong(connection, own._send_chan)
                async with asyncio.timeout(TIMEOUT_S):
                    await connection.wait_closed()
        channel.write(b"still here")
        await until(lambda: said.out == b"here\nstill here", what="who is beside goes on")


async def test_what_a_session_may_ask_for_and_when(ssh: Client, box: str) -> None:
    """One thing is started, once; the rest is refused or of no consequence, and the last size is the terminal's."""
    async with attacker(ssh, box) as connection:
        command = "tty; trap 'stty size' WINCH; while :; do read -t 0.1; done"
        channel, said = await session(connection, command, term_type="xterm", term_size=(0, 0))
        size = [UInt32(0), UInt32(0)]
        for request, args in (
            (b"exec", [String("id")]),
            (b"shell", []),
            (b"subsystem", [String("sftp")]),
            (b"pty-req", [String("x"), UInt32(1), UInt32(1), *size, String("")]),
            (b"x11-req", [Boolean(False), String("MIT-MAGIC-COOKIE-1"), String("00"), UInt32(0)]),
            (b"env", [String("A=B"), String("C")]),
            (b"env", [String("NUL"), String("a\0b")]),
            (b"nonsense@example.org", [String("x")]),
            (b"signal", [String(b"\xff")]),
        ):
            assert not await channel._make_request(request, *args), request
        before = descriptors(ssh)
        for number in range(500):
            channel._send_request(b"signal", String("URG"))
            channel._send_request(b"window-change", UInt32(number), UInt32(10**9), *size)
        channel._send_request(b"window-change", UInt32(101), UInt32(33), *size)
        channel._send_request(b"window-change", UInt32(0), UInt32(0), *size)
        for name in ("NONE", "-1", "99", "9" * 30):
            channel._send_request(b"signal", String(name))
        assert await answered(connection)
        assert descriptors(ssh) < before + 50
        await until(lambda: said.out.endswith(b"33 101\r\n"), what="the last size")
        assert (await connection.run("echo it lives", encoding=None)).stdout == b"it lives\n"


async def test_a_sandbox_of_others_is_as_one_that_is_not(ssh: Client, box: str) -> None:
    """The same words, whatever is asked of it; odd names are names."""
    other = ssh.cli("keys", "add", "--team", "strangers", "--name", "strangers").stdout.strip()
    nobody = "i" + "0" * 20
    said = {}
    for name in (box, nobody, f"{box}/../x", "../../etc/passwd", "i" + "x" * 900, "ü%s{}"):
        async with attacker(ssh, name, other) as connection:
            done = await connection.run("true", encoding=None)
            said[name] = bytes(done.stderr).replace(name[:64].encode(), b"ID"), done.exit_status
            with pytest.raises((asyncssh.Error, OSError)):
                async with asyncio.timeout(TIMEOUT_S), connection.start_sftp_client():
                    pass
            with pytest.raises(asyncssh.ChannelOpenError, match="not yours"):
                await connection.open_connection("localhost", 80)
    assert set(said.values()) == {said[nobody]}
    assert b"does not exist or is not yours" in said[nobody][0]
    for name in ("x\n", "x\0", "a" * 1100):
        with pytest.raises((asyncssh.Error, OSError, ValueError)):
            async with attacker(ssh, name, other):
                pass
    ssh.cli("keys", "revoke", "strangers")
