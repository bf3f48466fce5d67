"""E2B's snapshots and forks: a sandbox's files, kept as a template or handed to a twin. Memory is not kept."""

from __future__ import annotations

from aiohttp import web

from sandpty import config
from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.dialects.e2b import control_models as models
from sandpty.server.dialects.e2b import listing
from sandpty.server.dialects.e2b.creating import timeout_of
from sandpty.server.dialects.e2b.errors import bad_request, http_error
from sandpty.server.dialects.e2b.guard import Row
from sandpty.server.dialects.e2b.replies import json_reply, sandbox_reply
from sandpty.server.dialects.e2b.requests import read_json
from sandpty.server.snapshots import full_name
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox, Snapshot


def _info(snapshot: Snapshot, principal: Principal) -> models.SnapshotInfo:
    """`snapshotID` is `<id>:default`, of a named one `<team>/<name>:<tag>`."""
    names = [f"{principal.team_name}/{snapshot.name}"] if snapshot.name else []
    return models.SnapshotInfo(full_name(snapshot, principal), names)


class Snapshots:
    """The handlers, one per operation."""

    def __init__(self, context: Context) -> None:
        self._snapshots = context.registry.snapshots
        self._domain = context.settings.domain

    def routes(self) -> list[Row]:
        return [
            ("POST", "/sandboxes/{id}/snapshots", self.create),
            ("POST", "/sandboxes/{id}/fork", self.fork),
            ("GET", "/snapshots", self.list),
        ]

    async def create(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, models.SnapshotBody)
        snapshot = await self._snapshots.create(request.match_info["id"], principal, body.name or "")
        return json_reply(_info(snapshot, principal), 201)

    async def list(self, request: web.Request, principal: Principal) -> web.Response:
        query = request.query
        found = await self._snapshots.list(principal, query.get("sandboxID", ""), query.get("name", ""))
        places = [(listing.Page.at(snapshot.created_at, snapshot.id), snapshot) for snapshot in found]
        page, token = listing.newest_first(places, query.get("limit"), query.get("nextToken"))
        headers = {} if token is None else {"X-Next-Token": token}
        return json_reply([_info(snapshot, principal) for snapshot in page], headers=headers)

    async def fork(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, models.ForkBody)
        count = 1 if body.count is None else body.count
        if not 1 <= count <= config.FORK_MAX:
            raise bad_request(f"count must be from 1 to {config.FORK_MAX}, not {count}")
        timeout_s = timeout_of(body.timeout, config.SANDBOX_TIMEOUT_V1_S)
        forks = await self._snapshots.fork(request.match_info["id"], principal, count=count, timeout_s=timeout_s)
        return json_reply([self._result(fork) for fork in forks], 201)

    def _result(self, fork: Sandbox | SandptyError) -> models.ForkResult:
        if isinstance(fork, Sandbox):
            return models.ForkResult(sandbox=sandbox_reply(fork, self._domain))
        error = http_error(fork)
        return models.ForkResult(error=models.ErrorBody(error.status, error.message))
