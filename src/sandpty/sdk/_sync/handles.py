# Generated from sdk/_async by scripts/generate-sync: change it there.
"""The handles of one sandbox that are in use, so that what is typed by pid goes the way that heals."""

from __future__ import annotations

import weakref

from sandpty.sdk._sync.client import Client
from sandpty.sdk._sync.handle import ProcessHandle


class Handles:
    """Knows handles only as long as somebody else does."""

    def __init__(self, client: Client, sandbox_id: str) -> None:
        self._client = client
        self._sandbox_id = sandbox_id
        self._handles: weakref.WeakValueDictionary[int, ProcessHandle] = weakref.WeakValueDictionary()

    def add(self, handle: ProcessHandle) -> None:
        self._handles[handle.pid] = handle

    def send_input(self, pid: int, data: bytes | str, request_timeout: float | None = None) -> None:
        """Through the connection of who reads that process, which sends nothing twice; else by a request."""
        handle = self._handles.get(pid)
        if handle is not None and handle.reads:
            handle.send_stdin(data)
        else:
            raw = data.encode() if isinstance(data, str) else data
            self._client.within(request_timeout).send_input(self._sandbox_id, f"pid:{pid}", raw)
