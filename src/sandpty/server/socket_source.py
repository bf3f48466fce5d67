"""The server's connection to the supervisor's socket service (`wire.sockets`)."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque

from sandpty import config, descriptors
from sandpty.wire import sockets
from sandpty.wire.errors import REASONS, SandptyError
from sandpty.wire.sockets import SocketAnswer, SocketRequest

log = logging.getLogger(__name__)
_Made = tuple[SocketAnswer, list[socket.socket]]


class SocketSource:
    """Asks for sockets inside sandboxes; connects when first asked, and again after a loss. `close` it."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._peer: socket.socket | None = None
        self._waiting: deque[asyncio.Future[_Made]] = deque()  # in the order of their requests, as the answers come
        self._room = asyncio.Semaphore(config.GUEST_SOCKET_REQUESTS_MAX)

    async def ask(self, request: SocketRequest) -> tuple[list[socket.socket], str]:
        """The sockets, which the caller closes, and the guest's own address ("" without one).

        Raises no_such_sandbox, sandbox_paused, sandbox_ended, unsupported, supervisor_down, runtime_failed; when
        binding also conflict and bad_argument.
        """
        async with self._room:
            answer, made = await self._exchange(request)
        if not answer.reason:
            return made, answer.address
        raise SandptyError(answer.reason if answer.reason in REASONS else "internal", answer.message)

    async def _exchange(self, request: SocketRequest) -> _Made:
        peer = self._peer or self._connect()
        waiting: asyncio.Future[_Made] = asyncio.get_running_loop().create_future()
        try:
            peer.send(sockets.pack_request(request))
        except BlockingIOError as error:  # only if many who asked went away before the answer
            raise SandptyError("supervisor_down", "the supervisor is too busy to make sockets") from error
        except OSError as error:
            self._lose(error)
            raise SandptyError("supervisor_down", "the supervisor went away during the request") from error
        self._waiting.append(waiting)
        try:
            async with asyncio.timeout(config.GUEST_SOCKET_TIMEOUT_S):
                return await waiting
        except TimeoutError as error:
            raise SandptyError("supervisor_down", "the supervisor gives no socket in time") from error

    def _connect(self) -> socket.socket:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        try:
            peer.connect(self._path)
        except OSError as error:
            peer.close()
            raise SandptyError("supervisor_down", "the supervisor is not running") from error
        self._peer = peer
        asyncio.get_running_loop().add_reader(peer.fileno(), self._read)
        return peer

    def _read(self) -> None:
        peer = self._peer
        assert peer is not None
        try:
            data, fds = descriptors.receive(peer, sockets.MESSAGE_BYTES_MAX, sockets.SOCKETS_MAX)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(error)
            return
        made = [_adopted(fd) for fd in fds]
        waiting = self._waiting.popleft() if self._waiting and data else None
        try:
            if waiting is None:
                raise ValueError("it closed the connection" if not data else "an answer to nothing")
            answer = sockets.parse_answer(data)
        except ValueError as error:
            _close(made)
            self._lose(error)
            if waiting is not None and not waiting.done():
                waiting.set_exception(SandptyError("supervisor_down", "the supervisor speaks nonsense"))
            return
        if waiting.done():  # the asker went away
            _close(made)
        else:
            waiting.set_result((answer, made))

    def _lose(self, error: Exception) -> None:
        log.warning("connection to the supervisor's sockets lost: %s", error)
        self.close()

    def close(self) -> None:
        peer, self._peer = self._peer, None
        if peer is not None:
            asyncio.get_running_loop().remove_reader(peer.fileno())
            peer.close()
        waiting, self._waiting = self._waiting, deque()
        for each in waiting:
            if not each.done():
                each.set_exception(SandptyError("supervisor_down", "the supervisor went away during the request"))


def _adopted(fd: int) -> socket.socket:
    made = socket.socket(fileno=fd)
    made.setblocking(False)
    return made


def _close(made: list[socket.socket]) -> None:
    for each in made:
        each.close()
