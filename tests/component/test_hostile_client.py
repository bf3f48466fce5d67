"""Clients that do not keep to the rules: WebSocket rubbish, slow or endless requests, very many connections."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

import aiohttp
import pytest
import pytest_asyncio

from sandpty import config
from sandpty.wire import frames
from sandpty.wire.frames import AgentErrorCode, FrameType
from tests.component.fake_host import FakeHost, View, fake_host, polite, rss_bytes
from tests.waiting import until


@pytest_asyncio.fixture(scope="module")
async def host() -> AsyncIterator[FakeHost]:
    """One server for all of this file: it must outlive every client."""
    async with fake_host() as running:
        yield running


@pytest_asyncio.fixture
async def sandbox(host: FakeHost) -> str:
    """A sandbox with a well-behaved terminal."""
    return await host.sandbox(polite)


WRONG_MESSAGES = {
    "empty": b"",
    "an unknown type": b"\x7e",
    "START is not for clients": b"\x10" + b"\0" * 40,
    "ATTACH is not for clients": b"\x11" + b"\0" * 40,
    "SHUTDOWN is not for clients": b"\x3f",
    "OUTPUT is the server's": b"\xa0" + b"\0" * 20,
    "INPUT without an offset": b"\x20\0\0\0",
    "RESIZE cut short": b"\x21\x50\0\x18",
    "RESIZE with a byte to spare": b"\x21\x50\0\x18\0\0",
    "SIGNAL cut short": b"\x22\0",
    "SIGNAL with a byte to spare": b"\x22\0\x0f\0",
    "SIGNAL to nobody": b"\x22\x03\x0f",
    "SIGNAL 0": b"\x22\0\0",
    "SIGNAL 65": b"\x22\0\x41",
    "CLOSE_STDIN with a byte to spare": b"\x23\0",
    "ACK cut short": b"\x24\0\0\0\0\0\0\0",
    "PING with a byte to spare": b"\x25" + b"\0" * 9,
}


@pytest.mark.parametrize("message", [pytest.param(value, id=name) for name, value in WRONG_MESSAGES.items()])
async def test_a_message_that_is_no_frame_closes_with_bad_frame(host: FakeHost, sandbox: str, message: bytes) -> None:
    """4400 and a reason, whatever is wrong with the frame."""
    async with host.view(sandbox) as view:
        await view.socket.send_bytes(message)
        assert await view.closed() == 4400
        assert view.close_text.startswith("bad_frame: ")


async def test_a_broken_frame_is_not_carried_out_first(host: FakeHost) -> None:
    """A SIGNAL or CLOSE_STDIN with a byte to spare never reaches the process."""
    said: list[int] = []

    async def listening(peer: object) -> None:
        await polite(_Recorder(peer, said))  # type: ignore[arg-type]

    async with host.view(await host.sandbox(listening)) as view:  # type: ignore[arg-type]
        await view.socket.send_bytes(b"\x22\x00\x0f\x00")
        assert await view.closed() == 4400
    assert FrameType.SIGNAL not in said


class _Recorder:
    """A peer that notes the types of what it hears."""

    def __init__(self, peer: object, said: list[int]) -> None:
        self._peer, self._said = peer, said

    async def request(self) -> tuple[int, bytes]:
        found: tuple[int, bytes] = await self._peer.request()  # type: ignore[attr-defined]
        self._said.append(found[0])
        return found

    def __getattr__(self, name: str) -> object:
        return getattr(self._peer, name)


async def test_text_closes_with_bad_frame(host: FakeHost, sandbox: str) -> None:
    """Text messages are not frames."""
    async with host.view(sandbox) as view:
        await view.socket.send_str("ls\n")
        assert await view.closed() == 4400


async def test_a_message_over_a_megabyte_is_refused_before_it_is_held(host: FakeHost, sandbox: str) -> None:
    """1009 as RFC 6455 has it; the server does not collect what it will not take."""
    before = rss_bytes()
    async with host.view(sandbox) as view:
        message = bytes([FrameType.INPUT]) + b"\xff" * 8 + b"x" * frames.MAX_FRAME_BYTES
        await view.socket.send_bytes(message)
        assert await view.closed() in (1009, 1006)
    assert rss_bytes() - before < 8 * 1024 * 1024


async def test_the_largest_input_passes(host: FakeHost) -> None:
    """A frame of 1 MiB of input reaches the agent whole, in pieces it takes."""
    taken = asyncio.get_running_loop().create_future()

    async def counting(peer: object) -> None:
        from tests.component.fake_agent import Peer, attached

        assert isinstance(peer, Peer)
        await peer.greeted()
        await peer.say(attached())
        data = b""
        while len(data) < 1024 * 1024:
            data += (await peer.request())[1][8:]
        taken.set_result(data)
        await peer.until_closed()

    data = os.urandom(1024 * 1024)
    async with host.view(await host.sandbox(counting)) as view:  # type: ignore[arg-type]
        await view.socket.send_bytes(bytes([FrameType.INPUT]) + b"\xff" * 8 + data)
        assert await taken == data


@pytest.mark.parametrize("kind", [FrameType.INPUT, FrameType.RESIZE, FrameType.SIGNAL, FrameType.CLOSE_STDIN])
async def test_a_viewer_cannot_write_whatever_the_agent_would_allow(
    host: FakeHost, sandbox: str, kind: FrameType
) -> None:
    """mode=ro is enforced by the server itself: ERROR read_only, and the view goes on."""
    async with host.view(sandbox, "from=offset&mode=ro") as view:
        await view.socket.send_bytes(bytes([kind]) + b"\x01\x02\x03\x04\x05\x06\x07\x08\x09")
        while not isinstance(said := await view.receive(), frames.AgentError):
            assert said is not None
        assert said.code == AgentErrorCode.READ_ONLY
        await view.round_trip_s()


async def test_a_window_dragged_to_nothing_is_answered_not_punished(host: FakeHost, sandbox: str) -> None:
    """RESIZE to 0 or to 10001 gives ERROR bad_argument; the attachment lives."""
    async with host.view(sandbox) as view:
        for cols, rows in ((0, 24), (80, 0), (10001, 24), (80, 65535)):
            await view.socket.send_bytes(b"\x21" + struct.pack("<HH", cols, rows))
            while not isinstance(said := await view.receive(), frames.AgentError):
                assert said is not None
            assert said.code == AgentErrorCode.BAD_ARGUMENT
        await view.round_trip_s()


async def test_an_attach_that_is_no_websocket_is_a_bad_request(host: FakeHost, sandbox: str) -> None:
    """A plain GET gets this dialect's error, and no attachment is made."""
    status, body = await host.request("GET", f"/v1/sandboxes/{sandbox}/processes/1/attach")
    assert (status, body["error"]["reason"]) == (400, "bad_request")  # type: ignore[index]


