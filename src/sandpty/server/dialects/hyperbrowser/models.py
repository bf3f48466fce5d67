"""What Hyperbrowser's clients send and expect, as structs: a model is its own documentation.

Requests are checked strictly by type; unknown members are ignored, because newer SDKs add some, and null means absent
(Python sends nulls, Node leaves out). Replies hold what the Python SDK's models require.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

Region: TypeAlias = Literal["us-central", "asia-south", "us-dev", "europe-west", "us-west", "us-east", "us"]
Status: TypeAlias = Literal["active", "closed", "error", "close-error"]
Port: TypeAlias = Annotated[int, Meta(ge=1, le=65535)]
ProcessStatus: TypeAlias = Literal["queued", "running", "exited", "failed", "killed", "timed_out"]
SnapshotStatus: TypeAlias = Literal["creating", "created", "failed"]
DEFAULT_REGION: Region = "us-central"


class _Body(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    pass


class _Reply(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    pass


# --- sandboxes -------------------------------------------------------------------------------------------------------


class ExposeBody(_Body, frozen=True, kw_only=True):
    port: Port
    auth: bool | None = None


class UnexposeBody(_Body, frozen=True, kw_only=True):
    port: Port


class NetworkBody(_Body, frozen=True, kw_only=True):
    """PUT /sandbox/{id}/network: only the members that are set change."""

    allow_internet_access: bool | None = None
    allow_out: list[str] | None = None
    deny_out: list[str] | None = None


class Mount(_Body, frozen=True, kw_only=True):
    """Of a volume, by id or name. `shared` says nothing here: every mount is shared."""

    id: str
    type: Literal["rw", "ro"] | None = None
    shared: bool | None = None


class CreateVolumeBody(_Body, frozen=True, kw_only=True):
    name: str


class Volume(_Reply, frozen=True, kw_only=True):
    """`size`: bytes that it takes."""

    id: str
    name: str
    size: int


class VolumeList(_Reply, frozen=True, kw_only=True):
    volumes: list[Volume]
    total_count: int
    page: int
    per_page: int


class DeletedVolume(_Reply, frozen=True, kw_only=True):
    id: str
    name: str
    deleted: bool = True


class CreateBody(NetworkBody, frozen=True, kw_only=True):
    """POST /sandbox: an image launch, or with `snapshotName` a snapshot launch."""

    image_name: str | None = None
    image_id: str | None = None
    snapshot_name: str | None = None
    snapshot_id: str | None = None
    region: Region | None = None
    enable_recording: bool | None = None
    exposed_ports: list[ExposeBody] | None = None
    mounts: dict[str, Mount] | None = None
    timeout_minutes: Annotated[int, Meta(ge=1)] | None = None
    vcpus: Annotated[int, Meta(ge=1)] | None = None
    mem_mib: Annotated[int, Meta(ge=1)] | None = msgspec.field(name="memMiB", default=None)
    disk_size_mib: Annotated[int, Meta(ge=1)] | None = msgspec.field(name="diskSizeMiB", default=None)
    secrets: Any = None
    vault: Any = None
    one_password: Any = None


class Runtime(_Reply, frozen=True, kw_only=True):
    host: str
    base_url: str
    transport: str = "regional_proxy"


class Network(_Reply, frozen=True, kw_only=True):
    allow_internet_access: bool
    allow_out: list[str] = []
    deny_out: list[str] = []


class ExposedPort(_Reply, frozen=True, kw_only=True, omit_defaults=True):
    port: int
    auth: bool
    url: str
    browser_url: str | None = None
    browser_url_expires_at: str | None = None


class SandboxListed(_Reply, frozen=True, kw_only=True):
    """A sandbox in a list. Times: ISO 8601, but start and end as milliseconds; duration in seconds."""

    id: str
    team_id: str
    status: Status
    created_at: str
    updated_at: str
    region: Region
    session_url: str
    duration: int
    runtime: Runtime
    start_time: int
    end_time: int | None
    close_reason: str | None
    vcpus: int
    mem_mib: int = msgspec.field(name="memMiB")
    disk_size_mib: int = msgspec.field(name="diskSizeMiB")
    timeout_minutes: int
    exposed_ports: list[ExposedPort]
    network: Network
    contains_secrets: bool = False


class SandboxDetail(SandboxListed, frozen=True, kw_only=True):
    """`token` null: it does not run."""

    token: str | None
    token_expires_at: str | None


class SandboxList(_Reply, frozen=True, kw_only=True):
    sandboxes: list[SandboxListed]
    total_count: int
    page: int
    per_page: int


class SnapshotBody(_Body, frozen=True, kw_only=True):
    """POST /sandbox/{id}/snapshot."""

    snapshot_name: str | None = None


# --- images, snapshots -----------------------------------------------------------------------------------------------


class Image(_Reply, frozen=True, kw_only=True):
    id: str
    image_name: str
    namespace: str
    source: Literal["public", "team"]
    uploaded: bool
    ready: bool
    created_at: str
    updated_at: str


class DeletedImage(_Reply, frozen=True, kw_only=True):
    id: str
    image_name: str
    deleted: bool = True


class ImageList(_Reply, frozen=True, kw_only=True):
    images: list[Image]
    total_count: int
    page: int
    per_page: int


class Snapshot(_Reply, frozen=True, kw_only=True):
    id: str
    snapshot_name: str
    namespace: str
    image_namespace: str
    image_name: str
    image_id: str
    status: SnapshotStatus
    metadata: dict[str, Any]
    uploaded: bool
    vcpus: int
    mem_mib: int = msgspec.field(name="memMiB")
    disk_size_mib: int = msgspec.field(name="diskSizeMiB")
    created_at: str
    updated_at: str


class SnapshotList(_Reply, frozen=True, kw_only=True):
    snapshots: list[Snapshot]
    total_count: int
    page: int
    per_page: int


class MadeSnapshot(_Reply, frozen=True, kw_only=True):
    """What creating one answers."""

    snapshot_name: str
    snapshot_id: str
    namespace: str
    status: str
    image_name: str
    image_id: str
    image_namespace: str


# --- terminals -------------------------------------------------------------------------------------------------------


class TerminalBody(_Body, frozen=True, kw_only=True):
    """POST /pty."""

    command: Annotated[str, Meta(min_length=1)]
    args: list[str] | None = None
    cwd: str | None = None
    env: dict[str, str] | None = None
    use_shell: bool | None = None
    rows: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    cols: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    timeout_ms: Annotated[int, Meta(ge=0)] | None = None


class WaitBody(_Body, frozen=True, kw_only=True):
    """POST /pty/{id}/wait, POST /processes/{id}/wait. 0 or absent: WAIT_S."""

    timeout_ms: Annotated[int, Meta(ge=0)] | None = None
    timeout_sec: Annotated[float, Meta(ge=0)] | None = msgspec.field(name="timeout_sec", default=None)
    include_output: bool | None = None


class SignalBody(_Body, frozen=True, kw_only=True):
    signal: str | int | None = None


class ResizeBody(_Body, frozen=True, kw_only=True):
    rows: Annotated[int, Meta(ge=1, le=10_000)]
    cols: Annotated[int, Meta(ge=1, le=10_000)]


class TerminalStatus(_Reply, frozen=True, kw_only=True):
    """Times in milliseconds."""

    id: str
    command: str
    args: list[str]
    cwd: str
    pid: int
    running: bool
    exit_code: int | None
    timed_out: bool
    rows: int
    cols: int
    started_at: int
    finished_at: int | None
    error: str | None = None


class TerminalInput(msgspec.Struct, frozen=True, tag="input"):
    data: str
    encoding: Literal["utf8", "base64"] | None = None


class TerminalResize(msgspec.Struct, frozen=True, tag="resize"):
    rows: int
    cols: int


TerminalMessage: TypeAlias = TerminalInput | TerminalResize


# --- processes: replies are snake_case (Node reads nothing else), requests mostly camelCase --------------------------


class ProcessBody(_Body, frozen=True, kw_only=True):
    """POST /processes and POST /exec."""

    command: Annotated[str, Meta(min_length=1)]
    args: list[str] | None = None
    cwd: str | None = None
    env: dict[str, str] | None = None
    timeout_ms: Annotated[int, Meta(ge=0)] | None = None
    timeout_sec: Annotated[float, Meta(ge=0)] | None = msgspec.field(name="timeout_sec", default=None)
    run_as: str | None = None
    use_shell: bool | None = None


class StdinBody(_Body, frozen=True, kw_only=True):
    data: str | None = None
    encoding: Literal["utf8", "base64"] | None = None
    eof: bool | None = None


class ProcessSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Times in milliseconds."""

    id: str
    status: ProcessStatus
    command: str
    cwd: str
    pid: int
    exit_code: int | None
    started_at: int
    completed_at: int | None


class ProcessList(msgspec.Struct, frozen=True, kw_only=True):
    data: list[ProcessSummary]
    next_cursor: str | None
