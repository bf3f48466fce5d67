"""Messages of a WebSocket that are taken the moment they come in, with aiohttp's own server and client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import WSMsgType, web

from sandpty.server.websocket_input import TakingSocket
from tests.waiting import until


@asynccontextmanager
async def connected(socket: TakingSocket) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    """A client of a server whose handler does nothing with `socket` but hold it open."""

    release = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        await socket.prepare(request)
        await release.wait()
        return socket

    app = web.Application()
    app.router.add_get("/", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        async with aiohttp.ClientSession() as session, session.ws_connect(_url(runner)) as ws:
            try:
                yield ws
            finally:
                release.set()  # the handler returns, and aiohttp says goodbye
    finally:
        await runner.cleanup()


def _url(runner: web.AppRunner) -> str:
    host, port = runner.addresses[0][:2]
    return f"http://{host}:{port}/"


async def test_a_message_is_taken_without_anybody_receiving() -> None:
    """No task waits for it: were the hook passed by, nothing would be taken."""
    taken: list[bytes] = []

    def take(message: bytes) -> bool:
        taken.append(bytes(message))
        return True

    socket = TakingSocket()
    socket.take = take
    async with connected(socket) as client:
        for message in (b"a", b"b" * 70_000, b""):
            await client.send_bytes(message)
        await until(lambda: len(taken) == 3)
    assert taken == [b"a", b"b" * 70_000, b""]


async def test_what_is_not_taken_is_received_and_nothing_overtakes_it() -> None:
    """Texts are never taken; while anything waits for `receive`, what follows waits behind it."""
    taken: list[bytes] = []

    def take(message: bytes) -> bool:
        if message == b"no":
            return False
        taken.append(bytes(message))
        return True

    socket = TakingSocket()
    socket.take = take
    async with connected(socket) as client:
        await client.send_bytes(b"1")
        await client.send_bytes(b"no")
        await client.send_bytes(b"2")
        await client.send_str("text")
        received = [await socket.receive(10) for _ in range(3)]
        assert [(each.type, each.data) for each in received] == [
            (WSMsgType.BINARY, b"no"),
            (WSMsgType.BINARY, b"2"),
            (WSMsgType.TEXT, "text"),
        ]
        await client.send_bytes(b"3")
        await until(lambda: taken == [b"1", b"3"])


async def test_the_end_is_received() -> None:
    """A client that leaves is seen by `receive`, whoever takes its messages."""
    socket = TakingSocket()
    socket.take = lambda message: True
    async with connected(socket) as client:
        await client.send_bytes(b"x")
        closing = asyncio.create_task(client.close())
        assert (await socket.receive(10)).type is WSMsgType.CLOSE
        await closing
