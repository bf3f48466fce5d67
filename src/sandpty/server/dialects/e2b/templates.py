"""E2B's questions about templates: the list that its command line shows, and whether a name is taken.

Building templates through this API is not served.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.dialects.e2b.errors import HttpError
from sandpty.server.dialects.e2b.guard import Row
from sandpty.server.dialects.e2b.listing import rfc3339
from sandpty.server.dialects.e2b.replies import ENVD_VERSION, json_reply
from sandpty.wire.templates import Template
from sandpty.wire.verbs import Limits

_BUILD_STATUS = {"ready": "ready", "building": "building", "failed": "error"}


def _listed(template: Template) -> dict[str, Any]:
    """All members are required by the generated clients."""
    limits = Limits()
    created = rfc3339(template.created_at)
    names = [template.name, *template.aliases]
    return {
        "templateID": template.name,
        "buildID": template.name,
        "cpuCount": max(1, round(limits.cpu_count)),
        "memoryMB": limits.memory_mb,
        "diskSizeMB": limits.disk_mb,
        "public": True,
        "createdAt": created,
        "updatedAt": created,
        "createdBy": None,
        "lastSpawnedAt": None,
        "spawnCount": 0,
        "buildCount": 1,
        "envdVersion": ENVD_VERSION,
        "aliases": names,
        "names": names,
        "buildStatus": _BUILD_STATUS[template.state],
    }


class Templates:
    """The handlers."""

    def __init__(self, context: Context) -> None:
        self._registry = context.registry

    def routes(self) -> list[Row]:
        return [
            ("GET", "/templates", self.list),
            ("GET", "/templates/aliases/{alias}", self.alias),
        ]

    async def list(self, request: web.Request, principal: Principal) -> web.Response:
        """This host's: they are everybody's."""
        return json_reply([_listed(template) for template in await self._registry.templates.list(principal)])

    async def alias(self, request: web.Request, principal: Principal) -> web.Response:
        """200 when the name is a template's, else 404."""
        alias = request.match_info["alias"]
        for template in await self._registry.templates.list(principal):
            if alias in (template.name, *template.aliases):
                return json_reply({"templateID": template.name, "public": True})
        raise HttpError(404, f"template '{alias[:64]}' not found")
