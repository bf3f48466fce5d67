"""The client of a sandpty server.

    from sandpty import Sandbox

    with Sandbox() as sandbox:
        print(sandbox.commands.run("uname -a").stdout)
        terminal = sandbox.pty.create(cols=80, rows=24, on_data=lambda data: print(data.decode(), end=""))
        sandbox.pty.send_stdin(terminal.pid, b"exit\\n")
        print(terminal.wait().exit_code)

`AsyncSandbox` is the same, awaited. `sandbox.pty`, `.commands` and `.files` are shaped as in E2B's and Novita's SDKs,
`sandbox.terminal` as in Hyperbrowser's. Below them lie `Client` / `AsyncClient` (the native dialect, described in
docs/reference/protocol.md) and `Terminal` / `AsyncTerminal`, a process's log that is read from an offset and survives
lost connections:

    for event in Terminal(client, sandbox.sandbox_id, process):
        ...  # Output, Gap, Resized, Exit

Errors are `SandptyError`: `reason.name` says what exactly, `reason.hint` which knob to turn.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandpty.sdk._async.attachment import AsyncAttachment
    from sandpty.sdk._async.client import AsyncClient
    from sandpty.sdk._async.commands import AsyncCommands
    from sandpty.sdk._async.file_reader import AsyncFileReader
    from sandpty.sdk._async.files import AsyncFiles
    from sandpty.sdk._async.handle import AsyncProcessHandle
    from sandpty.sdk._async.port import AsyncPortConnection
    from sandpty.sdk._async.pty import AsyncPty
    from sandpty.sdk._async.terminal import AsyncTerminal
    from sandpty.sdk._async.terminals import (
        AsyncSandboxTerminalConnection,
        AsyncSandboxTerminalHandle,
        AsyncSandboxTerminals,
    )
    from sandpty.sdk._async.watch import AsyncWatchHandle
    from sandpty.sdk._sync.attachment import Attachment
    from sandpty.sdk._sync.client import Client
    from sandpty.sdk._sync.commands import Commands
    from sandpty.sdk._sync.file_reader import FileReader
    from sandpty.sdk._sync.files import Files
    from sandpty.sdk._sync.handle import ProcessHandle
    from sandpty.sdk._sync.port import PortConnection
    from sandpty.sdk._sync.pty import Pty
    from sandpty.sdk._sync.terminal import Terminal
    from sandpty.sdk._sync.terminals import SandboxTerminalConnection, SandboxTerminalHandle, SandboxTerminals
    from sandpty.sdk._sync.watch import WatchHandle
    from sandpty.sdk.async_sandbox import AsyncSandbox
    from sandpty.sdk.blocking_sandbox import Sandbox
    from sandpty.sdk.exceptions import (
        CommandExitError,
        DirectoryThereError,
        FileThereError,
        NoDirectoryError,
        NoSuchFileError,
        NotAllowedError,
        ProcessTimeoutError,
        RequestTimeoutError,
        ServerUnreachableError,
    )
    from sandpty.sdk.file_values import EntryInfo, FilesystemEvent, FilesystemEventType, FileType, WriteEntry
    from sandpty.sdk.forwarding import BlockingPortForward, PortForward
    from sandpty.sdk.terminal_values import (
        SandboxTerminalCreateParams,
        SandboxTerminalExitEvent,
        SandboxTerminalOutputEvent,
        SandboxTerminalStatus,
    )
    from sandpty.sdk.values import (
        CommandInfo,
        CommandResult,
        ProcessInfo,
        PtySize,
        SandboxInfo,
        Snapshot,
        StartedProcess,
        Volume,
        WindowSize,
    )
    from sandpty.wire.errors import SandptyError
    from sandpty.wire.frames import Exit, Gap, Output, Resized

# Where each name is. Loaded when it is first asked for: a program that uses one flavour need not wait for the other.
_NAMES = {
    "sdk._async.attachment": ("AsyncAttachment",),
    "sdk._async.client": ("AsyncClient",),
    "sdk._async.commands": ("AsyncCommands",),
    "sdk._async.file_reader": ("AsyncFileReader",),
    "sdk._async.files": ("AsyncFiles",),
    "sdk._async.handle": ("AsyncProcessHandle",),
    "sdk._async.port": ("AsyncPortConnection",),
    "sdk._async.pty": ("AsyncPty",),
    "sdk._async.terminal": ("AsyncTerminal",),
    "sdk._async.terminals": ("AsyncSandboxTerminalConnection", "AsyncSandboxTerminalHandle", "AsyncSandboxTerminals"),
    "sdk._async.watch": ("AsyncWatchHandle",),
    "sdk._sync.attachment": ("Attachment",),
    "sdk._sync.client": ("Client",),
    "sdk._sync.commands": ("Commands",),
    "sdk._sync.file_reader": ("FileReader",),
    "sdk._sync.files": ("Files",),
    "sdk._sync.handle": ("ProcessHandle",),
    "sdk._sync.port": ("PortConnection",),
    "sdk._sync.pty": ("Pty",),
    "sdk._sync.terminal": ("Terminal",),
    "sdk._sync.terminals": ("SandboxTerminalConnection", "SandboxTerminalHandle", "SandboxTerminals"),
    "sdk._sync.watch": ("WatchHandle",),
    "sdk.async_sandbox": ("AsyncSandbox",),
    "sdk.blocking_sandbox": ("Sandbox",),
    "sdk.exceptions": (
        "CommandExitError",
        "DirectoryThereError",
        "FileThereError",
        "NoDirectoryError",
        "NoSuchFileError",
        "NotAllowedError",
        "ProcessTimeoutError",
        "RequestTimeoutError",
        "ServerUnreachableError",
    ),
    "sdk.file_values": ("EntryInfo", "FilesystemEvent", "FilesystemEventType", "FileType", "WriteEntry"),
    "sdk.forwarding": ("BlockingPortForward", "PortForward"),
    "sdk.terminal_values": (
        "SandboxTerminalCreateParams",
        "SandboxTerminalExitEvent",
        "SandboxTerminalOutputEvent",
        "SandboxTerminalStatus",
    ),
    "sdk.values": (
        "CommandInfo",
        "CommandResult",
        "ProcessInfo",
        "PtySize",
        "SandboxInfo",
        "Snapshot",
        "StartedProcess",
        "Volume",
        "WindowSize",
    ),
    "wire.errors": ("SandptyError",),
    "wire.frames": ("Exit", "Gap", "Output", "Resized"),
}
_MODULES = {name: f"sandpty.{module}" for module, names in _NAMES.items() for name in names}

__all__ = [
    "AsyncAttachment",
    "AsyncClient",
    "AsyncCommands",
    "AsyncFileReader",
    "AsyncFiles",
    "AsyncPortConnection",
    "AsyncProcessHandle",
    "AsyncPty",
    "AsyncSandbox",
    "AsyncSandboxTerminalConnection",
    "AsyncSandboxTerminalHandle",
    "AsyncSandboxTerminals",
    "AsyncTerminal",
    "AsyncWatchHandle",
    "Attachment",
    "BlockingPortForward",
    "Client",
    "CommandExitError",
    "CommandInfo",
    "CommandResult",
    "Commands",
    "DirectoryThereError",
    "EntryInfo",
    "Exit",
    "FileReader",
    "FileThereError",
    "FileType",
    "Files",
    "FilesystemEvent",
    "FilesystemEventType",
    "Gap",
    "NoDirectoryError",
    "NoSuchFileError",
    "NotAllowedError",
    "Output",
    "PortConnection",
    "PortForward",
    "ProcessHandle",
    "ProcessInfo",
    "ProcessTimeoutError",
    "Pty",
    "PtySize",
    "RequestTimeoutError",
    "Resized",
    "Sandbox",
    "SandboxInfo",
    "SandboxTerminalConnection",
    "SandboxTerminalCreateParams",
    "SandboxTerminalExitEvent",
    "SandboxTerminalHandle",
    "SandboxTerminalOutputEvent",
    "SandboxTerminalStatus",
    "SandboxTerminals",
    "SandptyError",
    "ServerUnreachableError",
    "Snapshot",
    "StartedProcess",
    "Terminal",
    "Volume",
    "WatchHandle",
    "WindowSize",
    "WriteEntry",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'sandpty.sdk' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
