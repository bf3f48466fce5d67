"""E2B's questions about sandboxes and changes to them: info, lists, kill, timeout, refresh, pause."""

from __future__ import annotations

import asyncio

from aiohttp import web

from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.deadline import end_at
from sandpty.server.dialects.e2b import control_models as models
from sandpty.server.dialects.e2b import listing
from sandpty.server.dialects.e2b.creating import timeout_of
from sandpty.server.dialects.e2b.errors import HttpError
from sandpty.server.dialects.e2b.guard import Row
from sandpty.server.dialects.e2b.replies import detail, json_reply, listed, no_content
from sandpty.server.dialects.e2b.requests import read_json
from sandpty.terminal import control
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox

REFRESH_MIN_S = 15
GUEST_ANSWER_S = 5.0


class Sandboxes:
    """The handlers, one per operation."""

    def __init__(self, context: Context) -> None:
        self._registry = context.registry
        self._domain = context.settings.domain

    def routes(self) -> list[Row]:
        return [
            ("GET", "/v2/sandboxes", self.list_v2),
            ("GET", "/sandboxes", self.list_v1),
            ("GET", "/sandboxes/{id}", self.info),
            ("DELETE", "/sandboxes/{id}", self.kill),
            ("POST", "/sandboxes/{id}/timeout", self.set_timeout),
            ("POST", "/sandboxes/{id}/refreshes", self.refresh),
            ("POST", "/sandboxes/{id}/pause", self.pause),
        ]

    # --- questions -------------------------------------------------------------------------------------------------

    async def info(self, request: web.Request, principal: Principal) -> web.Response:
        return json_reply(detail(self._registry.get(request.match_info["id"], principal), self._domain))

    async def list_v2(self, request: web.Request, principal: Principal) -> web.Response:
        raw = {key: ",".join(request.query.getall(key)) for key in request.query}
        page, token = listing.select(self._registry.list(principal), listing.Query.parse(raw))
        headers = {} if token is None else {"X-Next-Token": token}
        return json_reply([listed(sandbox) for sandbox in page], headers=headers)

    async def list_v1(self, request: web.Request, principal: Principal) -> web.Response:
        metadata = listing.parse_metadata(request.query.get("metadata", ""))
        query = listing.Query(metadata=metadata, states=frozenset(("running",)))
        return json_reply([listed(item) for item in self._registry.list(principal) if query.matches(item)])

    # --- changes ---------------------------------------------------------------------------------------------------

    async def kill(self, request: web.Request, principal: Principal) -> web.Response:
        await self._registry.kill(request.match_info["id"], principal)
        return no_content()

    async def set_timeout(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, models.TimeoutBody)
        ends = end_at(timeout_of(body.timeout, 0))  # 0 is legal: it ends, or pauses, at once
        await self._registry.set_deadline(request.match_info["id"], principal, ends)
        return no_content()

    async def refresh(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, models.RefreshBody)
        ends = end_at(max(REFRESH_MIN_S, timeout_of(body.duration, REFRESH_MIN_S)))
        sandbox = self._registry.get(request.match_info["id"], principal)
        if ends > sandbox.end_at:
            await self._registry.set_deadline(sandbox.id, principal, ends)
        return no_content()

    async def pause(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, models.PauseBody)
        sandbox_id = request.match_info["id"]
        if body.require_healthy_guest:
            await _check_guest(self._registry.running(sandbox_id, principal))
        try:
            await self._registry.pause(sandbox_id, principal, memory=body.memory is not False)
        except SandptyError as error:
            if error.reason.name == "already_paused":
                text = f"Error pausing sandbox - sandbox '{sandbox_id[:64]}' is already paused"
                raise HttpError(409, text) from error
            raise
        return no_content()


async def _check_guest(sandbox: Sandbox) -> None:
    """Raises HttpError 409 with the word that the SDKs know, unless the sandbox's agent answers."""
    try:
        async with asyncio.timeout(GUEST_ANSWER_S):
            await control.list_processes(sandbox.socket)
    except (SandptyError, TimeoutError) as error:
        code = "sandbox_snapshot_guest_agent_unresponsive"
        raise HttpError(409, "the sandbox does not answer: it is not paused", error_code=code) from error
