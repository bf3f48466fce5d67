"""TCP connections to a sandbox's ports over WebSockets: whole, with backpressure, and not to be abused."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio

from sandpty import config
from sandpty.sdk import AsyncClient, Client, PortForward
from sandpty.wire.errors import SandptyError
from tests.component.fake_host import API_KEY, FakeHost, fake_host
from tests.component.port_peer import DEADLINE_S, Seen, service
from tests.waiting import until, until_still

NOWHERE = Path("/nonexistent")
MB = 1 << 20
TEXT = bytes(range(256)) * 20_000
BUFFERED_MOST = 24 * MB  # in all buffers on the way: of the kernel, the client's library and the server


@pytest_asyncio.fixture(scope="module")
async def host() -> AsyncIterator[FakeHost]:
    """One server for this file."""
    async with fake_host() as running:
        yield running


@pytest_asyncio.fixture(scope="module")
async def sandbox(host: FakeHost) -> str:
    """A sandbox whose ports are this host's."""
    return await host.sandbox_at(NOWHERE)


@pytest_asyncio.fixture(scope="module")
async def client(host: FakeHost) -> AsyncIterator[AsyncClient]:
    """Our SDK's."""
    async with AsyncClient(host.url, API_KEY) as connected:
        yield connected


async def digest(seen: Seen) -> None:
    """A service that reads to the end and then says what it was."""
    hashed = hashlib.sha256()
    while data := await seen.reader.read(65536):
        hashed.update(data)
    await seen.say(hashed.hexdigest().encode())


async def read_all(connection: object) -> bytes:
    """What comes, to its end."""
    said = bytearray()
    while data := await connection.receive():  # type: ignore[attr-defined]
        said += data
    return bytes(said)


def wire(host: FakeHost, sandbox: str, port: int | str) -> str:
    """The route."""
    return f"{host.url}/v1/sandboxes/{sandbox}/ports/{port}"


async def close_code(socket_: aiohttp.ClientWebSocketResponse) -> int | None:
    """Once the server has closed."""
    async with asyncio.timeout(DEADLINE_S):
        while (await socket_.receive()).type is aiohttp.WSMsgType.BINARY:
            pass
    return socket_.close_code


# --- bytes -----------------------------------------------------------------------------------------------------------


async def test_bytes_pass_both_ways_and_each_direction_ends_by_itself(client: AsyncClient, sandbox: str) -> None:
    """The service answers after it has seen the end of what it is sent: a half-closed connection works."""
    async with service(digest, read_head=False) as port, client.connect_port(sandbox, port) as guest:
        await guest.send(TEXT)
        await guest.send_end()
        assert await asyncio.wait_for(read_all(guest), DEADLINE_S) == hashlib.sha256(TEXT).hexdigest().encode()
        await asyncio.wait_for(guest.wait_closed(), DEADLINE_S)


async def test_the_service_may_end_first(client: AsyncClient, sandbox: str) -> None:
    """It has said all, and still reads to the end."""
    got: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def speak_first(seen: Seen) -> None:
        await seen.say(b"all I have to say")
        seen.writer.write_eof()
        got.set_result(await seen.reader.read())

    async with service(speak_first, read_head=False) as port, client.connect_port(sandbox, port) as guest:
        assert await asyncio.wait_for(read_all(guest), DEADLINE_S) == b"all I have to say"
        await guest.send(b"and I ")
        await guest.send(b"answer")
        await guest.send_end()
        assert await asyncio.wait_for(got, DEADLINE_S) == b"and I answer"
        await asyncio.wait_for(guest.wait_closed(), DEADLINE_S)


async def test_the_blocking_flavour_connects_as_well(host: FakeHost, sandbox: str) -> None:
    """The same methods, without `await`."""

    def ask(port: int) -> bytes:
        with Client(host.url, API_KEY) as blocking, blocking.connect_port(sandbox, port) as guest:
            guest.send(TEXT)
            guest.send_end()
            said = guest.receive()
            assert guest.receive() == b""
            guest.wait_closed()
            return said

    async with service(digest, read_head=False) as port:
        said = await asyncio.wait_for(asyncio.to_thread(ask, port), DEADLINE_S)
    assert said == hashlib.sha256(TEXT).hexdigest().encode()


async def test_a_service_that_does_not_read_stops_the_client(client: AsyncClient, sandbox: str) -> None:
    """What is sent meanwhile waits at the sender, not in the server; heartbeats do not end it."""
    asleep = asyncio.Event()

    async def sleep_then_count(seen: Seen) -> None:
        await asleep.wait()
        await digest(seen)

    sent = 0

    async def flood(guest: object) -> None:
        nonlocal sent
        for _ in range(64):
            await guest.send(bytes(MB))  # type: ignore[attr-defined]
            sent += MB

    async with service(sleep_then_count, read_head=False) as port, client.connect_port(sandbox, port) as guest:
        flooding = asyncio.create_task(flood(guest))
        await until_still(lambda: sent, DEADLINE_S)
        assert sent < BUFFERED_MOST
        asleep.set()
        await asyncio.wait_for(flooding, DEADLINE_S)
        await guest.send_end()
        assert (
            await asyncio.wait_for(read_all(guest), DEADLINE_S) == hashlib.sha256(bytes(64 * MB)).hexdigest().encode()
        )


