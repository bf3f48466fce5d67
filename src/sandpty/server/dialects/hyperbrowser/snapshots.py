"""Snapshots: a sandbox's files at one moment, from which others are launched. Memory is not kept."""

from __future__ import annotations

from typing import get_args

from aiohttp import web

from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.dialects.hyperbrowser import models
from sandpty.server.dialects.hyperbrowser.errors import bad_request, json_response, not_found
from sandpty.server.dialects.hyperbrowser.images import PUBLIC, image_id, image_name, page_of
from sandpty.server.dialects.hyperbrowser.requests import read_json
from sandpty.server.dialects.hyperbrowser.tokens import iso, running
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Snapshot


def snapshot_name(snapshot: Snapshot) -> str:
    """One without a name goes by its id."""
    return snapshot.name or snapshot.id


async def find(context: Context, principal: Principal, name: str, id_: str | None = None) -> Snapshot:
    """By name or id. Raises HyperbrowserError 404, also when `id_` is another's."""
    try:
        found = await context.registry.snapshots.find(name, principal)
    except SandptyError as error:
        if error.reason.name == "no_such_snapshot":
            raise not_found(f"Snapshot {name[:64]!r}") from error
        raise
    if id_ not in (None, found.id):
        raise not_found(f"Snapshot {name[:64]!r} with the id {(id_ or '')[:64]!r}")
    return found


class Snapshots:
    """The handlers of /snapshots and /sandbox/{id}/snapshot."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._snapshots = context.registry.snapshots

    async def create(self, request: web.Request, principal: Principal) -> web.StreamResponse:
        body = await read_json(request, models.SnapshotBody)
        sandbox = running(self._context, request.match_info["id"], principal)
        made = await self._snapshots.create(sandbox.id, principal, body.snapshot_name or "")
        image = image_name(sandbox)
        return json_response(
            models.MadeSnapshot(
                snapshot_name=snapshot_name(made),
                snapshot_id=made.id,
                namespace=principal.team_name,
                status="created",
                image_name=image,
                image_id=image_id(image),
                image_namespace=PUBLIC,
            )
        )

    async def list(self, request: web.Request, principal: Principal) -> web.StreamResponse:
        """Newest first. `status` (several), `imageName`, `search` in the name."""
        page, limit = page_of(request)
        statuses = set(request.query.getall("status", ()))
        if not statuses <= {"creating", "created", "failed"}:
            raise bad_request(f"status is one of {', '.join(get_args(models.SnapshotStatus))}")
        image, search = request.query.get("imageName"), request.query.get("search", "").lower()
        found = [
            _described(snapshot, principal)
            for snapshot in reversed(await self._snapshots.list(principal))
            if (not statuses or "created" in statuses)
            and image in (None, "", snapshot.template)
            and search in snapshot_name(snapshot).lower()
        ]
        shown = found[(page - 1) * limit : page * limit]
        return json_response(models.SnapshotList(snapshots=shown, total_count=len(found), page=page, per_page=limit))

    async def get(self, request: web.Request, principal: Principal) -> web.StreamResponse:
        snapshot = await find(self._context, principal, request.match_info["snapshot"])
        return json_response({"snapshot": _described(snapshot, principal)})

    async def delete(self, request: web.Request, principal: Principal) -> web.StreamResponse:
        """Sandboxes that were launched from it go on."""
        snapshot = await find(self._context, principal, request.match_info["snapshot"])
        await self._snapshots.delete(snapshot.id, principal)
        return json_response({"deleted": True})


def _described(snapshot: Snapshot, principal: Principal) -> models.Snapshot:
    return models.Snapshot(
        id=snapshot.id,
        snapshot_name=snapshot_name(snapshot),
        namespace=principal.team_name,
        image_namespace=PUBLIC,
        image_name=snapshot.template,
        image_id=image_id(snapshot.template),
        status="created",
        metadata={"memory": False},
        uploaded=True,
        vcpus=max(1, round(snapshot.limits.cpu_count)),
        mem_mib=snapshot.limits.memory_mb,
        disk_size_mib=snapshot.limits.disk_mb,
        created_at=iso(snapshot.created_at),
        updated_at=iso(snapshot.created_at),
    )
