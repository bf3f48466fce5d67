"""E2B's control plane: sandboxes are created, connected to, listed, timed, paused and killed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec
from aiohttp import web

from sandpty import config
from sandpty.server.auth import Principal, request_key
from sandpty.server.context import Context
from sandpty.server.dialects.e2b import listing, models
from sandpty.server.dialects.e2b.errors import (
    HttpError,
    bad_request,
    http_error,
    sandbox_unknown,
    unexpected_http,
)
from sandpty.server.dialects.e2b.listing import rfc3339
from sandpty.server.dialects.e2b.requests import is_secure, read_json
from sandpty.server.registry import CreateSpec, end_at
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox

ENVD_VERSION = "0.6.13"  # from 0.6.7 on the SDKs use everything that this dialect serves
CLIENT_ID = "sandpty"
REFRESH_MIN_S = 15
Handler = Callable[[web.Request, Principal], Awaitable[web.Response]]


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    body = msgspec.json.encode(value)
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


def _no_content() -> web.Response:
    return web.Response(status=204)


def _timeout_s(given: int | None, default: int, least: int = 0) -> int:
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


class ControlPlane:
    """The handlers, one per operation; `routes` says where they are."""

    def __init__(self, context: Context) -> None:
        self._registry = context.registry
        self._auth = context.auth
        self._domain = context.settings.domain

    def routes(self) -> list[web.RouteDef]:
        table: list[tuple[str, str, Handler]] = [
            ("POST", "/v2/sandboxes", self.create_v2),
            ("POST", "/sandboxes", self.create_v1),
            ("GET", "/v2/sandboxes", self.list_v2),
            ("GET", "/sandboxes", self.list_v1),
            ("POST", "/v2/sandboxes/{id}/connect", self.connect_v2),
            ("POST", "/sandboxes/{id}/connect", self.connect_v1),
            ("POST", "/sandboxes/{id}/resume", self.resume),
            ("GET", "/sandboxes/{id}", self.info),
            ("DELETE", "/sandboxes/{id}", self.kill),
            ("POST", "/sandboxes/{id}/timeout", self.set_timeout),
            ("POST", "/sandboxes/{id}/refreshes", self.refresh),
            ("POST", "/sandboxes/{id}/pause", self.pause),
        ]
        # What this dialect does not serve (yet) still answers in the shape that the SDKs can parse.
        table += [
            ("*", f"/{family}{{tail:.*}}", self.unknown)
            for family in ("v2/", "v3/", "sandboxes/", "snapshots", "templates", "teams", "volumes", "secrets")
        ]
        return [web.route(method, path, self._guarded(handler)) for method, path, handler in table]

    def _guarded(self, handler: Handler) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            try:
                return await handler(request, self._auth.principal(request_key(request)))
            except HttpError as error:
                return error.response()
            except SandptyError as error:
                if error.reason.name == "no_such_sandbox":
                    return sandbox_unknown(request.match_info.get("id", "")).response()
                return http_error(error).response()
            except Exception as error:
                return unexpected_http(error).response()

        return handle

    # --- create, connect -------------------------------------------------------------------------------------------

    async def create_v2(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, models.CreateBody)
        return await self._create(body, principal, config.SANDBOX_TIMEOUT_S, secure=True)

    async def create_v1(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, models.CreateBody)
        return await self._create(body, principal, config.SANDBOX_TIMEOUT_V1_S, secure=body.secure)

    async def _create(
        self, body: models.CreateBody, principal: Principal, default_s: int, *, secure: bool
    ) -> web.Response:
        extras = {"secure": secure, "auto_resume": bool(body.auto_resume and body.auto_resume.enabled)}
        spec = CreateSpec(
            template=body.template_id,
            timeout_s=_timeout_s(body.timeout, default_s, least=1),
            on_timeout=_on_timeout(body),
            metadata=body.metadata or {},
            env=body.env_vars or {},
            internet=body.allow_internet_access is not False,
            extras={"e2b": extras},
        )
        try:
            sandbox = await self._registry.create(spec, principal)
        except SandptyError as error:
            if error.reason.name == "no_such_template":
                raise HttpError(404, f"template '{body.template_id[:64]}' not found") from error
            raise
        return _json(self._reply(sandbox), 201)

    async def connect_v2(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, models.ConnectBody)
        return await self._connect(request, principal, _timeout_s(body.timeout, config.SANDBOX_TIMEOUT_S))

    async def connect_v1(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, models.ConnectBody)
        if body.timeout is None:
            raise bad_request("timeout is required")
        return await self._connect(request, principal, _timeout_s(body.timeout, 0))

    async def _connect(self, request: web.Request, principal: Principal, timeout_s: int) -> web.Response:
        sandbox = self._registry.get(request.match_info["id"], principal)
        ends = end_at(timeout_s)
        if sandbox.state == "paused":
            return _json(self._reply(await self._registry.resume(sandbox.id, principal, ends)), 201)
        if ends > sandbox.end_at:  # a connect never shortens a life
            sandbox = await self._registry.set_deadline(sandbox.id, principal, ends)
        return _json(self._reply(sandbox))

    async def resume(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, models.ResumeBody)
        ends = end_at(_timeout_s(body.timeout, config.SANDBOX_TIMEOUT_V1_S))
        sandbox = self._registry.get(request.match_info["id"], principal)
        if sandbox.state != "paused":
            raise HttpError(409, f"Sandbox '{sandbox.id}' is already running")
        return _json(self._reply(await self._registry.resume(sandbox.id, principal, ends)), 201)

    # --- questions -------------------------------------------------------------------------------------------------

    async def info(self, request: web.Request, principal: Principal) -> web.Response:
        return _json(self._detail(self._registry.get(request.match_info["id"], principal)))

    async def list_v2(self, request: web.Request, principal: Principal) -> web.Response:
        raw = {key: ",".join(request.query.getall(key)) for key in request.query}
        page, token = listing.select(self._registry.list(principal), listing.Query.parse(raw))
        headers = {} if token is None else {"X-Next-Token": token}
        return _json([_listed(sandbox) for sandbox in page], headers=headers)

    async def list_v1(self, request: web.Request, principal: Principal) -> web.Response:
        metadata = listing.parse_metadata(request.query.get("metadata", ""))
        query = listing.Query(metadata=metadata, states=frozenset(("running",)))
        return _json([_listed(item) for item in self._registry.list(principal) if query.matches(item)])

    # --- changes ---------------------------------------------------------------------------------------------------

    async def kill(self, request: web.Request, principal: Principal) -> web.Response:
        await self._registry.kill(request.match_info["id"], principal)
        return _no_content()

    async def set_timeout(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, models.TimeoutBody)
        ends = end_at(_timeout_s(body.timeout, 0))  # 0 is legal: it ends, or pauses, at once
        await self._registry.set_deadline(request.match_info["id"], principal, ends)
        return _no_content()

    async def refresh(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, models.RefreshBody)
        ends = end_at(max(REFRESH_MIN_S, _timeout_s(body.duration, REFRESH_MIN_S)))
        sandbox = self._registry.get(request.match_info["id"], principal)
        if ends > sandbox.end_at:
            await self._registry.set_deadline(sandbox.id, principal, ends)
        return _no_content()

    async def pause(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, models.PauseBody)
        sandbox_id = request.match_info["id"]
        try:
            await self._registry.pause(sandbox_id, principal, memory=body.memory is not False)
        except SandptyError as error:
            if error.reason.name == "already_paused":
                text = f"Error pausing sandbox - sandbox '{sandbox_id[:64]}' is already paused"
                raise HttpError(409, text) from error
            raise
        return _no_content()

    async def unknown(self, request: web.Request, principal: Principal) -> web.Response:
        raise HttpError(404, f"{request.method} {request.path[:200]} is not part of the API that this server speaks")

    # --- replies ---------------------------------------------------------------------------------------------------

    def _reply(self, sandbox: Sandbox) -> models.SandboxReply:
        return models.SandboxReply(
            template_id=sandbox.template,
            sandbox_id=sandbox.id,
            client_id=CLIENT_ID,
            envd_version=ENVD_VERSION,
            alias=sandbox.annotations.get("template"),
            envd_access_token=_token(sandbox),
            traffic_access_token=None,
            domain=self._domain,
        )

    def _detail(self, sandbox: Sandbox) -> models.SandboxDetail:
        auto_resume = bool(sandbox.annotations.get("e2b", {}).get("auto_resume"))
        return models.SandboxDetail(
            **msgspec.structs.asdict(_listed(sandbox)),
            envd_access_token=_token(sandbox),
            allow_internet_access=sandbox.internet,
            domain=self._domain,
            lifecycle=models.Lifecycle(auto_resume, "kill" if sandbox.on_timeout == "kill" else "pause"),
        )


def _token(sandbox: Sandbox) -> str | None:
    return sandbox.annotations.get("token") if is_secure(sandbox) else None


def _listed(sandbox: Sandbox) -> models.ListedSandbox:
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
    )
