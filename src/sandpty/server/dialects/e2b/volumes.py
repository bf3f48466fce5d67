"""E2B's volumes on the control plane, with the quotas of Novita's clients. Their content: volume_contents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from aiohttp import web

from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.dialects.e2b import control_models as models
from sandpty.server.dialects.e2b.errors import bad_request
from sandpty.server.dialects.e2b.guard import Row
from sandpty.server.dialects.e2b.replies import json_reply, no_content
from sandpty.server.dialects.e2b.requests import read_json
from sandpty.server.volumes import volume_token
from sandpty.wire.verbs import Volume, VolumeMount

_MB_PER_GIB = 1024


class NewVolume(msgspec.Struct, frozen=True):
    """POST /volumes. The quota is Novita's; quotas of inodes are accepted and mean nothing."""

    name: str
    quota_gib: int | None = msgspec.field(name="quotaSizeGiB", default=None)


class Quota(msgspec.Struct, frozen=True):
    """PATCH /volumes/{id}, which Novita's clients send."""

    quota_gib: int | None = msgspec.field(name="quotaSizeGiB", default=None)


def mounts(asked: Sequence[models.VolumeMount] | None) -> tuple[VolumeMount, ...]:
    """What `volumeMounts` of a create asks for."""
    return tuple(VolumeMount(volume=mount.name, path=mount.path) for mount in asked or ())


def _disk_mb(quota_gib: int | None) -> int:
    """0: nothing was said."""
    if quota_gib is not None and quota_gib < 1:
        raise bad_request("quotaSizeGiB is 1 or more")
    return (quota_gib or 0) * _MB_PER_GIB


def _listed(volume: Volume) -> dict[str, Any]:
    return {
        "volumeID": volume.id,
        "name": volume.name,
        "quotaSizeGiB": -(-volume.disk_mb // _MB_PER_GIB),
        "usedSizeBytes": volume.size_bytes,
    }


class Volumes:
    """The handlers, one per operation. A volume that a sandbox mounts cannot be deleted: 409."""

    def __init__(self, context: Context) -> None:
        self._volumes = context.registry.volumes
        self._tokens = context.tokens

    def routes(self) -> list[Row]:
        return [
            ("GET", "/volumes", self.list),
            ("POST", "/volumes", self.create),
            ("GET", "/volumes/{volume}", self.get),
            ("PATCH", "/volumes/{volume}", self.grow),
            ("DELETE", "/volumes/{volume}", self.delete),
        ]

    async def list(self, request: web.Request, principal: Principal) -> web.Response:
        return json_reply([_listed(volume) for volume in await self._volumes.list(principal)])

    async def create(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, NewVolume)
        volume = await self._volumes.create(principal, body.name, _disk_mb(body.quota_gib))
        return json_reply(self._detail(volume, principal), 201)

    async def get(self, request: web.Request, principal: Principal) -> web.Response:
        """With a new token, each time."""
        return json_reply(self._detail(await self._volumes.find(request.match_info["volume"], principal), principal))

    async def grow(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, Quota)
        volume = await self._volumes.find(request.match_info["volume"], principal)
        if disk_mb := _disk_mb(body.quota_gib):
            volume = await self._volumes.grow(volume.id, principal, disk_mb)
        return json_reply(self._detail(volume, principal))

    async def delete(self, request: web.Request, principal: Principal) -> web.Response:
        await self._volumes.delete(request.match_info["volume"], principal)
        return no_content()

    def _detail(self, volume: Volume, principal: Principal) -> dict[str, Any]:
        return {**_listed(volume), "token": volume_token(self._tokens, volume, principal)}
