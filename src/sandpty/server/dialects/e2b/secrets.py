"""E2B's secrets: values go in, metadata comes out. What they are for: `rules` of network.py."""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.dialects.e2b.guard import Row
from sandpty.server.dialects.e2b.listing import Page, newest_first, rfc3339
from sandpty.server.dialects.e2b.replies import json_reply, no_content
from sandpty.server.dialects.e2b.requests import read_json
from sandpty.wire.secrets import Secret


class NewSecret(msgspec.Struct, frozen=True):
    """POST /secrets."""

    name: str
    value: str
    metadata: dict[str, str] | None = None


class SecretUpdate(msgspec.Struct, frozen=True):
    """POST /secrets/{id or name}. Metadata that is left out stays."""

    value: str
    metadata: dict[str, str] | None = None


def _shown(secret: Secret) -> dict[str, Any]:
    return {
        "secretID": secret.id,
        "name": secret.name,
        "currentVersion": secret.version,
        "metadata": secret.metadata,
        "createdAt": rfc3339(secret.created_at),
        "updatedAt": rfc3339(secret.updated_at),
    }


class Secrets:
    """The handlers, one per operation."""

    def __init__(self, context: Context) -> None:
        self._secrets = context.registry.secrets

    def routes(self) -> list[Row]:
        return [
            ("GET", "/secrets", self.list),
            ("POST", "/secrets", self.create),
            ("GET", "/secrets/{secret}", self.get),
            ("POST", "/secrets/{secret}", self.update),
            ("DELETE", "/secrets/{secret}", self.delete),
        ]

    async def list(self, request: web.Request, principal: Principal) -> web.Response:
        places = [(Page.at(each.created_at, each.id), each) for each in await self._secrets.list(principal)]
        page, token = newest_first(places, request.query.get("limit"), request.query.get("nextToken"))
        return json_reply([_shown(each) for each in page], headers={"X-Next-Token": token} if token else None)

    async def create(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, NewSecret)
        return json_reply(_shown(await self._secrets.create(principal, body.name, body.value, body.metadata)), 201)

    async def get(self, request: web.Request, principal: Principal) -> web.Response:
        return json_reply(_shown(await self._secrets.find(request.match_info["secret"], principal)))

    async def update(self, request: web.Request, principal: Principal) -> web.Response:
        body = await read_json(request, SecretUpdate)
        reference = request.match_info["secret"]
        return json_reply(_shown(await self._secrets.update(principal, reference, body.value, body.metadata)))

    async def delete(self, request: web.Request, principal: Principal) -> web.Response:
        await self._secrets.delete(request.match_info["secret"], principal)
        return no_content()
