"""Volumes as Hyperbrowser's clients create, find, list, mount and delete them."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web

from sandpty import config
from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.dialects.hyperbrowser import models
from sandpty.server.dialects.hyperbrowser.errors import json_response
from sandpty.server.dialects.hyperbrowser.images import page_of
from sandpty.server.dialects.hyperbrowser.requests import read_json
from sandpty.wire.verbs import Volume, VolumeMount


def mounts(asked: Mapping[str, models.Mount] | None) -> tuple[VolumeMount, ...]:
    """What `mounts` of a create asks for, by path."""
    return tuple(
        VolumeMount(volume=mount.id, path=path, read_only=mount.type == "ro") for path, mount in (asked or {}).items()
    )


def _volume(volume: Volume) -> models.Volume:
    return models.Volume(id=volume.id, name=volume.name, size=volume.size_bytes)


class Volumes:
    """The handlers of /volume. A volume is named by its id or its name; one that is mounted cannot be deleted (409)."""

    def __init__(self, context: Context) -> None:
        self._volumes = context.registry.volumes

    async def create(self, request: web.Request, principal: Principal) -> web.StreamResponse:
        body = await read_json(request, models.CreateVolumeBody)
        return json_response(_volume(await self._volumes.create(principal, body.name)))

    async def list(self, request: web.Request, principal: Principal) -> web.StreamResponse:
        """Newest first; `search` in name and id."""
        page, limit = page_of(request, config.HYPERBROWSER_LIST_PAGE)
        search = request.query.get("search", "").lower()
        mine = reversed(await self._volumes.list(principal))
        found = [volume for volume in mine if search in volume.name.lower() or search in volume.id]
        shown = [_volume(volume) for volume in found[(page - 1) * limit : page * limit]]
        return json_response(models.VolumeList(volumes=shown, total_count=len(found), page=page, per_page=limit))

    async def get(self, request: web.Request, principal: Principal) -> web.StreamResponse:
        return json_response(_volume(await self._volumes.find(request.match_info["volume"], principal)))

    async def delete(self, request: web.Request, principal: Principal) -> web.StreamResponse:
        volume = await self._volumes.delete(request.match_info["volume"], principal)
        return json_response(models.DeletedVolume(id=volume.id, name=volume.name))
