"""/v1/volumes: directories that outlive sandboxes."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from sandpty.server import volumes
from sandpty.server.context import Context
from sandpty.server.dialects.native.answers import answering, body, principal
from sandpty.server.dialects.native.models import VolumeBody, volume_json

_VOLUME = "/v1/volumes/{volume}"


class Volumes:
    """Handlers; each is one line of the table in docs/reference/protocol.md."""

    def __init__(self, context: Context) -> None:
        self._context = context

    @property
    def _volumes(self) -> volumes.Volumes:
        return self._context.registry.volumes

    def routes(self) -> Sequence[web.AbstractRouteDef]:
        return [
            web.post("/v1/volumes", self.create),
            web.get("/v1/volumes", self.list),
            web.get(_VOLUME, self.get),
            web.delete(_VOLUME, self.delete),
        ]

    @answering
    async def create(self, request: web.Request) -> web.Response:
        who = principal(self._context, request)
        wanted = await body(request, VolumeBody)
        return web.json_response(volume_json(await self._volumes.create(who, wanted.name, wanted.disk_mb)), status=201)

    @answering
    async def list(self, request: web.Request) -> web.Response:
        found = await self._volumes.list(principal(self._context, request))
        return web.json_response({"volumes": [volume_json(volume) for volume in found]})

    @answering
    async def get(self, request: web.Request) -> web.Response:
        who = principal(self._context, request)
        return web.json_response(volume_json(await self._volumes.find(request.match_info["volume"], who)))

    @answering
    async def delete(self, request: web.Request) -> web.Response:
        who = principal(self._context, request)
        await self._volumes.delete(request.match_info["volume"], who)
        return web.Response(status=204)
