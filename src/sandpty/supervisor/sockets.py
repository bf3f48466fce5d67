"""Sockets inside the sandboxes' network namespaces, for the server: it connects and listens there with them.

A socket belongs for ever to the network namespace it was made in. So a thread of ours enters the sandbox's, makes the
socket, and the server gets it by SCM_RIGHTS: what a guest serves on its loopback only is reachable without a program of
ours in the guest, and the guest has no say in it. The thread enters no other namespace, runs nothing and reads nothing
there.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sandpty import config
from sandpty.config import DataDir
from sandpty.isolation import syscalls
from sandpty.isolation.background import Background
from sandpty.isolation.driver import Driver, GuestNetwork
from sandpty.supervisor.lifecycle import Sandboxes
from sandpty.supervisor.listening import is_from, listen
from sandpty.wire import sockets
from sandpty.wire.errors import SandptyError
from sandpty.wire.sockets import SocketAnswer, SocketKind, SocketRequest

log = logging.getLogger(__name__)
_FAMILY = {"4": socket.AF_INET, "6": socket.AF_INET6}
_TYPE = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


class SocketService:
    """Answers `wire.sockets` to the server's uid and root. Use as `async with`."""

    def __init__(
        self, data: DataDir, sandboxes: Sandboxes, driver: Driver, background: Background, *, server_uid: int
    ) -> None:
        self._data = data
        self._sandboxes = sandboxes
        self._driver = driver
        self._background = background
        self._server_uid = server_uid
        self._allowed = {0, os.geteuid(), server_uid}
        self._connections = 0
        self._tasks: set[asyncio.Task[None]] = set()
        # One thread: the answers' order is the requests'. Entering a namespace takes microseconds.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="guest-sockets")

    async def __aenter__(self) -> SocketService:
        self._listener = listen(
            str(self._data.guest_sockets), self._server_uid, config.SUPERVISOR_CONNECTIONS_MAX, socket.SOCK_SEQPACKET
        )
        self._spawn(self._accept(), "guest sockets")
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in tuple(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._listener.close()
        self._data.guest_sockets.unlink(missing_ok=True)
        await asyncio.get_running_loop().run_in_executor(None, self._thread.shutdown)

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = self._background.spawn(work, name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                peer, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # out of descriptors, for example: the next one may do better
                log.warning("a connection is lost: %s", error)
                await asyncio.sleep(config.SUPERVISOR_RETRY_MIN_S)
                continue
            peer.setblocking(False)
            if self._connections >= config.SUPERVISOR_CONNECTIONS_MAX or not is_from(peer, self._allowed):
                peer.close()
                continue
            self._connections += 1
            self._spawn(self._serve(peer), "guest sockets connection")

    async def _serve(self, peer: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        try:
            while data := await loop.sock_recv(peer, sockets.MESSAGE_BYTES_MAX):
                made: list[socket.socket] = []
                try:
                    answer, made = await self._answer(sockets.parse_request(data))
                    socket.send_fds(peer, [sockets.pack_answer(answer)], [each.fileno() for each in made])
                finally:
                    for each in made:
                        each.close()
        except (OSError, ValueError) as error:  # also BlockingIOError: it asks but does not read
            log.warning("connection for sockets closed: %s", error)
        finally:
            self._connections -= 1
            peer.close()

    async def _answer(self, request: SocketRequest) -> tuple[SocketAnswer, list[socket.socket]]:
        try:
            network = self._network(request.id)
            work = asyncio.get_running_loop().run_in_executor(self._thread, make, network, request)
            try:
                # To its end even if we are cancelled: nobody else closes what it makes.
                return SocketAnswer(network.address), await asyncio.shield(work)
            except asyncio.CancelledError:
                work.add_done_callback(_close_made)
                raise
        except SandptyError as error:
            return SocketAnswer(reason=error.reason.name, message=error.message), []
        except OSError as error:
            return _refusal(error), []

    def _network(self, sandbox_id: str) -> GuestNetwork:
        """Raises no_such_sandbox, sandbox_paused, sandbox_ended, unsupported."""
        entry = self._sandboxes.entries.get(sandbox_id)
        if entry is None or not entry.visible or entry.ended is not None:
            raise SandptyError("no_such_sandbox", f"sandbox {sandbox_id[:64]} does not exist")
        if entry.meta.phase != "running":
            raise SandptyError("sandbox_paused", f"sandbox {sandbox_id} is paused")
        return self._driver.network(entry.plan, entry.meta.started)


def _close_made(work: asyncio.Future[list[socket.socket]]) -> None:
    if not work.cancelled() and work.exception() is None:
        for each in work.result():
            each.close()


def _refusal(error: OSError) -> SocketAnswer:
    text = (error.strerror or str(error)).lower()
    if error.errno == errno.EADDRINUSE:
        return SocketAnswer(reason="conflict", message=f"cannot bind in the sandbox: {text}")
    if error.errno in (errno.EADDRNOTAVAIL, errno.EINVAL, errno.EAFNOSUPPORT):
        return SocketAnswer(reason="bad_argument", message=f"no such address in the sandbox: {text}")
    return SocketAnswer(reason="runtime_failed", message=f"no socket in the sandbox: {text}")


def make(network: GuestNetwork, request: SocketRequest) -> list[socket.socket]:
    """The sockets of one request, non-blocking. Takes `network` and closes it. Raises OSError."""
    made: list[socket.socket] = []
    try:
        ours = os.stat("/proc/self/ns/net")  # of the main thread, which never leaves it
        theirs = os.fstat(network.fd)
        if (ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino):
            raise OSError(errno.EPERM, "the sandbox has no network of its own")
        with syscalls.inside_network(network.fd):
            for kind in request.kinds:
                made.append(_socket(kind))  # one by one: what is made is closed if the next one fails
            if request.address:
                _bind(made[0], request)
    except BaseException:
        for each in made:
            each.close()
        raise
    finally:
        os.close(network.fd)
    return made


def _socket(kind: SocketKind) -> socket.socket:
    made = socket.socket(_FAMILY[kind[3]], _TYPE[kind[:3]] | socket.SOCK_NONBLOCK)
    if made.family == socket.AF_INET6:
        made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made


def _bind(made: socket.socket, request: SocketRequest) -> None:
    try:
        socket.inet_pton(made.family, request.address)  # so that no name is ever looked up here
    except OSError:
        raise OSError(errno.EINVAL, "not an address of this kind") from None
    if made.type == socket.SOCK_STREAM:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((request.address, request.port))
    if made.type == socket.SOCK_STREAM:
        made.listen(config.GUEST_LISTEN_BACKLOG)