async def test_a_client_that_does_not_read_stops_the_service(client: AsyncClient, sandbox: str) -> None:
    """And gets everything once it does."""
    said = 0

    async def flood(seen: Seen) -> None:
        nonlocal said
        for _ in range(64):
            await seen.say(bytes(MB))
            said += MB

    async with service(flood, read_head=False) as port, client.connect_port(sandbox, port) as guest:
        await until_still(lambda: said, DEADLINE_S)
        assert said < BUFFERED_MOST
        got = 0
        async with asyncio.timeout(DEADLINE_S):
            while data := await guest.receive():
                got += len(data)
        assert got == 64 * MB


# --- broken off ------------------------------------------------------------------------------------------------------


async def test_a_service_that_breaks_off_is_told_from_one_that_ends(client: AsyncClient, sandbox: str) -> None:
    """A reset is port_closed, not the end of the stream."""

    async def break_off(seen: Seen) -> None:
        await seen.say(b"half")
        await seen.reader.read(1)
        raw = seen.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        seen.writer.transport.abort()

    async with service(break_off, read_head=False) as port, client.connect_port(sandbox, port) as guest:
        assert await guest.receive() == b"half"
        await guest.send(b"go")
        with pytest.raises(SandptyError) as caught:
            await asyncio.wait_for(read_all(guest), DEADLINE_S)
    assert caught.value.reason.name == "port_closed"


@pytest.mark.parametrize("how", ["goodbye", "vanishes"])
async def test_a_client_that_breaks_off_is_told_from_one_that_ends(host: FakeHost, sandbox: str, how: str) -> None:
    """What it did not finish is reset: half an upload never looks like a whole one."""
    outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def read(seen: Seen) -> None:
        await seen.say(b"ready")
        try:
            while await seen.reader.read(65536):
                pass
            outcome.set_result("end")
        except ConnectionResetError:
            outcome.set_result("reset")

    async with service(read, read_head=False) as port:
        async with host.client.ws_connect(wire(host, sandbox, port)) as connection:
            assert await connection.receive_bytes() == b"ready"
            await connection.send_bytes(b"half an upload")
            if how == "vanishes":
                assert connection._response.connection is not None
                assert connection._response.connection.transport is not None
                connection._response.connection.transport.abort()
        assert await asyncio.wait_for(outcome, DEADLINE_S) == "reset"


async def test_what_a_service_said_before_it_refused_the_rest_arrives(client: AsyncClient, sandbox: str) -> None:
    """An early answer is passed on, and then the client is told that the service takes no more."""

    async def refuse(seen: Seen) -> None:
        await seen.reader.read(1)
        await seen.say(b"too much")

    async with service(refuse, read_head=False) as port, client.connect_port(sandbox, port) as guest:
        sending = asyncio.create_task(guest.send(bytes(64 * MB)))
        async with asyncio.timeout(DEADLINE_S):
            outcomes = await asyncio.gather(read_all(guest), sending, return_exceptions=True)
            with pytest.raises(SandptyError) as caught:
                await guest.wait_closed()
    assert caught.value.reason.name == "port_closed"
    assert outcomes[0] == b"too much" or isinstance(outcomes[0], SandptyError)  # a reset may overtake it in the guest


@pytest.mark.parametrize(("how", "reason"), [("kill", "sandbox_ended"), ("pause", "sandbox_paused")])
async def test_a_sandbox_that_goes_ends_its_connections_with_a_reason(
    host: FakeHost, client: AsyncClient, how: str, reason: str
) -> None:
    """Both sides learn it at once."""
    short_lived = await host.sandbox_at(NOWHERE)
    gone = asyncio.Event()

    async def read(seen: Seen) -> None:
        await seen.say(b"ready")
        with contextlib.suppress(ConnectionResetError):
            await seen.reader.read()
        gone.set()

    async with service(read, read_head=False) as port, client.connect_port(short_lived, port) as guest:
        assert await guest.receive() == b"ready"
        await (client.kill_sandbox(short_lived) if how == "kill" else client.pause_sandbox(short_lived))
        with pytest.raises(SandptyError) as caught:
            await asyncio.wait_for(guest.receive(), DEADLINE_S)
        await asyncio.wait_for(gone.wait(), DEADLINE_S)
    assert caught.value.reason.name == reason


