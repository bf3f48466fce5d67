"""The client's agent, for programs in a sandbox (`ssh -A`): a unix socket that leads to it, as long as the connection.

It lies in `~/.ssh/agent`, a directory that is the user's alone, so nobody else can take its place when it has gone. A
terminal that outlives its connection keeps the path; whoever comes back to it with an agent has it lead to his own.
"""

from __future__ import annotations

import asyncio
import logging
import posixpath
import re
import secrets

from sandpty.server.context import Context
from sandpty.server.dialects.ssh.forwarding import Forwarding
from sandpty.server.dialects.ssh.listeners import Listener
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import ProcessInfo
from sandpty.wire.verbs import Sandbox

log = logging.getLogger(__name__)
VARIABLE = "SSH_AUTH_SOCK"
_DIRECTORY = ".ssh/agent"  # below home; OpenSSH's since 10.1
_NAME = re.compile(r"sandpty\.[0-9a-f]{16}")


class ClientAgent:
    """Of one client's connection. Where a socket cannot be made there is none, as with OpenSSH's server."""

    def __init__(self, context: Context, forwarding: Forwarding) -> None:
        self._context = context
        self._forwarding = forwarding
        self._lock = asyncio.Lock()
        self._name = f"sandpty.{secrets.token_hex(8)}"
        self._path = ""
        self._listener: Listener | None = None

    async def path(self, sandbox: Sandbox) -> str:
        """Of the socket for what this connection starts; "" without one."""
        async with self._lock:
            if self._listener is None or self._listener.closed:
                try:
                    self._path = posixpath.join(await self._directory(sandbox), self._name)
                    self._listener = await self._forwarding.listen_for_agent(sandbox, self._path)
                except SandptyError as error:
                    log.info("no agent in %s: %s", sandbox.id, error)
                    return ""
            return self._path

    async def come_back(self, sandbox: Sandbox, process: ProcessInfo) -> None:
        """Where a process looks for an agent of an earlier connection there is this one's, unless one is there."""
        path = process.env.get(VARIABLE, "")
        async with self._lock:
            if path == self._path or not _NAME.fullmatch(posixpath.basename(path)):
                return
            try:
                if path == posixpath.join(await self._directory(sandbox), posixpath.basename(path)):
                    await self._forwarding.listen_for_agent(sandbox, path)
            except SandptyError as error:
                log.info("no agent again in %s: %s", sandbox.id, error)

    async def _directory(self, sandbox: Sandbox) -> str:
        """Made when it is not there. Raises permission_denied when others may do something in it, ..."""
        user = self._forwarding.user(sandbox)
        async with self._context.files.lease(sandbox, user) as files:
            path = posixpath.join(files.account.home or "/", _DIRECTORY)
            entry = (await files.make_directory(path, mode=0o700)).entry
            if entry.uid != files.account.uid or entry.mode & 0o077:
                raise SandptyError("permission_denied", f"{path} is not {user}'s alone")
        return path
