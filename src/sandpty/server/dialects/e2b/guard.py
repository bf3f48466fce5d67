"""The control plane's handlers as rows of a table, and what stands before each: the API key, errors in E2B's shape.

Every module of the control plane has a class with `routes()`, a list of such rows; control.py puts them together.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from aiohttp import web

from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.dialects.e2b.errors import HttpError, http_error, sandbox_unknown, unexpected_http
from sandpty.wire.errors import SandptyError

Handler = Callable[[web.Request, Principal], Awaitable[web.StreamResponse]]
Row = tuple[str, str, Handler]  # method, path, handler


def guarded(context: Context, rows: Iterable[Row]) -> list[web.RouteDef]:
    """The rows as routes. `{id}` in a path is a sandbox's id."""
    return [web.route(method, path, _guard(context, handler)) for method, path, handler in rows]


def _guard(context: Context, handler: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request, context.auth.authenticate(request))
        except HttpError as error:
            return error.response()
        except SandptyError as error:
            if error.reason.name == "no_such_sandbox":
                return sandbox_unknown(request.match_info.get("id", "")).response()
            return http_error(error).response()
        except Exception as error:
            return unexpected_http(error).response()

    return handle
