"""The handles of one sandbox that are in use, so that what is typed by pid goes the way that heals."""

from __future__ import annotations

import weakref

from sandpty.sdk._async.client import AsyncClient
from sandpty.sdk._async.handle import AsyncProcessHandle


class AsyncHandles:
    """Knows handles only as long as somebody else does."""

    def __init__(self, client: AsyncClient, sandbox_id: str) -> None:
        self._client = client
        self._sandbox_id = sandbox_id
        self._handles: weakref.WeakValueDictionary[int, AsyncProcessHandle] = weakref.WeakValueDictionary()

    def add(self, handle: AsyncProcessHandle) -> None:
        self._handles[handle.pid] = handle

    async def send_input(self, pid: int, data: bytes | str, request_timeout: float | None = None) -> None:
        """Through the connection of who reads that process, which sends nothing twice; else by a request."""
        handle = self._handles.get(pid)
        if handle is not None and handle.reads:
            await handle.send_stdin(data)
        else:
            raw = data.encode() if isinstance(data, str) else data
            await self._client.within(request_timeout).send_input(self._sandbox_id, f"pid:{pid}", raw)
