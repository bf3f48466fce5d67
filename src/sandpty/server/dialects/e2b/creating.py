"""E2B's create, connect and resume: the three ways to a running sandbox."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from aiohttp import web

from sandpty import config
from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.creation import CreateSpec
from sandpty.server.deadline import end_at
from sandpty.server.dialects.e2b import control_models as models
from sandpty.server.dialects.e2b import network, volumes
from sandpty.server.dialects.e2b.errors import HttpError, bad_request
from sandpty.server.dialects.e2b.guard import Row
from sandpty.server.dialects.e2b.replies import json_reply, sandbox_reply
from sandpty.server.dialects.e2b.requests import is_novita, read_json
from sandpty.server.ports.policy import new_policy
from sandpty.wire.errors import SandptyError

CONNECT_ATTEMPTS = 3
CONNECT_AGAIN_S = 0.05  # until the word of what happened in the meantime is here


def timeout_of(given: int | None, default: int, least: int = 0) -> int:
    """Seconds, checked. Raises HttpError 400."""
    timeout_s = default if given is None else given
    if timeout_s < least:
        raise bad_request(f"timeout must be at least {least} s, not {timeout_s}")
    if timeout_s > config.TIMEOUT_MAX_S:
        raise bad_request(f"timeout cannot be greater than {config.TIMEOUT_MAX_S // 3600} hours")
    return timeout_s


def _on_timeout(body: models.CreateBody) -> Literal["kill", "pause", "pause_disk"]:
    if body.auto_pause_memory is False:
        if not body.auto_pause:
            raise bad_request("autoPauseMemory false needs autoPause")
        if body.auto_resume is not None and body.auto_resume.enabled:
            raise bad_request("autoResume needs the memory kept: it cannot go with autoPauseMemory false")
        return "pause_disk"
    return "pause" if body.auto_pause else "kill"


def _ports(network: models.NetworkConfig | None) -> dict[str, Any]:
    """Raises SandptyError bad_argument."""
    if network is None:
        return {}
    return new_policy(
        private=network.allow_public_traffic is False,
        mask_host=network.mask_request_host or "",
        https_ports=network.https_ports or (),
    ).annotations()


class Creating:
    """The handlers, one per operation."""

    def __init__(self, context: Context) -> None:
        self._registry = context.registry
        self._domain = context.settings.domain

    def routes(self) -> list[Row]:
        return [
            ("POST", "/v2/sandboxes", self.create_v2),
            ("POST", "/sandboxes", self.create_v1),
            ("POST", "/v2/sandboxes/{id}/connect", self.connect_v2),
            ("POST", "/sandboxes/{id}/connect", self.connect_v1),
            ("POST", "/sandboxes/{id}/resume", self.resume),
        ]

    async def create_v2(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, models.CreateBody)
        return await self._create(request, body, principal, config.SANDBOX_TIMEOUT_S, secure=True)

    async def create_v1(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, models.CreateBody)
        # Novita's Python SDK names a sandbox by nothing but its token after connect(): it always needs one.
        secure = body.secure or is_novita(request)
        return await self._create(request, body, principal, config.SANDBOX_TIMEOUT_V1_S, secure=secure)

    async def _create(
        self, request: web.Request, body: models.CreateBody, principal: Principal, default_s: int, *, secure: bool
    ) -> web.Response:
        internet = body.allow_internet_access is not False
        network.check_identity(body.iam)
        spec = CreateSpec(
            template=body.template_id,
            timeout_s=timeout_of(body.timeout, default_s, least=1),
            on_timeout=_on_timeout(body),
            metadata=body.metadata or {},
            env=body.env_vars or {},
            internet=internet,
            network=network.policy_of(body.network, internet),
            auto_resume=bool(body.auto_resume and body.auto_resume.enabled),
            extras={"e2b": {"secure": secure}, **_ports(body.network)},
            first_shell="e2b",
            volumes=volumes.mounts(body.volume_mounts),
        )
        try:
            sandbox = await self._registry.create(spec, principal, request.headers.get("Idempotency-Key", ""))
        except SandptyError as error:
            if error.reason.name == "no_such_template":
                raise HttpError(404, f"template '{body.template_id[:64]}' not found") from error
            raise
        return json_reply(sandbox_reply(sandbox, self._domain), 201)

    async def connect_v2(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, models.ConnectBody)
        return await self._connect(request, principal, timeout_of(body.timeout, config.SANDBOX_TIMEOUT_S), body.memory)

    async def connect_v1(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, models.ConnectBody)
        if body.timeout is None:
            raise bad_request("timeout is required")
        return await self._connect(request, principal, timeout_of(body.timeout, 0), body.memory)

    async def _connect(
        self, request: web.Request, principal: Principal, timeout_s: int, memory: bool | None
    ) -> web.Response:
        """201 when it was paused. Somebody else may pause or resume it at the same time: then once more."""
        for _ in range(CONNECT_ATTEMPTS):
            sandbox = self._registry.get(request.match_info["id"], principal)
            ends = end_at(timeout_s)
            try:
                if sandbox.state == "paused":
                    sandbox = await self._registry.resume(sandbox.id, principal, ends, memory=memory is not False)
                    return json_reply(sandbox_reply(sandbox, self._domain), 201)
                if ends > sandbox.end_at:  # a connect never shortens a life
                    sandbox = await self._registry.set_deadline(sandbox.id, principal, ends)
                return json_reply(sandbox_reply(sandbox, self._domain))
            except SandptyError as error:
                if error.reason.name not in ("conflict", "sandbox_paused"):
                    raise
                await asyncio.sleep(CONNECT_AGAIN_S)
        raise HttpError(409, f"Sandbox '{request.match_info['id'][:64]}' is being paused or resumed")

    async def resume(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, models.ResumeBody)
        ends = end_at(timeout_of(body.timeout, config.SANDBOX_TIMEOUT_V1_S))
        sandbox = self._registry.get(request.match_info["id"], principal)
        if sandbox.state != "paused":
            raise HttpError(409, f"Sandbox '{sandbox.id}' is already running")
        resumed = await self._registry.resume(sandbox.id, principal, ends, memory=body.memory is not False)
        return json_reply(sandbox_reply(resumed, self._domain), 201)
