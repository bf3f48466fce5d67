"""`/files`, `/metrics` and `/envs` of a sandbox: which one, who may, and errors in envd's shape."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from sandpty import config
from sandpty.server.bodies import query_pairs
from sandpty.server.context import Context
from sandpty.server.dialects.e2b import file_models as models
from sandpty.server.dialects.e2b.downloads import download
from sandpty.server.dialects.e2b.errors import HttpError, bad_request, http_error, sandbox_not_found, unexpected_http
from sandpty.server.dialects.e2b.requests import authorized_sandbox, find_sandbox, is_secure, named_sandbox_id, woken
from sandpty.server.dialects.e2b.signatures import FileQuery, Operation, check_access, signed_for
from sandpty.server.dialects.e2b.starting import sandbox_env
from sandpty.server.dialects.e2b.uploads import compose, upload
from sandpty.server.ends import still_runs, wait_for_the_end
from sandpty.server.files.paths import printable
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox

_MIB = 1024 * 1024
Answer = Callable[[Context, Sandbox, web.Request, FileQuery], Awaitable[web.StreamResponse]]


def routes(context: Context) -> list[web.RouteDef]:
    read, write = _files(context, "read", download), _files(context, "write", upload)
    composing = asyncio.Semaphore(config.COMPOSES_IN_PARALLEL)

    async def composed(context: Context, sandbox: Sandbox, request: web.Request) -> web.StreamResponse:
        async with composing:
            return await compose(context, sandbox, request)

    return [
        web.get("/files", read, allow_head=False),
        web.head("/files", read),
        web.post("/files", write),
        web.post("/files/compose", _guarded(context, composed)),
        web.get("/metrics", _guarded(context, _metrics), allow_head=False),
        web.get("/envs", _guarded(context, _envs), allow_head=False),
    ]


def _query(request: web.Request) -> FileQuery:
    try:
        pairs = query_pairs(request)
    except SandptyError as error:
        raise bad_request(error.message) from error
    return FileQuery.of(pairs)


def _find(context: Context, request: web.Request, query: FileQuery, operation: Operation) -> Sandbox:
    """By headers, by token, or by the signature alone. Raises HttpError."""
    if named_sandbox_id(request) or request.headers.get("X-Access-Token") or query.signature is None:
        return find_sandbox(context, request)
    sandbox = signed_for(query, operation, context.registry.everyone())
    if sandbox is None:
        raise HttpError(401, "invalid signature")
    return find_sandbox(context, request, signed_for=sandbox.id)


def _files(
    context: Context, operation: Operation, answer: Answer
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def checked(request: web.Request) -> tuple[Sandbox, FileQuery]:
        query = _query(request)
        sandbox = _find(context, request, query, operation)
        token = str(sandbox.annotations.get("token", ""))
        header = request.headers.get("X-Access-Token")
        check_access(query, operation, token, secure=is_secure(sandbox), header=header, now=time.time())
        return await woken(context, sandbox), query

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            sandbox, query = await checked(request)
        except HttpError as error:
            return error.response()
        return await _answered(context, sandbox, query.username, answer(context, sandbox, request, query))

    return handle


def _guarded(
    context: Context, answer: Callable[[Context, Sandbox, web.Request], Awaitable[web.StreamResponse]]
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            sandbox = await authorized_sandbox(context, request)
        except HttpError as error:
            return error.response()
        return await _answered(context, sandbox, "", answer(context, sandbox, request))

    return handle


async def _answered(
    context: Context, sandbox: Sandbox, user: str, answer: Awaitable[web.StreamResponse]
) -> web.StreamResponse:
    """What an answer raises before it has begun, in envd's shape. One that has begun can only be cut off."""
    try:
        return await answer
    except HttpError as error:
        return error.response()
    except SandptyError as error:
        if error.reason.name == "agent_unreachable":
            await wait_for_the_end(context, sandbox)
        if not still_runs(context, sandbox):
            return sandbox_not_found(sandbox.id).response()
        return _failure(error, user).response()
    except (ConnectionError, TimeoutError) as error:
        raise ConnectionResetError("the transfer was given up") from error
    except Exception as error:
        return unexpected_http(error).response()


def _failure(error: SandptyError, user: str) -> HttpError:
    if error.reason.name == "no_such_user":
        shown = printable(user[:64])
        return HttpError(401, f"error looking up user '{shown}': user: unknown user {shown}")
    if error.reason.name == "no_space":
        return HttpError(507, "not enough disk space available")
    return http_error(error)


async def _metrics(context: Context, sandbox: Sandbox, _: web.Request) -> web.StreamResponse:
    sample = await context.metrics.latest(sandbox)
    if sample is None:
        raise HttpError(503, "there are no metrics of this sandbox yet")
    limits = sandbox.limits
    body = models.MetricsReply(
        ts=int(sample.at),
        cpu_count=max(1, round(limits.cpu_count)),
        cpu_used_pct=round(sample.cpu_pct, 2),
        mem_total=limits.memory_mb * _MIB,
        mem_used=sample.used_bytes,
        mem_cache=sample.cache_bytes,
        mem_total_mib=limits.memory_mb,
        mem_used_mib=sample.used_bytes // _MIB,
        disk_used=sample.disk_bytes,
        disk_total=limits.disk_mb * _MIB,
    )
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")


async def _envs(_: Context, sandbox: Sandbox, __: web.Request) -> web.StreamResponse:
    return web.Response(body=msgspec.json.encode(sandbox_env(sandbox)), content_type="application/json")
