"""/v1/sandboxes: what can be done with a sandbox."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from aiohttp import web

from sandpty.server.context import Context
from sandpty.server.creation import CreateSpec
from sandpty.server.deadline import end_at
from sandpty.server.dialects.native.answers import SANDBOX, answering, body, principal
from sandpty.server.dialects.native.models import (
    CreateBody,
    NetworkBody,
    PauseBody,
    ResumeBody,
    TimeoutBody,
    sandbox_json,
    template_json,
)
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import VolumeMount


def create_spec(wanted: CreateBody) -> CreateSpec:
    return CreateSpec(
        template=wanted.template,
        timeout_s=wanted.timeout_s,
        on_timeout=wanted.on_timeout,
        metadata=wanted.metadata,
        env=wanted.env,
        internet=wanted.internet,
        network=wanted.network,
        limits=wanted.limits,
        auto_resume=wanted.auto_resume,
        first_shell="native",
        volumes=tuple(
            VolumeMount(volume=mount.volume, path=mount.path, read_only=mount.read_only) for mount in wanted.volumes
        ),
    )


class Sandboxes:
    """Handlers; each is one line of the table in docs/reference/protocol.md."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._registry = context.registry

    def routes(self) -> Sequence[web.AbstractRouteDef]:
        return [
            web.get("/v1/host", self.host),
            web.post("/v1/sandboxes", self.create),
            web.get("/v1/sandboxes", self.list),
            web.get(SANDBOX, self.get),
            web.delete(SANDBOX, self.kill),
            web.post(SANDBOX + "/pause", self.pause),
            web.post(SANDBOX + "/resume", self.resume),
            web.put(SANDBOX + "/deadline", self.set_deadline),
            web.put(SANDBOX + "/network", self.set_network),
        ]

    @answering
    async def host(self, request: web.Request) -> web.Response:
        templates = await self._registry.templates.list(principal(self._context, request))
        host = msgspec.to_builtins(self._registry.host)
        return web.json_response({**host, "templates": list(map(template_json, templates))})

    @answering
    async def create(self, request: web.Request) -> web.Response:
        who = principal(self._context, request)
        wanted = await body(request, CreateBody)
        key = request.headers.get("Idempotency-Key", "")
        return web.json_response(sandbox_json(await self._registry.create(create_spec(wanted), who, key)), status=201)

    @answering
    async def list(self, request: web.Request) -> web.Response:
        mine = self._registry.list(principal(self._context, request))
        return web.json_response({"sandboxes": [sandbox_json(sandbox) for sandbox in mine]})

    @answering
    async def get(self, request: web.Request) -> web.Response:
        who = principal(self._context, request)
        return web.json_response(sandbox_json(self._registry.get(request.match_info["sandbox"], who)))

    @answering
    async def kill(self, request: web.Request) -> web.Response:
        who = principal(self._context, request)
        await self._registry.kill(request.match_info["sandbox"], who)
        return web.Response(status=204)

    @answering
    async def pause(self, request: web.Request) -> web.Response:
        who = principal(self._context, request)
        wanted = await body(request, PauseBody)
        return web.json_response(
            sandbox_json(await self._registry.pause(request.match_info["sandbox"], who, wanted.memory))
        )

    @answering
    async def resume(self, request: web.Request) -> web.Response:
        who = principal(self._context, request)
        wanted = await body(request, ResumeBody)
        ends = end_at(wanted.timeout_s)
        sandbox = await self._registry.resume(request.match_info["sandbox"], who, ends, memory=wanted.memory)
        return web.json_response(sandbox_json(sandbox))

    @answering
    async def set_deadline(self, request: web.Request) -> web.Response:
        who = principal(self._context, request)
        wanted = await body(request, TimeoutBody)
        ends = end_at(wanted.timeout_s)
        sandbox = await self._registry.set_deadline(request.match_info["sandbox"], who, ends)
        return web.json_response(sandbox_json(sandbox))

    @answering
    async def set_network(self, request: web.Request) -> web.Response:
        who = principal(self._context, request)
        wanted = await body(request, NetworkBody)
        sandbox_id = request.match_info["sandbox"]
        changed = await self._registry.set_network(sandbox_id, who, wanted.internet, wanted.network)
        return web.json_response(sandbox_json(changed))

    @answering
    async def unknown(self, request: web.Request) -> web.Response:
        principal(self._context, request)
        raise SandptyError("bad_request", f"there is no {request.method} {request.path[:200]} in this API")
