"""Reading the bodies and queries of requests, bounded in size and in time."""

from __future__ import annotations

import asyncio
from typing import TypeVar
from urllib.parse import parse_qsl

import msgspec
from aiohttp import web

from sandpty import config
from sandpty.wire.errors import SandptyError

T = TypeVar("T")


async def read_body(request: web.Request, max_bytes: int) -> bytes:
    """The whole body, chunked or not. Raises too_large, timeout when it does not arrive, bad_request."""
    body = bytearray()
    try:
        async with asyncio.timeout(config.REQUEST_BODY_TIMEOUT_S):
            async for chunk in request.content.iter_any():
                body += chunk
                if len(body) > max_bytes:
                    raise SandptyError("too_large", f"the request body is over the limit of {max_bytes} bytes")
    except TimeoutError as error:
        raise SandptyError("timeout", "the request body did not arrive in time") from error
    except web.RequestPayloadError as error:
        raise SandptyError("bad_request", f"the request body cannot be read: {error}") from error
    return bytes(body)


def decode_json(body: bytes, model: type[T]) -> T:
    """A JSON body; an empty one counts as `{}`. Raises bad_request."""
    try:
        return msgspec.json.decode(body.strip() or b"{}", type=model)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise SandptyError("bad_request", f"the request body is not valid: {error}") from error


def query_pairs(request: web.Request) -> list[tuple[str, str]]:
    """The query as it was sent. Path names are bytes: they come as `str` with surrogateescape. Raises bad_request."""
    raw = request.rel_url.raw_query_string
    try:
        return parse_qsl(raw, keep_blank_values=True, errors="surrogateescape", max_num_fields=config.QUERY_FIELDS_MAX)
    except ValueError as error:
        raise SandptyError("bad_request", "the query has too many parts") from error
