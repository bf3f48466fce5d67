"""The client of a sandpty server: its native dialect, with offsets, windows and resuming terminals.

    async with AsyncClient(url, api_key) as client:
        sandbox = await client.create_sandbox("base")
        process = await client.start_process(sandbox.id, ["/bin/bash", "-l"], pty=WindowSize(cols=80, rows=24))
        async with client.attach(sandbox.id, process.process) as attachment:
            await attachment.send_input(b"echo hello\\n")
            async for event in attachment:
                ...

Errors are `SandptyError`: its `reason.name` says what exactly, `reason.hint` which knob.
"""

from __future__ import annotations

from sandpty.sdk._async.attachment import Attachment, Event
from sandpty.sdk._async.client import AsyncClient
from sandpty.sdk._async.terminal import Terminal
from sandpty.sdk.types import Process, Sandbox, Snapshot, StartedProcess, WindowSize
from sandpty.wire.errors import SandptyError

__all__ = [
    "AsyncClient",
    "Attachment",
    "Event",
    "Process",
    "Sandbox",
    "SandptyError",
    "Snapshot",
    "StartedProcess",
    "Terminal",
    "WindowSize",
]
