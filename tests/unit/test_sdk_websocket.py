"""The SDK's own WebSocket: however bytes are cut they are messages; who breaks the protocol, or is silent, is left."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import threading
from collections.abc import AsyncIterator

import pytest
import websockets
from websockets.asyncio.server import ServerConnection, serve
from websockets.frames import Frame, Opcode

from sandpty.sdk import ServerUnreachableError
from sandpty.sdk._async import sockets as async_sockets
from sandpty.sdk._async.sockets import async_connect_socket
from sandpty.sdk._blocking import Pulse
from sandpty.sdk._sync import sockets as sync_sockets
from sandpty.sdk._sync.sockets import connect_socket
from sandpty.sdk.websocket import (
    BINARY,
    PING,
    TEXT,
    BrokenWebSocketError,
    ClosedWebSocketError,
    MessageReader,
    closing,
    encode,
    encode_close,
)
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import MAX_FRAME_BYTES
from tests.waiting import until

DEADLINE_S = 30.0


def frame(kind: int, payload: bytes, *, is_last: bool = True) -> bytes:
    """A server's frame, by another implementation."""
    return Frame(Opcode(kind), payload, fin=is_last).serialize(mask=False)


def test_messages_are_the_same_however_they_are_cut() -> None:
    """Small, of two and of eight bytes of length, in several frames, with pings between."""
    big = bytes(range(256)) * 300
    stream = b"".join(
        (
            frame(BINARY, b"one"),
            frame(BINARY, b""),
            frame(TEXT, "zwei €".encode()),
            frame(BINARY, big),
            frame(BINARY, b"th", is_last=False),
            frame(PING, b"alive?"),
            frame(0, b"ree"),
        )
    )
    for step in (1, 2, 7, 1000, len(stream)):
        reader = MessageReader()
        for at in range(0, len(stream), step):
            reader.feed(stream[at : at + step])
        assert [each if isinstance(each, str) else bytes(each) for each in reader.messages] == [
            b"one",
            b"",
            "zwei €",
            big,
            b"three",
        ]
        assert list(reader.controls) == [(PING, b"alive?")]


@pytest.mark.parametrize(
    "stream",
    [
        encode(BINARY, b"masked"),
        b"\xc2\x00",  # an extension's bit
        b"\x83\x00",  # no such kind
        b"\x8b\x00",
        frame(0, b"of nothing"),
        frame(BINARY, b"a", is_last=False) + frame(BINARY, b"b"),
        b"\x09\x00",  # half a ping
        b"\x89\x7e\x00\x7e" + bytes(126),
        b"\x82\x7f" + (MAX_FRAME_BYTES + 1).to_bytes(8, "big"),
        frame(BINARY, bytes(MAX_FRAME_BYTES), is_last=False) + frame(0, b"1"),
        frame(TEXT, b"\xff"),
    ],
    ids=[
        "masked",
        "extension",
        "kind-3",
        "kind-11",
        "of-nothing",
        "unfinished",
        "half-ping",
        "long-ping",
        "too-long",
        "too-long-in-pieces",
        "not-utf-8",
    ],  # named, because a mask is random
)
def test_what_is_no_websockets_is_refused(stream: bytes) -> None:
    """By name, whatever it is; nothing is kept of what is too long."""
    with pytest.raises(BrokenWebSocketError):
        MessageReader().feed(stream)


def test_a_goodbye_has_a_code_and_a_text() -> None:
    """Or neither; a text that is none is an error."""
    assert closing(b"") == (1005, "")
    assert closing(b"\x0f\xa1why") == (4001, "why")
    with pytest.raises(BrokenWebSocketError):
        closing(b"\x0f\xa1\xff")


@pytest.mark.parametrize("length", [0, 1, 125, 126, 65535, 65536])
async def test_what_is_sent_is_what_another_implementation_reads(length: int) -> None:
    """Masked anew each time; both ways, both flavours."""
    data = bytes(n % 251 for n in range(length))

    async def echo(peer: ServerConnection) -> None:
        async for message in peer:
            await peer.send(message)

    async with serving(echo) as url:
        opened = await async_connect_socket(url, "/x", {})
        await opened.send(data)
        assert bytes(await opened.receive(DEADLINE_S)) == data  # type: ignore[arg-type]
        await opened.close()
        assert await asyncio.to_thread(_echoed, url, data) == data
    if length:
        assert encode(BINARY, data) != encode(BINARY, data)


def _echoed(url: str, data: bytes) -> bytes:
    opened = connect_socket(url, "/x", {})
    try:
        opened.send(data)
        return bytes(opened.receive(DEADLINE_S))  # type: ignore[arg-type]
    finally:
        opened.close()


@contextlib.asynccontextmanager
async def serving(handler: object) -> AsyncIterator[str]:
    """A WebSocket server of another implementation."""
    async with serve(handler, "127.0.0.1", 0, ping_interval=None) as server:  # type: ignore[arg-type]
        yield f"http://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"


