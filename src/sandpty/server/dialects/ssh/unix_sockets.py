"""Unix sockets of a sandbox: `ssh -L PORT:/path/in/the/sandbox`, `ssh -R /path/in/the/sandbox:...`, the client's agent.

A socket is one of the sandbox's own network, which the supervisor makes; a child of the sandbox's agent gives it its
path or its peer, as the user who logged in. So what a path means, and whether it may be used, is settled where it lies:
no path is ever looked at on this host. No byte of what the socket carries passes through the agent.
"""

from __future__ import annotations

import asyncio
import posixpath
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

from sandpty import config
from sandpty.server.context import Context
from sandpty.terminal.files import Files
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox


def _absolute(files: Files, path: str) -> str:
    """Relative paths lie below home."""
    return posixpath.join(files.account.home or "/", path)


async def connect(context: Context, sandbox: Sandbox, user: str, path: str) -> socket.socket:
    """Connected, and the caller's. Raises port_closed, no_such_file, permission_denied, timeout, unsupported, ..."""
    async with context.files.lease(sandbox, user) as files:
        made = await context.guest_sockets.unix(sandbox)
        try:
            async with asyncio.timeout(config.GUEST_CONNECT_TIMEOUT_S):
                await files.connect_to(_absolute(files, path), made.fileno())
        except TimeoutError as error:
            made.close()
            raise SandptyError("timeout", "the socket takes no connection") from error
        except BaseException:
            made.close()
            raise
    return made


@asynccontextmanager
async def listening(context: Context, sandbox: Sandbox, user: str, path: str) -> AsyncIterator[socket.socket]:
    """A socket of this user's alone. Its path goes when the block is left, whatever becomes of this process.

    Raises conflict (something is there), no_such_file, permission_denied, limit, unsupported, ...
    """
    async with context.files.watching(sandbox, user) as files:
        with closing(await context.guest_sockets.unix(sandbox)) as made:
            async with asyncio.timeout(config.AGENT_REPLY_TIMEOUT_S):
                await files.listen_at(_absolute(files, path), made.fileno())
            yield made
