"""The supervisor's socket service for tests of the server alone: what it gives are sockets of this host's network."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from types import TracebackType

from sandpty.wire import sockets
from sandpty.wire.sockets import SocketAnswer


class FakeSockets:
    """Answers at `path`: a guest's port is the same port of this host's loopback."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._tasks: set[asyncio.Task[None]] = set()

    async def _accept(self) -> None:
        while True:
            peer, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            peer.setblocking(False)
            self._tasks.add(asyncio.create_task(self._serve(peer)))

    async def _serve(self, peer: socket.socket) -> None:
        with peer:
            while data := await asyncio.get_running_loop().sock_recv(peer, sockets.MESSAGE_BYTES_MAX):
                request = sockets.parse_request(data)
                families = [socket.AF_INET6 if kind.endswith("6") else socket.AF_INET for kind in request.kinds]
                made = [socket.socket(family) for family in families]
                socket.send_fds(peer, [sockets.pack_answer(SocketAnswer())], [each.fileno() for each in made])
                for each in made:
                    each.close()

    async def __aenter__(self) -> FakeSockets:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._listener.bind(str(self._path))
        self._listener.listen(16)
        self._tasks.add(asyncio.create_task(self._accept()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()
