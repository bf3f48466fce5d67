"""What the control plane says of a sandbox, and how: JSON bodies made from the registry's view."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from aiohttp import web

from sandpty.server.dialects.e2b import control_models as models
from sandpty.server.dialects.e2b.listing import rfc3339
from sandpty.server.dialects.e2b.network import shown
from sandpty.server.dialects.e2b.requests import is_secure
from sandpty.server.ports.policy import traffic_token
from sandpty.wire.verbs import Sandbox

ENVD_VERSION = "0.6.13"  # from 0.6.7 on the SDKs use everything that this dialect serves
CLIENT_ID = "sandpty"


def json_reply(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    body = msgspec.json.encode(value)
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


def no_content() -> web.Response:
    return web.Response(status=204)


def token(sandbox: Sandbox) -> str | None:
    """The sandbox's access token; None where it was created without one."""
    return sandbox.annotations.get("token") if is_secure(sandbox) else None


def sandbox_reply(sandbox: Sandbox, domain: str | None) -> models.SandboxReply:
    """Of create, connect, resume and fork."""
    return models.SandboxReply(
        template_id=sandbox.template,
        sandbox_id=sandbox.id,
        client_id=CLIENT_ID,
        envd_version=ENVD_VERSION,
        alias=sandbox.annotations.get("template"),
        envd_access_token=token(sandbox),
        traffic_access_token=traffic_token(sandbox),
        domain=domain,
    )


def listed(sandbox: Sandbox) -> models.ListedSandbox:
    """One item of a list."""
    limits = sandbox.limits
    return models.ListedSandbox(
        template_id=sandbox.template,
        sandbox_id=sandbox.id,
        client_id=CLIENT_ID,
        alias=sandbox.annotations.get("template"),
        started_at=rfc3339(sandbox.started_at),
        end_at=rfc3339(sandbox.end_at),
        envd_version=ENVD_VERSION,
        cpu_count=max(1, round(limits.cpu_count)),
        memory_mb=limits.memory_mb,
        disk_size_mb=limits.disk_mb,
        state=sandbox.state,
        metadata=sandbox.annotations.get("metadata", {}),
        volume_mounts=[models.VolumeMount(mount.name, mount.path) for mount in sandbox.volumes],
    )


def _pause_mode(sandbox: Sandbox) -> Literal["full", "filesystem"] | None:
    if sandbox.state != "paused":
        return None
    return "full" if sandbox.paused_memory else "filesystem"


def detail(sandbox: Sandbox, domain: str | None) -> models.SandboxDetail:
    """Of GET /sandboxes/{id}."""
    auto_resume = bool(sandbox.annotations.get("auto_resume"))
    return models.SandboxDetail(
        **msgspec.structs.asdict(listed(sandbox)),
        envd_access_token=token(sandbox),
        allow_internet_access=sandbox.internet,
        domain=domain,
        pause_mode=_pause_mode(sandbox),
        network=shown(sandbox),
        lifecycle=models.Lifecycle(auto_resume, "kill" if sandbox.on_timeout == "kill" else "pause"),
    )
