"""Sockets in sandboxes' networks, asked for before they are needed: half a millisecond less for each request.

Only sandboxes whose ports are in use have any, and they go with the sandbox: a socket keeps its network alive.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

from sandpty import config
from sandpty.server.socket_source import SocketSource
from sandpty.wire.errors import SandptyError
from sandpty.wire.sockets import SocketKind, SocketRequest

log = logging.getLogger(__name__)
Cutting = Callable[[str, Callable[[], None]], AbstractContextManager[None]]


@dataclass
class _Spares:
    """Of one sandbox. `own`: its own address."""

    sockets: list[socket.socket] = field(default_factory=list)
    own: str = ""
    watching: ExitStack = field(default_factory=ExitStack)
    refilling: asyncio.Task[None] | None = None


class SpareSockets:
    """TCP over IPv4, not connected. `cutting`: the registry's. `close` it."""

    def __init__(self, source: SocketSource, cutting: Cutting) -> None:
        self._source = source
        self._cutting = cutting
        self._spares: OrderedDict[str, _Spares] = OrderedDict()

    def take(self, sandbox_id: str) -> tuple[socket.socket, str] | None:
        """A socket and the guest's own address, if there is one; more will be there soon."""
        spares = self._spares.get(sandbox_id)
        if spares is None:
            spares = self._spares[sandbox_id] = _Spares()
            spares.watching.enter_context(self._cutting(sandbox_id, lambda: self._drop(sandbox_id)))
            while len(self._spares) > config.SPARE_SOCKETS_SANDBOXES_MAX:
                self._drop(next(iter(self._spares)))
        self._spares.move_to_end(sandbox_id)
        taken = (spares.sockets.pop(), spares.own) if spares.sockets else None
        if len(spares.sockets) <= config.SPARE_SOCKETS // 2 and spares.refilling is None:
            spares.refilling = asyncio.create_task(self._refill(sandbox_id, spares), name=f"sockets for {sandbox_id}")
        return taken

    async def _refill(self, sandbox_id: str, spares: _Spares) -> None:
        try:
            missing = range(config.SPARE_SOCKETS - len(spares.sockets))
            kinds = tuple[SocketKind, ...]("tcp4" for _ in missing)
            made, spares.own = await self._source.ask(SocketRequest(sandbox_id, kinds))
            if self._spares.get(sandbox_id) is spares:
                spares.sockets += made
            else:  # the sandbox went away meanwhile
                for each in made:
                    each.close()
        except SandptyError as error:
            log.debug("no spare sockets for %s: %s", sandbox_id, error)
        finally:
            spares.refilling = None

    def _drop(self, sandbox_id: str) -> None:
        spares = self._spares.pop(sandbox_id, None)
        if spares is None:
            return
        spares.watching.close()
        for each in spares.sockets:
            each.close()

    def close(self) -> None:
        for sandbox_id, spares in list(self._spares.items()):
            if spares.refilling is not None:
                spares.refilling.cancel()
            self._drop(sandbox_id)
