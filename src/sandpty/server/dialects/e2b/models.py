"""What E2B's clients send and expect, as structs: a model is its own documentation.

Requests ignore unknown fields, because newer SDKs add some. Replies hold every field that the SDKs require (Python's
generated models raise KeyError on a missing one).
"""

from __future__ import annotations

from typing import Literal

import msgspec

# --- control plane: requests -----------------------------------------------------------------------------------------


class AutoResume(msgspec.Struct, frozen=True):
    enabled: bool = False


class CreateBody(msgspec.Struct, frozen=True):
    """POST /v2/sandboxes and POST /sandboxes. `timeout` is seconds; `secure` exists only in v1."""

    template_id: str = msgspec.field(name="templateID")
    timeout: int | None = None
    secure: bool = False
    auto_pause: bool | None = msgspec.field(name="autoPause", default=None)
    auto_pause_memory: bool | None = msgspec.field(name="autoPauseMemory", default=None)
    auto_resume: AutoResume | None = msgspec.field(name="autoResume", default=None)
    allow_internet_access: bool | None = None
    metadata: dict[str, str] | None = None
    env_vars: dict[str, str] | None = msgspec.field(name="envVars", default=None)


class ConnectBody(msgspec.Struct, frozen=True):
    """POST /v2/sandboxes/{id}/connect and its v1. `timeout` is seconds."""

    timeout: int | None = None


class ResumeBody(msgspec.Struct, frozen=True):
    timeout: int | None = None


class TimeoutBody(msgspec.Struct, frozen=True):
    timeout: int


class RefreshBody(msgspec.Struct, frozen=True):
    duration: int | None = None


class PauseBody(msgspec.Struct, frozen=True):
    memory: bool | None = None


# --- control plane: replies ------------------------------------------------------------------------------------------


class SandboxReply(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """create, connect, resume."""

    template_id: str = msgspec.field(name="templateID")
    sandbox_id: str = msgspec.field(name="sandboxID")
    client_id: str = msgspec.field(name="clientID")
    envd_version: str
    alias: str | None = None
    envd_access_token: str | None = None
    # present though null: the generated Python models tell "null" from "absent"
    traffic_access_token: str | msgspec.UnsetType | None = msgspec.UNSET
    domain: str | msgspec.UnsetType | None = msgspec.UNSET


class ListedSandbox(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """One item of a list."""

    template_id: str = msgspec.field(name="templateID")
    sandbox_id: str = msgspec.field(name="sandboxID")
    client_id: str = msgspec.field(name="clientID")
    started_at: str
    end_at: str
    envd_version: str
    cpu_count: int
    memory_mb: int = msgspec.field(name="memoryMB")
    disk_size_mb: int = msgspec.field(name="diskSizeMB")
    state: Literal["running", "paused"]
    alias: str | None = None
    metadata: dict[str, str] | None = None


class Lifecycle(msgspec.Struct, frozen=True, rename="camel"):
    auto_resume: bool
    on_timeout: Literal["kill", "pause"]


class SandboxDetail(ListedSandbox, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """GET /sandboxes/{id}."""

    envd_access_token: str | None = None
    allow_internet_access: bool | None = None
    domain: str | msgspec.UnsetType | None = msgspec.UNSET
    lifecycle: Lifecycle | None = None


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
