"""E2B's control plane, put together: one module per subject, each with its own `routes()`."""

from __future__ import annotations

from aiohttp import web

from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.dialects.e2b.creating import Creating
from sandpty.server.dialects.e2b.errors import HttpError
from sandpty.server.dialects.e2b.guard import Row, guarded
from sandpty.server.dialects.e2b.logs import Logs
from sandpty.server.dialects.e2b.measures import Measures
from sandpty.server.dialects.e2b.network import Network
from sandpty.server.dialects.e2b.novita import Novita
from sandpty.server.dialects.e2b.sandboxes import Sandboxes
from sandpty.server.dialects.e2b.secrets import Secrets
from sandpty.server.dialects.e2b.snapshots import Snapshots
from sandpty.server.dialects.e2b.tags import Tags
from sandpty.server.dialects.e2b.teams import teams
from sandpty.server.dialects.e2b.template_builds import UPLOADS, TemplateBuilds
from sandpty.server.dialects.e2b.templates import Templates
from sandpty.server.dialects.e2b.volumes import Volumes

_FAMILIES = ("v2/", "v3/", "sandboxes/", "snapshots", "templates", "default-templates", "teams", "secrets")


def routes(context: Context) -> list[web.RouteDef]:
    """The table. The first row that fits wins: fixed paths such as /sandboxes/metrics go before /sandboxes/{id}."""
    builds = TemplateBuilds(context)
    rows: list[Row] = [
        *Novita(context).routes(),
        *Measures(context).routes(),
        *Logs(context).routes(),
        *Creating(context).routes(),
        *Sandboxes(context).routes(),
        *Snapshots(context).routes(),
        *builds.routes(),
        *Tags(context).routes(),
        *Templates(context).routes(),
        *Network(context).routes(),
        *Secrets(context).routes(),
        *Volumes(context).routes(),
        ("GET", "/teams", teams),
        # What this dialect does not serve (yet) still answers in the shape that the SDKs can parse.
        *(("*", f"/{family}{{tail:.*}}", _unknown) for family in _FAMILIES),
    ]
    return [web.put(UPLOADS, builds.upload), *guarded(context, rows)]


async def _unknown(request: web.Request, principal: Principal) -> web.StreamResponse:
    raise HttpError(404, f"{request.method} {request.path[:200]} is not part of the API that this server speaks")
