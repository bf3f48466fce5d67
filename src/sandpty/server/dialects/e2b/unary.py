"""What stands around every unary method: the sandbox and its token, the body, the timeout, errors in shape."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from sandpty import config
from sandpty.server.context import Context
from sandpty.server.dialects.e2b.connect import UNARY_TYPE, ConnectError, decode_timeout_ms, error_from
from sandpty.server.dialects.e2b.errors import HttpError, sandbox_not_found, unexpected_connect
from sandpty.server.dialects.e2b.requests import authorized_sandbox, read_body
from sandpty.server.ends import still_runs, wait_for_the_end
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox

# Answers a message, its JSON, or None for an empty one. Raises ConnectError, SandptyError.
UnaryMethod = Callable[[Sandbox, web.Request, bytes], Awaitable[msgspec.Struct | bytes | None]]


def unary_failure(error: ConnectError) -> web.Response:
    return web.Response(status=error.status, body=error.body(), content_type=UNARY_TYPE)


def unary(context: Context, method: UnaryMethod) -> Callable[[web.Request], Awaitable[web.Response]]:
    """The method as a handler."""

    async def answer(request: web.Request, sandbox: Sandbox) -> web.Response:
        try:
            timeout_ms = decode_timeout_ms(request.headers.get("Connect-Timeout-Ms"))
            body = await read_body(request, config.ENVELOPE_BYTES)
            async with asyncio.timeout(timeout_ms / 1000 if timeout_ms else None):
                reply = await method(sandbox, request, body)
        except TimeoutError:
            return unary_failure(ConnectError("deadline_exceeded", "the request reached its timeout"))
        except ConnectError as error:
            return unary_failure(error)
        except SandptyError as error:
            if error.reason.name == "agent_unreachable":
                await wait_for_the_end(context, sandbox)
            return unary_failure(error_from(error))
        body = b"{}" if reply is None else reply if isinstance(reply, bytes) else msgspec.json.encode(reply)
        return web.Response(body=body, content_type=UNARY_TYPE)

    async def handle(request: web.Request) -> web.Response:
        try:
            sandbox = await authorized_sandbox(context, request)
            response = await answer(request, sandbox)
            if response.status >= 500 and not still_runs(context, sandbox):
                return sandbox_not_found(sandbox.id).response()  # it ended while it was being asked
            return response
        except HttpError as error:
            return error.response()
        except Exception as error:
            return unary_failure(unexpected_connect(error))

    return handle