# --- hostile use -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("port", "status", "reason"),
    [("1", 502, "port_closed"), ("0", 400, "bad_argument"), ("65536", 400, "bad_argument"), ("8000x", 400, ""),
     ("-1", 400, ""), ("٣", 400, ""), ("999999999999", 400, "")],
)  # fmt: skip
async def test_what_is_no_port_is_refused_before_the_upgrade(
    host: FakeHost, sandbox: str, port: str, status: int, reason: str
) -> None:
    """With the usual answer."""
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
    upgrade["Sec-WebSocket-Key"] = "dGhlIHNhbXBsZSBub25jZQ=="
    answer = await host.request("GET", f"/v1/sandboxes/{sandbox}/ports/{port}", headers=upgrade)
    assert answer[0] == status
    assert answer[1]["error"]["reason"] == (reason or "bad_argument")  # type: ignore[index]
    plain = await host.request("GET", f"/v1/sandboxes/{sandbox}/ports/80")
    assert plain[0] == 400


@pytest.mark.parametrize(
    ("said", "code"), [(("hello",), 4400), ((b"", b"more"), 4400), ((b"", b""), 4400), ((bytes(2 * MB),), 1009)]
)
async def test_a_client_that_breaks_the_protocol_is_cut_off(
    host: FakeHost, sandbox: str, said: tuple[str | bytes, ...], code: int
) -> None:
    """Text, anything after the end, messages beyond all measure."""

    async def listen(seen: Seen) -> None:
        await seen.reader.read()
        await asyncio.Event().wait()

    async with (
        service(listen, read_head=False) as port,
        host.client.ws_connect(wire(host, sandbox, port), max_msg_size=0) as connection,
    ):
        for message in said:
            await (connection.send_str(message) if isinstance(message, str) else connection.send_bytes(message))
        assert await close_code(connection) == code


async def test_connections_are_limited_and_come_back(
    host: FakeHost, client: AsyncClient, sandbox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sandbox's cannot take all of the server's descriptors; when they end there is room again."""
    monkeypatch.setattr(config, "PORT_TUNNELS_PER_SANDBOX_MAX", 3)

    async def listen(seen: Seen) -> None:
        await seen.reader.read()

    async with service(listen, read_head=False) as port:
        before = await host.at_rest()
        for _ in range(20):
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(3):
                    await stack.enter_async_context(client.connect_port(sandbox, port))
                with pytest.raises(SandptyError) as caught:
                    await client.connect_port(sandbox, port).open()
                assert caught.value.reason.name == "limit"

            async def room() -> bool:
                try:
                    async with client.connect_port(sandbox, port):
                        return True
                except SandptyError:
                    return False

            await until(room, DEADLINE_S)

        async def as_before() -> bool:
            tasks, descriptors = await host.at_rest()
            return tasks <= before[0] + 2 and descriptors <= before[1] + 4  # spare sockets come and go

        await until(as_before, DEADLINE_S)


# --- ports of this machine ------------------------------------------------------------------------------------------


async def test_a_forwarded_port_is_the_service_itself(client: AsyncClient, sandbox: str) -> None:
    """Many connections at once, each whole, each with its own half-closed ends."""
    async with service(digest, read_head=False) as port, PortForward(client, sandbox, port) as forward:

        async def one(text: bytes) -> bool:
            reader, writer = await asyncio.open_connection("127.0.0.1", forward.port)
            writer.write(text)
            writer.write_eof()
            said = await reader.read()
            writer.close()
            return said == hashlib.sha256(text).hexdigest().encode()

        texts = [bytes([number]) * (number * 20_000) for number in range(20)]
        assert all(await asyncio.wait_for(asyncio.gather(*map(one, texts)), DEADLINE_S))


async def test_a_forwarded_port_breaks_as_the_service_does(client: AsyncClient, sandbox: str) -> None:
    """Nobody listens: the connection is reset and the reason is told; the next one may find somebody."""
    told: list[SandptyError] = []
    async with PortForward(client, sandbox, 1, on_error=told.append) as forward:
        reader, writer = await asyncio.open_connection("127.0.0.1", forward.port)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), DEADLINE_S)
        writer.close()
        await until(lambda: told, DEADLINE_S)
        assert told[0].reason.name == "port_closed"
        with pytest.raises(SandptyError) as caught:
            await PortForward(client, sandbox, 1, forward.port).open()
        assert caught.value.reason.name == "conflict"


async def test_a_local_program_that_is_killed_is_a_reset_in_the_sandbox(client: AsyncClient, sandbox: str) -> None:
    """Not an end that looks good."""
    outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def read(seen: Seen) -> None:
        await seen.say(b"ready")
        try:
            await seen.reader.read()
            outcome.set_result("end")
        except ConnectionResetError:
            outcome.set_result("reset")

    async with service(read, read_head=False) as port, PortForward(client, sandbox, port) as forward:
        reader, writer = await asyncio.open_connection("127.0.0.1", forward.port)
        assert await reader.readexactly(5) == b"ready"
        raw = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        assert await asyncio.wait_for(outcome, DEADLINE_S) == "reset"
