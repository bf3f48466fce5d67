"""Sandboxes as Hyperbrowser's clients create, find, list and stop them."""

from __future__ import annotations

import time
from typing import Any, get_args

from aiohttp import web

from sandpty import config
from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.creation import CreateSpec
from sandpty.server.dialects.hyperbrowser import models, network, volumes
from sandpty.server.dialects.hyperbrowser.errors import bad_request, json_response, not_found, unsupported
from sandpty.server.dialects.hyperbrowser.images import image_name, launch_template, page_of
from sandpty.server.dialects.hyperbrowser.ports import checked, exposed_ports
from sandpty.server.dialects.hyperbrowser.requests import number, read_json
from sandpty.server.dialects.hyperbrowser.snapshots import find
from sandpty.server.dialects.hyperbrowser.tokens import iso, origin, running, runtime_url, session
from sandpty.server.ports.policy import PortPolicy
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import EndedSandbox, Limits, Sandbox

_CLOSE_REASONS = {"killed": "user_requested", "timeout": "timeout"}


def _limits(body: models.CreateBody) -> Limits | None:
    default = Limits()
    wanted = Limits(
        cpu_count=float(body.vcpus or default.cpu_count),
        memory_mb=body.mem_mib or default.memory_mb,
        disk_mb=body.disk_size_mib or default.disk_mb,
    )
    return None if wanted == default else wanted


def _check_launch(body: models.CreateBody) -> None:
    if (body.image_name is None) == (body.snapshot_name is None):
        raise bad_request("name exactly one of imageName and snapshotName")
    if body.snapshot_name is not None and (body.vcpus or body.mem_mib or body.disk_size_mib):
        raise bad_request("a snapshot's sizes are its own: vcpus, memMiB and diskSizeMiB go with imageName")
    if body.secrets or body.vault or body.one_password:
        raise unsupported("secrets and vaults are")