@pytest.fixture
def quick_pulse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats as of somebody in a hurry."""
    for module in (async_sockets, sync_sockets):
        monkeypatch.setattr(module, "PULSE_S", 0.05)
        monkeypatch.setattr(module, "HEARTBEAT_S", 0.2)
        monkeypatch.setattr(module, "CLOSE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(Pulse, "_thread", None)  # the one that there may be is in no hurry


@pytest.mark.usefixtures("quick_pulse")
async def test_heartbeats_are_answered_while_nobody_receives() -> None:
    """In both flavours, and what was said meanwhile is there afterwards."""
    answered: list[str] = []

    async def ask(peer: ServerConnection) -> None:
        await peer.send("news")
        await (await peer.ping())
        answered.append(peer.request.path if peer.request else "")
        await peer.wait_closed()

    async with serving(ask) as url:
        opened = await async_connect_socket(url, "/async", {})
        await until(lambda: "/async" in answered, DEADLINE_S, "the pong of the asynchronous flavour")
        assert await opened.receive(DEADLINE_S) == "news"
        await opened.close()
        done = threading.Event()
        blocking = asyncio.create_task(asyncio.to_thread(_idle, url, done))
        await until(lambda: "/sync" in answered, DEADLINE_S, "the pong of the blocking flavour")
        done.set()
        assert await blocking == "news"


def _idle(url: str, done: threading.Event) -> object:
    opened = connect_socket(url, "/sync", {})
    done.wait(DEADLINE_S)
    try:
        return opened.receive(DEADLINE_S)
    finally:
        opened.close()


@pytest.mark.usefixtures("quick_pulse")
async def test_a_server_that_shows_no_sign_of_life_is_left() -> None:
    """Whether somebody waits for it or not; one that is patient stays."""

    async def dead(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        key = next(line for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key")).split()[1]
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + async_sockets.accepted(key) + b"\r\n\r\n"
        )
        while await reader.read(1000):
            pass

    server = await asyncio.start_server(dead, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        opened = await async_connect_socket(url, "/", {})
        patient = await async_connect_socket(url, "/", {}, patient=True)
        with pytest.raises(ClosedWebSocketError, match="no sign of life"):
            await opened.receive(DEADLINE_S)
        with pytest.raises(TimeoutError):
            await patient.receive(0.01)
        for each in (opened, patient):
            await each.close()


async def test_what_speaks_no_websocket_is_said() -> None:
    """An answer to another key, an answer that is a page, and a goodbye with its reason."""

    async def odd(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if b"/page" in head:
            writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno")
        else:
            writer.write(b"HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n" + encode_close(1000))
        writer.close()

    server = await asyncio.start_server(odd, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(ServerUnreachableError, match="speaks no WebSocket"):
            await async_connect_socket(url, "/", {})
        with pytest.raises(Exception, match="404"):
            await async_connect_socket(url, "/page", {})


async def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """By CONNECT, with its own login; for what it is not for, it is not asked."""
    asked: list[bytes] = []

    async def greet(peer: ServerConnection) -> None:
        await peer.send("hello")
        with contextlib.suppress(websockets.ConnectionClosed):
            await peer.recv()

    async with serving(greet) as url:
        port = int(url.rpartition(":")[2])

        async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.append(await reader.readuntil(b"\r\n\r\n"))
            onward_reader, onward = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            await asyncio.gather(_carry(reader, onward), _carry(onward_reader, writer))

        server = await asyncio.start_server(proxy, "127.0.0.1", 0)
        async with server:
            login = f"me:p%40ss@127.0.0.1:{server.sockets[0].getsockname()[1]}"
            monkeypatch.setenv("http_proxy", f"http://{login}")
            monkeypatch.setenv("no_proxy", "elsewhere.invalid")
            opened = await async_connect_socket(f"http://sandpty.invalid:{port}", "/", {})
            assert await opened.receive(DEADLINE_S) == "hello"
            await opened.close()
            assert asked[0].startswith(b"CONNECT sandpty.invalid:%d HTTP/1.1\r\n" % port)
            assert base64.b64encode(b"me:p@ss") in asked[0]
            await (await async_connect_socket(url, "/", {})).close()  # this machine's own
            with pytest.raises(ServerUnreachableError):
                await async_connect_socket("http://elsewhere.invalid:1", "/", {})
            assert len(asked) == 1


@pytest.mark.parametrize(
    ("proxy", "said"),
    [
        ("socks5://me:p4ss@proxy.invalid:1080", "a proxy by socks5, proxy.invalid, and only HTTP proxies can be used"),
        (
            "https://me:p4ss@proxy.invalid",
            "terminals do not go through proxy.invalid, a proxy that is reached by https",
        ),
    ],
)
async def test_a_proxy_that_cannot_be_used_is_said(monkeypatch: pytest.MonkeyPatch, proxy: str, said: str) -> None:
    """And not its login."""
    monkeypatch.setenv("all_proxy", proxy)
    with pytest.raises(SandptyError) as caught:
        await async_connect_socket("http://sandpty.invalid", "/", {})
    assert said in caught.value.message
    assert "p4ss" not in caught.value.message


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()