async def test_rubbish_after_the_handshake_ends_only_that_connection(host: FakeHost, sandbox: str) -> None:
    """Bytes that are no WebSocket frames: the connection ends, others do not notice."""
    async with host.view(sandbox) as other:
        for rubbish in (b"\xff" * 200, b"\x00" * 200, b"\x82\xff" + b"\xff" * 8 + b"x" * 100, b"\x82\x05hello"):
            async with host.view(sandbox) as view:
                transport = view.socket._response.connection.transport  # type: ignore[union-attr]
                transport.write(rubbish)
                assert await view.closed() is not None
        await other.round_trip_s()


async def test_half_a_websocket_message_for_ever_costs_one_connection(
    host: FakeHost, sandbox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that starts a frame, never ends it and never answers a PING is let go."""
    monkeypatch.setattr(config, "WS_HEARTBEAT_S", 0.2)
    async with host.view(sandbox) as view:
        view.socket._autoping = False
        view.socket._response.connection.transport.write(b"\x82\x85\0\0\0\0he")  # type: ignore[union-attr]
        while (message := await view.socket.receive()).type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.PING):
            pass
        assert message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.ERROR)


async def test_a_silent_client_that_answers_pings_is_kept(
    host: FakeHost, sandbox: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A viewer who only looks on stays attached over many heartbeats."""
    monkeypatch.setattr(config, "WS_HEARTBEAT_S", 0.05)
    async with host.view(sandbox) as view:
        listening = asyncio.create_task(view.closed())
        await asyncio.wait([listening], timeout=0.6)
        assert not listening.done()
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await view.round_trip_s()


async def test_a_request_that_never_comes_is_let_go(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections that say nothing, or half a request line, are closed after a while; others are served meanwhile."""
    monkeypatch.setattr(config, "HTTP_FIRST_REQUEST_S", 0.3)
    address, port = host.url.removeprefix("http://").split(":")
    slow = [await asyncio.open_connection(address, int(port)) for _ in range(100)]
    for number, (_, writer) in enumerate(slow):
        writer.write((b"", b"GET", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-")[number % 3])
    assert (await host.request("GET", "/healthz"))[0] == 200
    for reader, writer in slow:
        async with asyncio.timeout(5):
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
        writer.close()


async def test_a_connection_is_kept_between_requests(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline for a first request does not touch connections that had one."""
    monkeypatch.setattr(config, "HTTP_FIRST_REQUEST_S", 0.05)
    address, port = host.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(address, int(port))
    for _ in range(8):
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200" in await reader.readuntil(b"\r\n\r\n")
        await asyncio.wait([asyncio.create_task(reader.read(4096))], timeout=0.05)
    writer.close()


async def test_five_hundred_attachments_at_once_all_work_and_leave_nothing(host: FakeHost, sandbox: str) -> None:
    """Every one of 500 viewers gets its bytes and its PONG; afterwards tasks and descriptors are what they were."""
    await host.request("GET", "/healthz")
    before = await host.at_rest()
    async with AsyncExitStack() as stack:
        views: list[View] = []
        for _ in range(10):
            opening = [stack.enter_async_context(host.view(sandbox)) for _ in range(50)]
            views += await asyncio.gather(*opening)
        assert len(views) == 500
        await asyncio.gather(*(view.round_trip_s(number) for number, view in enumerate(views)))

    async def back() -> bool:
        tasks, fds = await host.at_rest()
        return tasks <= before[0] and fds <= before[1]

    await until(back, 10, f"tasks and descriptors are back at {before}")


async def test_clients_that_vanish_in_every_stage_leave_nothing(host: FakeHost, sandbox: str) -> None:
    """Connections dropped before, during and after the handshake, without goodbye."""
    await host.request("GET", "/healthz")
    before = await host.at_rest()
    address, port = host.url.removeprefix("http://").split(":")
    request = (
        f"GET /v1/sandboxes/{sandbox}/processes/1/attach?from=offset HTTP/1.1\r\nHost: x\r\n"
        f"X-API-Key: {host.client.headers['X-API-Key']}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: c2FuZHB0eS1zYW5kcHR5IQ==\r\n\r\n"
    ).encode()
    for size in range(0, len(request) + 1, 7):
        _, writer = await asyncio.open_connection(address, int(port))
        writer.write(request[:size])
        writer.transport.abort()
    for _ in range(40):
        reader, writer = await asyncio.open_connection(address, int(port))
        writer.write(request)
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.abort()

    async def back() -> bool:
        tasks, fds = await host.at_rest()
        return tasks <= before[0] and fds <= before[1]

    await until(back, 10, f"tasks and descriptors are back at {before}")