class Sandboxes:
    """The handlers of /sandbox and /sandboxes."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._registry = context.registry

    # --- create, look, stop ---

    async def create(self, request: web.Request, principal: Principal) -> web.StreamResponse:
        body = await read_json(request, models.CreateBody)
        _check_launch(body)
        minutes = body.timeout_minutes or config.HYPERBROWSER_TIMEOUT_MIN
        extras: dict[str, Any] = {"minutes": minutes, "image": body.image_name}
        if body.region is not None:
            extras["region"] = body.region
        ports = PortPolicy(exposed=checked(body.exposed_ports or [])).annotations()
        internet, policy = network.policy_of(body)
        template, limits = await self._launched(body, principal)
        spec = CreateSpec(
            template=template,
            timeout_s=minutes * 60,
            internet=internet,
            network=policy,
            limits=limits,
            extras={"hyperbrowser": extras, **ports},
            volumes=volumes.mounts(body.mounts),
        )
        sandbox = await self._registry.create(spec, principal)
        return json_response(self._detail(request, sandbox, principal))

    async def _launched(self, body: models.CreateBody, principal: Principal) -> tuple[str, Limits | None]:
        """What to create from, and how big. Raises HyperbrowserError 404."""
        if body.image_name is not None:
            return await launch_template(self._context, principal, body.image_name, body.image_id), _limits(body)
        snapshot = await find(self._context, principal, body.snapshot_name or "", body.snapshot_id)
        return snapshot.id, snapshot.limits

    async def get(self, request: web.Request, principal: Principal) -> web.StreamResponse:
        """Also a new runtime token, each time. A sandbox that does not run has none."""
        sandbox_id = request.match_info["id"]
        try:
            sandbox = self._registry.get(sandbox_id, principal)
        except SandptyError:
            ended = self._registry.ended.get(sandbox_id, principal.id)
            if ended is None:
                raise not_found(f"Sandbox {sandbox_id[:64]}") from None
            return json_response(self._closed(request, ended))
        return json_response(self._detail(request, sandbox, principal))

    async def stop(self, request: web.Request, principal: Principal) -> web.StreamResponse:
        """Stopping what has stopped already is a success."""
        sandbox_id = request.match_info["id"]
        if self._registry.ended.get(sandbox_id, principal.id) is None:
            await self._registry.kill(sandbox_id, principal)
        return json_response({"success": True})

    # --- list ---

    async def list(self, request: web.Request, principal: Principal) -> web.StreamResponse:
        """Newest first. `status`, `search` (in id and image), `start` and `end` (milliseconds, of creation)."""
        page, limit = page_of(request, config.HYPERBROWSER_LIST_PAGE)
        status = request.query.get("status")
        if status is not None and status not in get_args(models.Status):
            raise bad_request(f"status is active, closed, error or close-error, not {status[:32]!r}")
        since, until = number(request, "start"), number(request, "end")
        search = request.query.get("search", "").lower()
        live = [self._listed(request, sandbox) for sandbox in self._registry.list(principal)]
        closed = [self._closed(request, ended) for ended in self._registry.ended.list(principal.id)]
        found = [
            item
            for item in sorted([*live, *closed], key=lambda item: (item.start_time, item.id), reverse=True)
            if status in (None, item.status)
            and (since is None or item.start_time >= since)
            and (until is None or item.start_time <= until)
            and (search in item.id or search in self._image_of(item.id).lower())
        ]
        shown = [_without_token(item) for item in found[(page - 1) * limit : page * limit]]
        return json_response(models.SandboxList(sandboxes=shown, total_count=len(found), page=page, per_page=limit))

    def _image_of(self, sandbox_id: str) -> str:
        try:
            return image_name(self._registry.get(sandbox_id))
        except SandptyError:
            return ""

    async def secret_process(self, request: web.Request, principal: Principal) -> web.StreamResponse:
        running(self._context, request.match_info["id"], principal)
        raise unsupported("processes with secrets are")

    # --- replies ---

    def _detail(self, request: web.Request, sandbox: Sandbox, principal: Principal) -> models.SandboxDetail:
        listed = self._listed(request, sandbox)
        if sandbox.state != "running":
            return _with_token(listed, None, None)
        given = session(self._context, sandbox, principal)
        return _with_token(listed, given.token, given.expires_at)

    def _closed(self, request: web.Request, ended: EndedSandbox) -> models.SandboxDetail:
        return _with_token(self._listed(request, ended.sandbox, ended.at), None, None)

    def _listed(self, request: web.Request, sandbox: Sandbox, ended_at: float | None = None) -> models.SandboxListed:
        extras = sandbox.annotations.get("hyperbrowser", {})
        limits = sandbox.limits
        reason = sandbox.ended
        return models.SandboxListed(
            id=sandbox.id,
            team_id=sandbox.owner,
            status="active" if ended_at is None else "error" if reason in ("failed", "host_restart") else "closed",
            created_at=iso(sandbox.started_at),
            updated_at=iso(ended_at or sandbox.started_at),
            region=extras.get("region", models.DEFAULT_REGION),
            session_url=f"{origin(request)}/v1/sandboxes/{sandbox.id}",
            duration=max(0, int((ended_at or time.time()) - sandbox.started_at)),
            runtime=models.Runtime(
                host=origin(request).partition("://")[2].partition(":")[0],
                base_url=runtime_url(request, sandbox.id),
            ),
            start_time=int(sandbox.started_at * 1000),
            end_time=None if ended_at is None else int(ended_at * 1000),
            close_reason=None if ended_at is None else _CLOSE_REASONS.get(reason or "killed", reason),
            vcpus=max(1, round(limits.cpu_count)),
            mem_mib=limits.memory_mb,
            disk_size_mib=limits.disk_mb,
            timeout_minutes=extras.get("minutes", max(1, round((sandbox.end_at - sandbox.started_at) / 60))),
            exposed_ports=exposed_ports(request, sandbox),
            network=network.shown(sandbox),
        )


def _with_token(listed: models.SandboxListed, token: str | None, expires: str | None) -> models.SandboxDetail:
    fields = {name: getattr(listed, name) for name in models.SandboxListed.__struct_fields__}
    return models.SandboxDetail(**fields, token=token, token_expires_at=expires)


def _without_token(detail: models.SandboxListed) -> models.SandboxListed:
    return models.SandboxListed(**{name: getattr(detail, name) for name in models.SandboxListed.__struct_fields__})
