# Generated from sdk/_async by scripts/generate-sync: change it there.
"""The handles of one sandbox that are in use, so that what is typed by pid goes the way that heals."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from sandpty.sdk._sync.client import Client
from sandpty.sdk._sync.handle import ProcessHandle
from sandpty.sdk._sync.terminal import Terminal


class Handles:
    """Makes handles, and knows them as long as somebody else does."""

    def __init__(self, client: Client, sandbox_id: str) -> None:
        self._client = client
        self._sandbox_id = sandbox_id
        self._handles: weakref.WeakValueDictionary[int, ProcessHandle] = weakref.WeakValueDictionary()

    def add(self, handle: ProcessHandle) -> None:
        self._handles[handle.pid] = handle

    def start(
        self,
        argv: Sequence[str],
        *,
        at_once: bool,
        text: bool = False,
        timeout_s: float,
        request_timeout: float | None,
        **options: Any,
    ) -> ProcessHandle:
        """Start a process. `at_once`: its output is to be read from now on, so one exchange does both."""
        client = self._client.within(request_timeout)
        terminal: Terminal | None = None
        if at_once:
            view = client.start_attached(self._sandbox_id, argv, deadline_s=timeout_s, **options)
            terminal = Terminal(self._client, self._sandbox_id, view)
            terminal.open()
            process, pid = terminal.info.process, terminal.info.pid
        else:
            started = client.start_process(self._sandbox_id, argv, deadline_s=timeout_s, **options)
            process, pid = started.process, started.pid
        handle = ProcessHandle(
            self._client, self._sandbox_id, process, pid=pid, timeout_s=timeout_s, text=text, terminal=terminal
        )
        self.add(handle)
        return handle

    def send_input(self, pid: int, data: bytes | str, request_timeout: float | None = None) -> None:
        """Through the connection of who reads that process, which sends nothing twice; else by a request."""
        handle = self._handles.get(pid)
        if handle is not None and handle.reads:
            handle.send_stdin(data)
        else:
            raw = data.encode() if isinstance(data, str) else data
            self._client.within(request_timeout).send_input(self._sandbox_id, f"pid:{pid}", raw)

    def close_stdin(self, pid: int, request_timeout: float | None = None) -> None:
        """The same way, so that it does not overtake what was typed."""
        handle = self._handles.get(pid)
        if handle is not None and handle.reads:
            handle.close_stdin()
        else:
            self._client.within(request_timeout).close_stdin(self._sandbox_id, f"pid:{pid}")
