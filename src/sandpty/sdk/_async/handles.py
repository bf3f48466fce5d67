"""The handles of one sandbox that are in use, so that what is typed by pid goes the way that heals."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from sandpty.sdk._async.client import AsyncClient
from sandpty.sdk._async.handle import AsyncProcessHandle
from sandpty.sdk._async.terminal import AsyncTerminal


class AsyncHandles:
    """Makes handles, and knows them as long as somebody else does."""

    def __init__(self, client: AsyncClient, sandbox_id: str) -> None:
        self._client = client
        self._sandbox_id = sandbox_id
        self._handles: weakref.WeakValueDictionary[int, AsyncProcessHandle] = weakref.WeakValueDictionary()

    def add(self, handle: AsyncProcessHandle) -> None:
        self._handles[handle.pid] = handle

    async def start(
        self,
        argv: Sequence[str],
        *,
        at_once: bool,
        text: bool = False,
        timeout_s: float,
        request_timeout: float | None,
        **options: Any,
    ) -> AsyncProcessHandle:
        """Start a process. `at_once`: its output is to be read from now on, so one exchange does both."""
        client = self._client.within(request_timeout)
        terminal: AsyncTerminal | None = None
        if at_once:
            view = client.start_attached(self._sandbox_id, argv, deadline_s=timeout_s, **options)
            terminal = AsyncTerminal(self._client, self._sandbox_id, view)
            await terminal.open()
            process, pid = terminal.info.process, terminal.info.pid
        else:
            started = await client.start_process(self._sandbox_id, argv, deadline_s=timeout_s, **options)
            process, pid = started.process, started.pid
        handle = AsyncProcessHandle(
            self._client, self._sandbox_id, process, pid=pid, timeout_s=timeout_s, text=text, terminal=terminal
        )
        self.add(handle)
        return handle

    async def send_input(self, pid: int, data: bytes | str, request_timeout: float | None = None) -> None:
        """Through the connection of who reads that process, which sends nothing twice; else by a request."""
        handle = self._handles.get(pid)
        if handle is not None and handle.reads:
            await handle.send_stdin(data)
        else:
            raw = data.encode() if isinstance(data, str) else data
            await self._client.within(request_timeout).send_input(self._sandbox_id, f"pid:{pid}", raw)

    async def close_stdin(self, pid: int, request_timeout: float | None = None) -> None:
        """The same way, so that it does not overtake what was typed."""
        handle = self._handles.get(pid)
        if handle is not None and handle.reads:
            await handle.close_stdin()
        else:
            await self._client.within(request_timeout).close_stdin(self._sandbox_id, f"pid:{pid}")
