"""Reading requests and saying errors, the native way: `{"error": {"reason", "message", "hint"}}`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.wire.errors import SandptyError

T = TypeVar("T")
SANDBOX = "/v1/sandboxes/{sandbox}"
PROCESS = SANDBOX + "/processes/{process}"
O = TypeVar("O")  # noqa: E741 - the handler's owner


def error_body(error: SandptyError) -> dict[str, Any]:
    return {"error": {"reason": error.reason.name, "message": error.message, "hint": error.reason.hint}}


def answering(
    handler: Callable[[O, web.Request], Awaitable[web.StreamResponse]],
) -> Callable[[O, web.Request], Awaitable[web.StreamResponse]]:
    """Turn a SandptyError into its answer."""

    @wraps(handler)
    async def wrapped(owner: O, request: web.Request) -> web.StreamResponse:
        try:
            return await handler(owner, request)
        except SandptyError as error:
            return web.json_response(error_body(error), status=error.reason.http)

    return wrapped


def principal(context: Context, request: web.Request) -> Principal:
    """Raises unauthenticated."""
    return context.auth.authenticate(request)


async def body(request: web.Request, model: type[T]) -> T:
    """The request's JSON body. An empty one is an empty object. Raises bad_request, too_large."""
    try:
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise SandptyError("too_large", "the request body is over 1 MiB") from error
    return decoded(raw or b"{}", model)


def decoded(raw: bytes | str, model: type[T]) -> T:
    """JSON of a client. Raises bad_request."""
    try:
        return msgspec.json.decode(raw, type=model)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise SandptyError("bad_request", str(error)) from error


def number(request: web.Request, name: str, default: int, most: int) -> int:
    """A query parameter between 0 and `most`. Raises bad_request."""
    raw = request.query.get(name)
    if raw is None:
        return default
    if not (raw.isascii() and raw.isdigit() and len(raw) <= 20 and int(raw) <= most):
        raise SandptyError("bad_request", f"{name} must be a whole number from 0 to {most}")
    return int(raw)
