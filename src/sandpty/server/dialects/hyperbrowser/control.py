"""Hyperbrowser's control plane as a table: everything below /api, with the API key."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeAlias

from aiohttp import web

from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.dialects.hyperbrowser.errors import (
    Handler,
    HyperbrowserError,
    answering,
    unsupported,
)
from sandpty.server.dialects.hyperbrowser.images import Images
from sandpty.server.dialects.hyperbrowser.network import Networks
from sandpty.server.dialects.hyperbrowser.ports import Ports
from sandpty.server.dialects.hyperbrowser.sandboxes import Sandboxes
from sandpty.server.dialects.hyperbrowser.snapshots import Snapshots
from sandpty.server.dialects.hyperbrowser.volumes import Volumes

ControlHandler: TypeAlias = Callable[[web.Request, Principal], Awaitable[web.StreamResponse]]
# The SDKs put `/api` behind the base URL as it is: one that ends in `/` or in `/api` is meant well.
_PREFIXES = ("/api", "//api", "/api/api")


def routes(context: Context) -> list[web.RouteDef]:
    volumes = Volumes(context)
    sandboxes, images, snapshots, ports = Sandboxes(context), Images(context), Snapshots(context), Ports(context)
    table: list[tuple[str, str, ControlHandler]] = [
        ("POST", "/sandbox", sandboxes.create),
        ("GET", "/sandboxes", sandboxes.list),
        ("GET", "/sandbox/{id}", sandboxes.get),
        ("PUT", "/sandbox/{id}/stop", sandboxes.stop),
        ("PUT", "/sandbox/{id}/network", Networks(context).update),
        ("POST", "/sandbox/{id}/expose", ports.expose),
        ("POST", "/sandbox/{id}/unexpose", ports.unexpose),
        ("POST", "/sandbox/{id}/snapshot", snapshots.create),
        ("GET", "/snapshots", snapshots.list),
        ("GET", "/snapshots/{snapshot:.+}", snapshots.get),
        ("DELETE", "/snapshots/{snapshot:.+}", snapshots.delete),
        ("POST", "/sandbox/{id}/processes", sandboxes.secret_process),
        ("GET", "/images", images.list),
        ("*", "/images/builds{tail:.*}", _builds),
        ("DELETE", "/images/{image:.+}", images.delete),
        ("POST", "/volume", volumes.create),
        ("GET", "/volume", volumes.list),
        ("GET", "/volume/{volume}", volumes.get),
        ("DELETE", "/volume/{volume}", volumes.delete),
        ("*", "/{family:secrets|vaults}{tail:.*}", _secrets),
        ("*", "/{tail:.*}", _unknown),
    ]
    return [
        web.route(method, prefix + path, answering(_with_key(context, handler)))
        for prefix in _PREFIXES
        for method, path, handler in table
    ]


def _with_key(context: Context, handler: ControlHandler) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return await handler(request, context.auth.authenticate(request))

    return handle


async def _builds(request: web.Request, principal: Principal) -> web.StreamResponse:
    raise unsupported("image builds are")


async def _secrets(request: web.Request, principal: Principal) -> web.StreamResponse:
    raise unsupported("secrets and vaults are")


async def _unknown(request: web.Request, principal: Principal) -> web.StreamResponse:
    what = f"{request.method} {request.path[:200]}"
    raise HyperbrowserError(404, f"{what} is not part of the API that this server speaks: not found", "not_found")
