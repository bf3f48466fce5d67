"""A client of the native dialect for tests: REST by httpx, terminals by WebSocket, laws checked at every frame."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import httpx

from sandpty.wire import frames
from sandpty.wire.frames import (
    NO_OFFSET,
    AgentError,
    Attached,
    Exit,
    FrameType,
    FromAgent,
    Gap,
    InputAck,
    Output,
    Resized,
)
from tests.server_fixture import RunningServer

TIMEOUT_S = 20.0


class ClosedError(Exception):
    """The server closed the WebSocket."""

    def __init__(self, code: int | None, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code
        self.text = text


@dataclass
class Terminal:
    """One attachment. `data` is what was received from `info.start` on; laws 1 to 3 are asserted on the way."""

    socket: aiohttp.ClientWebSocketResponse
    client_acks: bool
    info: Attached = field(init=False)
    position: int = field(init=False)
    data: bytearray = field(default_factory=bytearray)
    streams: dict[int, bytearray] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    sizes: list[Resized] = field(default_factory=list)
    errors: list[AgentError] = field(default_factory=list)
    input_acked: int = 0
    exit: Exit | None = None

    async def receive(self) -> FromAgent:
        """The next frame. Raises ClosedError."""
        message = await self.socket.receive(TIMEOUT_S)
        if message.type is not aiohttp.WSMsgType.BINARY:
            raise ClosedError(self.socket.close_code, message.extra or "")
        event = frames.decode(message.data[0], message.data[1:])
        match event:
            case Attached():
                self.info, self.position, self.input_acked = event, event.start, event.input
            case Output(stream, offset, data):
                assert self.exit is None, "law 3: EXIT is last"
                assert offset == self.position, f"law 2: output at {offset} where {self.position} was due"
                self.position += len(data)
                self.data += data
                self.streams.setdefault(stream, bytearray()).extend(data)
                if self.client_acks:
                    await self.send(FrameType.ACK, struct.pack("<Q", self.position))
            case Gap(start, end):
                assert start == self.position, f"law 2: a gap from {start} where {self.position} was due"
                assert end > start
                self.position = end
                self.gaps.append(event)
            case Exit():
                assert event.end == self.position, "law 3: EXIT at the log's end"
                assert self.exit is None
                self.exit = event
            case Resized():
                self.sizes.append(event)
            case AgentError():
                self.errors.append(event)
            case InputAck():
                self.input_acked = event.input
        return event

    async def until(self, text: bytes, start: int = 0) -> int:
        """Receive until `text` has been said at or after `data[start:]`; the position in `data` behind it."""
        async with asyncio.timeout(TIMEOUT_S):
            while (at := self.data.find(text, start)) < 0:
                await self.receive()
        return at + len(text)

    async def until_frame(self, kind: type[FromAgent]) -> Any:
        """Receive until there is a frame of this kind."""
        async with asyncio.timeout(TIMEOUT_S):
            while not isinstance(event := await self.receive(), kind):
                pass
        return event

    async def until_offset(self, offset: int) -> None:
        """Receive until everything below `offset` is here."""
        async with asyncio.timeout(TIMEOUT_S):
            while self.position < offset:
                await self.receive()

    async def until_exit(self) -> Exit:
        """Receive everything; afterwards the server has closed with 1000 (law 3)."""
        exit_: Exit = await self.until_frame(Exit)
        closed = await self.until_closed()
        assert closed.code == 1000, closed
        return exit_

    async def until_closed(self) -> ClosedError:
        """Receive until the server closes."""
        async with asyncio.timeout(TIMEOUT_S):
            while True:
                try:
                    await self.receive()
                except ClosedError as closed:
                    return closed

    async def send(self, kind: int, payload: bytes = b"") -> None:
        """Say a frame."""
        await self.socket.send_bytes(bytes([kind]) + payload)

    async def type(self, data: bytes, offset: int = NO_OFFSET) -> None:
        """INPUT."""
        await self.send(FrameType.INPUT, struct.pack("<Q", offset) + data)

    async def resize(self, cols: int, rows: int) -> None:
        """RESIZE."""
        await self.send(FrameType.RESIZE, struct.pack("<HH", cols, rows))

    async def signal(self, number: int, target: int = 1) -> None:
        """SIGNAL; the target is the foreground group unless told."""
        await self.send(FrameType.SIGNAL, struct.pack("<BB", target, number))

    async def round_trip(self) -> None:
        """Everything said before has been taken once this returns."""
        await self.send(FrameType.PING, struct.pack("<Q", 7))
        await self.until_frame(frames.Pong)

    def cut(self) -> None:
        """Lose the connection without goodbye, as a network does."""
        assert self.socket._response.connection is not None
        assert self.socket._response.connection.transport is not None
        self.socket._response.connection.transport.abort()


@dataclass(frozen=True)
class Box:
    """A sandbox of a server."""

    server: RunningServer
    api: httpx.AsyncClient
    id: str

    @property
    def path(self) -> str:
        return f"/v1/sandboxes/{self.id}"

    async def start(self, *argv: str, **wanted: Any) -> int:
        """Start a process; its number."""
        body = {"user": guest_user(self.server), **wanted, "argv": list(argv)}
        answer = await self.api.post(f"{self.path}/processes", json=body)
        assert answer.status_code == 201, answer.text
        process: int = answer.json()["process"]
        return process

    async def terminal(self, *argv: str, **wanted: Any) -> int:
        """Start a process on a PTY of 80 x 24."""
        return await self.start(*argv, **{"pty": {"cols": 80, "rows": 24}, **wanted})

    async def process(self, process: int | str) -> dict[str, Any]:
        """What the server says of a process."""
        answer = await self.api.get(f"{self.path}/processes/{process}")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def wait(self, process: int | str, timeout_s: int = 20) -> dict[str, Any]:
        """The exit status."""
        answer = await self.api.get(
            f"{self.path}/processes/{process}/wait?timeout_s={timeout_s}", timeout=timeout_s + 5
        )
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def signal(self, process: int | str, signal: str | int, target: str = "tree") -> httpx.Response:
        """Ask for a signal."""
        return await self.api.post(f"{self.path}/processes/{process}/signal", json={"signal": signal, "target": target})

    @asynccontextmanager
    async def attach(
        self, process: int | str, query: str = "from=offset", *, acks: bool = False
    ) -> AsyncIterator[Terminal]:
        """Attach, and receive ATTACHED."""
        async with _socket(self.server, f"{self.path}/processes/{process}/attach?{query}") as socket:
            terminal = Terminal(socket, acks)
            await terminal.until_frame(Attached)
            yield terminal

    @asynccontextmanager
    async def started(self, *argv: str, query: str = "", **wanted: Any) -> AsyncIterator[Terminal]:
        """Start a process and attach to it in one, and receive ATTACHED."""
        body = {"user": guest_user(self.server), **wanted, "argv": list(argv)}
        async with _socket(self.server, f"{self.path}/start?{query}") as socket:
            await socket.send_json(body)
            terminal = Terminal(socket, client_acks="window" in query)
            await terminal.until_frame(Attached)
            yield terminal

    async def refused(self, process: int | str, query: str = "from=offset") -> int:
        """The HTTP status with which an attach is refused."""
        try:
            async with self.attach(process, query):
                pass
        except aiohttp.WSServerHandshakeError as error:
            return error.status
        raise AssertionError("the attach was not refused")


@asynccontextmanager
async def _socket(
    server: RunningServer, path: str, headers: dict[str, str] | None = None
) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
    async with (
        aiohttp.ClientSession(headers=server.headers if headers is None else headers) as session,
        session.ws_connect(server.url + path, max_msg_size=0, heartbeat=None) as socket,
    ):
        yield socket


@asynccontextmanager
async def opened(
    server: RunningServer, first: Any, path: str = "/v1/start", **headers: str
) -> AsyncIterator[tuple[Box, Terminal]]:
    """A sandbox and a process in one exchange. Raises ClosedError when it is refused after the upgrade."""
    async with (
        httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=30) as api,
        _socket(server, path, {**server.headers, **headers}) as socket,
    ):
        await socket.send_json(first)
        answer = await socket.receive(TIMEOUT_S)
        if answer.type is not aiohttp.WSMsgType.TEXT:
            raise ClosedError(socket.close_code, answer.extra or "")
        terminal = Terminal(socket, client_acks=False)
        await terminal.until_frame(Attached)
        yield Box(server, api, json.loads(answer.data)["id"]), terminal


def guest_user(server: RunningServer) -> str:
    """An account that processes may have: without isolation there is no `user`."""
    return "root" if "process" in server.args else "user"


@asynccontextmanager
async def sandbox(server: RunningServer, **wanted: Any) -> AsyncIterator[Box]:
    """A new sandbox, killed at the end."""
    async with httpx.AsyncClient(base_url=server.url, headers=server.headers, timeout=30) as api:
        answer = await api.post("/v1/sandboxes", json={"timeout_s": 300, **wanted})
        assert answer.status_code == 201, answer.text
        box = Box(server, api, answer.json()["id"])
        try:
            yield box
        finally:
            await api.delete(box.path)
