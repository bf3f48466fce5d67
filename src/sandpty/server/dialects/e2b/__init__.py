"""E2B's API: its control plane, and the process service of every sandbox (envd's) under the same origin.

The unmodified SDKs (Python `e2b`, JavaScript `e2b`, both code interpreters) reach it with E2B_API_URL and
E2B_SANDBOX_URL set to this server. docs/reference/e2b.md has the details.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from sandpty.server.context import Context
from sandpty.server.dialects.e2b import control, files_http, process
from sandpty.server.dialects.e2b.connect import CORS_HEADERS, STREAM_TYPE, ConnectError, end_envelope
from sandpty.server.dialects.e2b.errors import HttpError, sandbox_not_found
from sandpty.server.dialects.e2b.filesystem import FilesystemService
from sandpty.server.dialects.e2b.requests import authorized_sandbox, find_sandbox, named_sandbox_id
from sandpty.server.dialects.e2b.streams import StreamService
from sandpty.server.dialects.e2b.unary import unary_failure
from sandpty.server.dialects.e2b.volume_contents import VolumeContents
from sandpty.server.dialects.e2b.watch_stream import WatchService
from sandpty.server.files.watchers import Watchers

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_PREFLIGHT_HEADERS = {
    **CORS_HEADERS,
    "Access-Control-Allow-Methods": "GET, POST, PUT, PATCH, DELETE, HEAD, OPTIONS",
    "Access-Control-Max-Age": "7200",
}


def routes(context: Context) -> list[web.AbstractRouteDef]:
    """Every route of this dialect: the control plane's, then those of the sandboxes."""
    watchers = Watchers(context.registry, context.files)
    context.stopping.append(watchers.stop)
    sandbox_routes = [
        *process.routes(context),
        *StreamService(context).routes(),
        *FilesystemService(context, watchers).routes(),
        *WatchService(context).routes(),
        *files_http.routes(context),
        web.get("/health", _health(context)),
        web.post("/{service:(?:process\\.Process|filesystem\\.Filesystem)}/{method}", _unimplemented(context)),
        web.route("*", "/files{tail:.*}", _unimplemented(context)),
        web.route("*", "/{path:(?:metrics|envs|execute|contexts)}{tail:.*}", _unimplemented(context)),
    ]
    preflights = [
        web.options("/{service:(?:process\\.Process|filesystem\\.Filesystem)}/{method}", _preflight),
        web.options("/files{tail:.*}", _preflight),
        web.options("/health", _preflight),
    ]
    cors = [web.route(route.method, route.path, _with_cors(route.handler), **route.kwargs) for route in sandbox_routes]
    return [*control.routes(context), *VolumeContents(context).routes(), *preflights, *cors]


def _with_cors(handler: Handler) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        response = await handler(request)
        if not response.prepared:
            response.headers.update(CORS_HEADERS)
        return response

    return handle


async def _preflight(request: web.Request) -> web.Response:
    asked = request.headers.get("Access-Control-Request-Headers", "*")
    return web.Response(status=204, headers={**_PREFLIGHT_HEADERS, "Access-Control-Allow-Headers": asked})


def _health(context: Context) -> Handler:
    async def health(request: web.Request) -> web.StreamResponse:
        """204 while the sandbox runs, else 502: so the SDKs tell a dead sandbox from a dead network. Needs no token."""
        try:
            if find_sandbox(context, request).state != "running":  # asked for its health, nobody is woken
                raise sandbox_not_found(named_sandbox_id(request))
        except HttpError as error:
            return error.response()
        return web.Response(status=204)

    return health


def _unimplemented(context: Context) -> Handler:
    async def refuse(request: web.Request) -> web.StreamResponse:
        try:
            await authorized_sandbox(context, request)
        except HttpError as error:
            return error.response()
        if "service" not in request.match_info:
            return HttpError(501, f"{request.path[:100]} is not served by this server yet").response()
        failure = ConnectError("unimplemented", f"{request.path[1:100]} is not served by this server yet")
        if request.content_type == STREAM_TYPE:
            return web.Response(body=end_envelope(failure), content_type=STREAM_TYPE)
        return unary_failure(failure)

    return refuse
