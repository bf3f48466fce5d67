"""What E2B's clients send to the control plane and expect of it, as structs: a model is its own documentation.

Requests ignore unknown fields, because newer SDKs add some. Replies hold every field that the SDKs require (Python's
generated models raise KeyError on a missing one).
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

# --- requests ---


class AutoResume(msgspec.Struct, frozen=True):
    enabled: bool = False


class ProxyTls(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    enabled: bool | None = None
    server_name: str | None = None
    ca_cert: str | None = None


class EgressProxy(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """Of info: without `password` and `tls.caCert`."""

    address: str
    username: str | None = None
    password: str | None = None
    tls: ProxyTls | None = None


class Transform(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    headers: dict[str, str] | None = None


class NetworkRule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    transform: Transform | None = None


class NetworkConfig(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """`network` of create and of info."""

    allow_out: list[str] | None = None
    deny_out: list[str] | None = None
    dns_servers: list[str] | None = None
    egress_proxy: EgressProxy | None = None
    rules: dict[str, list[NetworkRule]] | None = None
    allow_public_traffic: bool | None = None
    mask_request_host: str | None = None
    https_ports: list[int] | None = None


class NetworkUpdate(msgspec.Struct, frozen=True, kw_only=True):
    """PUT /sandboxes/{id}/network: what it leaves out is cleared."""

    allow_out: list[str] | None = msgspec.field(name="allowOut", default=None)
    deny_out: list[str] | None = msgspec.field(name="denyOut", default=None)
    dns_servers: list[str] | None = msgspec.field(name="dnsServers", default=None)
    egress_proxy: EgressProxy | None = msgspec.field(name="egressProxy", default=None)
    rules: dict[str, list[NetworkRule]] | None = None
    allow_internet_access: bool | None = None


class VolumeMount(msgspec.Struct, frozen=True):
    """`name`: the volume's name or id."""

    name: str
    path: str


class Identity(msgspec.Struct, frozen=True):
    """`iam`: workload identity tokens, by the names that transforms refer to them with."""

    tokens: dict[str, Any] | None = None


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
    network: NetworkConfig | None = None
    volume_mounts: list[VolumeMount] | None = msgspec.field(name="volumeMounts", default=None)
    iam: Identity | None = None


class ConnectBody(msgspec.Struct, frozen=True):
    """POST /v2/sandboxes/{id}/connect and its v1. `timeout` is seconds; `memory` false: start again from the files."""

    timeout: int | None = None
    memory: bool | None = None


class ResumeBody(msgspec.Struct, frozen=True):
    timeout: int | None = None
    memory: bool | None = None


class TimeoutBody(msgspec.Struct, frozen=True):
    timeout: int


class RefreshBody(msgspec.Struct, frozen=True):
    duration: int | None = None


class PauseBody(msgspec.Struct, frozen=True):
    memory: bool | None = None
    require_healthy_guest: bool | None = msgspec.field(name="requireHealthyGuest", default=None)


class SnapshotBody(msgspec.Struct, frozen=True):
    """`memory` is not read: only files are kept."""

    name: str | None = None


class ForkBody(msgspec.Struct, frozen=True):
    timeout: int | None = None
    count: int | None = None


# --- replies ---


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
    volume_mounts: list[VolumeMount] = []


class SnapshotInfo(msgspec.Struct, frozen=True):
    snapshot_id: str = msgspec.field(name="snapshotID")
    names: list[str] = []


class ErrorBody(msgspec.Struct, frozen=True):
    code: int
    message: str


class ForkResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One of both."""

    sandbox: SandboxReply | None = None
    error: ErrorBody | None = None


class Lifecycle(msgspec.Struct, frozen=True, rename="camel"):
    auto_resume: bool
    on_timeout: Literal["kill", "pause"]


class SandboxDetail(ListedSandbox, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """GET /sandboxes/{id}."""

    envd_access_token: str | None = None
    allow_internet_access: bool | None = None
    domain: str | msgspec.UnsetType | None = msgspec.UNSET
    network: NetworkConfig | None = None
    lifecycle: Lifecycle | None = None
    pause_mode: Literal["full", "filesystem"] | None = None
