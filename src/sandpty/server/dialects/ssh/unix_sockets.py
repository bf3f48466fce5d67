"""Unix sockets of a sandbox: `ssh -L PORT:/path/in/the/sandbox`, `ssh -R /path/in/the/sandbox:...`, the client's agent.

They are made by a child of the sandbox's agent, as the user who logged in. So what a path means, and whether it may be
used, is settled where it lies: no path is ever looked at on this host.
"""

from __future__ import annotations

import asyncio
import posixpath
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sandpty import config
from sandpty.server.context import Context
from sandpty.server.dialects.ssh.listeners import Listening
from sandpty.terminal.files import Files
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox

_LOST = ("agent_unreachable", "agent_misbehaved", "sandbox_ended", "sandbox_paused")


def _absolute(files: Files, path: str) -> str:
    """Relative paths lie below home."""
    return posixpath.join(files.account.home or "/", path)


async def connect(context: Context, sandbox: Sandbox, user: str, path: str) -> socket.socket:
    """Connected, and the caller's. Raises port_closed, no_such_file, permission_denied, timeout, ..."""
    async with context.files.lease(sandbox, user) as files:
        try:
            async with asyncio.timeout(config.GUEST_CONNECT_TIMEOUT_S):
                return await files.connect_to(_absolute(files, path))
        except TimeoutError as error:
            raise SandptyError("timeout", "the socket takes no connection") from error


@asynccontextmanager
async def listening(context: Context, sandbox: Sandbox, user: str, path: str) -> AsyncIterator[Listening]:
    """A socket of this user's alone. Its path goes when the block is left, whatever becomes of this process.

    Raises conflict (something is there), no_such_file, permission_denied, limit, ...
    """
    async with context.files.watching(sandbox, user) as files:
        async with asyncio.timeout(config.AGENT_REPLY_TIMEOUT_S):
            await files.listen_at(_absolute(files, path))

        async def accept() -> socket.socket:
            try:
                return await files.accept()
            except SandptyError as error:
                if error.reason.name in _LOST:
                    raise
                raise OSError(error.message) from error  # that one is lost, others may come

        yield Listening(accept)
