"""What listens in a sandbox for a client: `ssh -R`, and its agent."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import asyncssh

from sandpty import config
from sandpty.server.dialects.ssh.background import Background
from sandpty.wire.errors import SandptyError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Listening:
    """`accept` raises OSError when one connection is lost, and SandptyError when no more can come."""

    accept: Callable[[], Awaitable[socket.socket]]
    port: int = 0


class Listener(asyncssh.SSHListener):
    """Begun by `begin`, accepts until it is closed, which may be at any time."""

    def __init__(self, accepted: Callable[[socket.socket], None]) -> None:
        super().__init__()
        self._accepted = accepted
        self._port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None
        self._failure = SandptyError("sandbox_paused", "the sandbox does not run any more")

    async def begin(self, opening: AbstractAsyncContextManager[Listening], background: Background) -> None:
        """`opening` makes it, and ends what goes with it. Raises what it raises."""
        self._task = background.spawn(self._run(opening))
        try:
            await asyncio.wait((self._task, self._port), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self.close()
            raise
        if not self._port.done():
            raise self._failure

    async def _run(self, opening: AbstractAsyncContextManager[Listening]) -> None:
        try:
            async with opening as listening:
                self._port.set_result(listening.port)
                await self._accept(listening)
        except SandptyError as error:
            self._failure = error
        except (TimeoutError, OSError) as error:
            self._failure = SandptyError("runtime_failed", f"no listener in the sandbox: {error}")

    async def _accept(self, listening: Listening) -> None:
        while True:
            try:
                accepted = await listening.accept()
            except OSError as error:  # out of descriptors, for example: the next one may do better
                log.warning("a connection to what listens in a sandbox is lost: %s", error)
                await asyncio.sleep(config.SSH_ACCEPT_RETRY_S)
            else:
                self._accepted(accepted)

    @property
    def closed(self) -> bool:
        return self._task is not None and self._task.done()

    def get_port(self) -> int:
        return self._port.result()

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
