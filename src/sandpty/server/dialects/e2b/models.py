"""What E2B's clients send to the process service and expect of it, as structs: a model is its own documentation.

Requests ignore unknown fields, because newer SDKs add some. The control plane's models: control_models.py.
"""

from __future__ import annotations

import msgspec

# --- process.Process -------------------------------------------------------------------------------------------------
# proto3 JSON: names are lowerCamelCase, the original snake_case is accepted too, null means absent.


class ProcessConfig(msgspec.Struct, frozen=True):
    cmd: str | None = None
    args: list[str] | None = None
    envs: dict[str, str] | None = None
    cwd: str | None = None


class Size(msgspec.Struct, frozen=True):
    cols: int | str | None = None
    rows: int | str | None = None


class Pty(msgspec.Struct, frozen=True):
    size: Size | None = None


class StartRequest(msgspec.Struct, frozen=True):
    process: ProcessConfig | None = None
    pty: Pty | None = None
    tag: str | None = None
    stdin: bool | None = None


class ProcessSelector(msgspec.Struct, frozen=True):
    pid: int | str | None = None
    tag: str | None = None


class SelectedRequest(msgspec.Struct, frozen=True):
    """Connect and CloseStdin."""

    process: ProcessSelector | None = None


class UpdateRequest(msgspec.Struct, frozen=True):
    process: ProcessSelector | None = None
    pty: Pty | None = None


class ProcessInput(msgspec.Struct, frozen=True):
    stdin: str | None = None
    pty: str | None = None


class SendInputRequest(msgspec.Struct, frozen=True):
    process: ProcessSelector | None = None
    input: ProcessInput | None = None


class SendSignalRequest(msgspec.Struct, frozen=True):
    process: ProcessSelector | None = None
    signal: str | int | None = None


class StreamInputData(msgspec.Struct, frozen=True):
    input: ProcessInput | None = None


class StreamInputRequest(msgspec.Struct, frozen=True):
    """`keepalive` needs no field: a message with neither start nor data is one."""

    start: SelectedRequest | None = None
    data: StreamInputData | None = None


class ListedConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    cmd: str
    args: tuple[str, ...] = ()
    envs: dict[str, str] = {}
    cwd: str | None = None


class ListedProcess(msgspec.Struct, frozen=True, omit_defaults=True):
    config: ListedConfig
    pid: int
    tag: str | None = None


class ListReply(msgspec.Struct, frozen=True):
    processes: list[ListedProcess]
