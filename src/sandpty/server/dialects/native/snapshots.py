"""/v1/snapshots and forks: a sandbox's files at one moment, and sandboxes that start from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from sandpty.server.context import Context
from sandpty.server.dialects.native.answers import SANDBOX, answering, body, error_body, principal
from sandpty.server.dialects.native.models import ForkBody, SnapshotBody, sandbox_json, snapshot_json
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox


def _fork_json(fork: Sandbox | SandptyError) -> dict[str, Any]:
    return sandbox_json(fork) if isinstance(fork, Sandbox) else error_body(fork)


class Snapshots:
    """Handlers; each is one line of the table in docs/reference/protocol.md."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> Sequence[web.AbstractRouteDef]:
        return [
            web.post(SANDBOX + "/snapshots", self.create),
            web.post(SANDBOX + "/fork", self.fork),
            web.get("/v1/snapshots", self.list),
            web.delete("/v1/snapshots/{snapshot}", self.delete),
        ]

    @answering
    async def create(self, request: web.Request) -> web.Response:
        who = principal(self._context, request)
        wanted = await body(request, SnapshotBody)
        snapshots = self._context.registry.snapshots
        return web.json_response(
            snapshot_json(await snapshots.create(request.match_info["sandbox"], who, wanted.name)), status=201
        )

    @answering
    async def list(self, request: web.Request) -> web.Response:
        who = principal(self._context, request)
        sandbox_id, name = request.query.get("sandbox", ""), request.query.get("name", "")
        found = await self._context.registry.snapshots.list(who, sandbox_id, name)
        return web.json_response({"snapshots": [snapshot_json(snapshot) for snapshot in found]})

    @answering
    async def delete(self, request: web.Request) -> web.Response:
        who = principal(self._context, request)
        await self._context.registry.snapshots.delete(request.match_info["snapshot"], who)
        return web.Response(status=204)

    @answering
    async def fork(self, request: web.Request) -> web.Response:
        who = principal(self._context, request)
        wanted = await body(request, ForkBody)
        forks = await self._context.registry.snapshots.fork(
            request.match_info["sandbox"], who, count=wanted.count, timeout_s=wanted.timeout_s
        )
        return web.json_response({"forks": [_fork_json(fork) for fork in forks]}, status=201)
