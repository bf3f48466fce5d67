"""The real server, in this process, in front of a fake supervisor and fake agents."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import shutil
import struct
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from sandpty.config import DataDir
from sandpty.server.app import open_listener, serve
from sandpty.server.auth import Authenticator
from sandpty.server.settings import Settings
from sandpty.wire import frames
from sandpty.wire.frames import FrameType, FromAgent
from tests.component.fake_agent import Behaviour, FakeAgent, Peer, attached, output
from tests.component.fake_sockets import FakeSockets
from tests.component.fake_supervisor import FakeSupervisor
from tests.waiting import until

API_KEY = "e2b_" + "5a" * 20


def open_fds() -> int:
    """How many file descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def rss_bytes() -> int:
    """This process's resident memory, after a collection."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def polite(peer: Peer) -> None:
    """A well-behaved agent: one terminal that says `hello`, answers PING, and echoes INPUT."""
    kind, _ = await peer.greeted()
    if kind == FrameType.LIST:
        return await peer.say(frames.frame(FrameType.DONE))
    await peer.say(attached(), output(0, b"hello"))
    position = 5
    while True:
        kind, payload = await peer.request()
        if kind == FrameType.PING:
            await peer.say(frames.frame(FrameType.PONG, payload))
        elif kind == FrameType.INPUT:
            await peer.say(output(position, payload[8:]))
            position += len(payload) - 8


class View:
    """A client's WebSocket on one attachment."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.close_code: int | None = None
        self.close_text = ""

    async def receive(self) -> FromAgent | None:
        """The next frame, or None once the server has closed (then see `close_code`)."""
        message = await self.socket.receive()
        if message.type is aiohttp.WSMsgType.BINARY:
            return frames.decode(message.data[0], message.data[1:])
        self.close_code = self.socket.close_code
        self.close_text = message.extra or "" if message.type is aiohttp.WSMsgType.CLOSE else ""
        return None

    async def closed(self) -> int | None:
        """Read until the server closes; the close code."""
        async with asyncio.timeout(10):
            while await self.receive() is not None:
                pass
        return self.close_code

    async def round_trip_s(self, token: int = 1) -> float:
        """How long a PING takes through server and agent."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        await self.socket.send_bytes(bytes([FrameType.PING]) + struct.pack("<Q", token))
        while not isinstance(await self.receive(), frames.Pong):
            pass
        return loop.time() - started


@dataclass
class FakeHost:
    """One server; `sandbox(behaviour)` adds a sandbox whose agent behaves so."""

    directory: Path
    url: str
    supervisor: FakeSupervisor
    client: aiohttp.ClientSession
    _ids: itertools.count[int] = field(default_factory=itertools.count)
    _agents: list[FakeAgent] = field(default_factory=list)

    async def sandbox(self, behaviour: Behaviour) -> str:
        """The id of a new sandbox, known to the server."""
        sandbox_id = f"i{next(self._ids):020d}"
        agent = FakeAgent(self.directory / f"{sandbox_id}.sock", behaviour)
        self._agents.append(await agent.__aenter__())
        return await self.sandbox_at(agent.path, sandbox_id)

    async def sandbox_at(self, socket: Path, sandbox_id: str = "", **annotations: object) -> str:
        """A sandbox whose agent listens at `socket`."""
        sandbox_id = sandbox_id or f"i{next(self._ids):020d}"
        self.supervisor.add(sandbox_id, socket, **annotations)

        async def known() -> bool:
            return (await self.request("GET", f"/v1/sandboxes/{sandbox_id}"))[0] == 200

        await until(known)
        return sandbox_id

    async def request(self, method: str, path: str, **kwargs: object) -> tuple[int, dict[str, object]]:
        """Status and JSON body of an answer."""
        async with self.client.request(method, self.url + path, **kwargs) as answer:  # type: ignore[arg-type]
            return answer.status, await answer.json(content_type=None) if answer.status != 204 else {}

    @asynccontextmanager
    async def view(self, sandbox_id: str, query: str = "from=offset") -> AsyncIterator[View]:
        """Attach to process 1."""
        path = f"{self.url}/v1/sandboxes/{sandbox_id}/processes/1/attach?{query}"
        async with self.client.ws_connect(path, max_msg_size=0) as socket:
            yield View(socket)

    async def at_rest(self) -> tuple[int, int]:
        """(tasks, open fds) once nothing is going on: no client connection, no agent connection."""
        connector = self.client.connector
        assert isinstance(connector, aiohttp.TCPConnector)

        def quiet() -> bool:
            return not any(agent.connections for agent in self._agents)

        await until(quiet, 10, "every agent connection is closed")
        return len(asyncio.all_tasks()), open_fds()

    async def close_agents(self) -> None:
        """End every fake agent."""
        for agent in self._agents:
            await agent.__aexit__(None, None, None)


@asynccontextmanager
async def fake_host() -> AsyncIterator[FakeHost]:
    """A server with everything faked behind it; ended with everything it started."""
    directory = Path(tempfile.mkdtemp(prefix="sp-", dir="/tmp"))
    data_dir = DataDir(directory)
    data_dir.run.mkdir()
    owner = Authenticator(API_KEY).principal(API_KEY).id
    url: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    settings = Settings(data_dir, API_KEY, "127.0.0.1", 0)
    try:
        async with (
            FakeSupervisor(data_dir.supervisor_socket, owner) as supervisor,
            FakeSockets(data_dir.guest_sockets),
            aiohttp.ClientSession(
                headers={"X-API-Key": API_KEY}, connector=aiohttp.TCPConnector(limit=0, force_close=True)
            ) as client,
        ):
            listener = open_listener("127.0.0.1", 0)
            server = asyncio.create_task(serve(settings, listener=listener, listening=url.set_result))
            await asyncio.wait([server, url], return_when=asyncio.FIRST_COMPLETED)
            host = FakeHost(directory, url.result(), supervisor, client)
            try:
                yield host
            finally:
                server.cancel()
                await asyncio.gather(server, return_exceptions=True)
                await host.close_agents()
    finally:
        shutil.rmtree(directory)


async def slowest(measure: Callable[[], Awaitable[float]], times: int) -> float:
    """The longest of `times` measurements."""
    return max([await measure() for _ in range(times)])
