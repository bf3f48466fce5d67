"""What clients download: an open file of a guest to an HTTP answer, a piece at a time, waiting for the client."""

from __future__ import annotations

import asyncio
import mimetypes
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from functools import lru_cache
from urllib.parse import quote

from aiohttp import web

from sandpty import config
from sandpty.server.files.paths import base_name, printable
from sandpty.server.files.pouring import may_pour, pour
from sandpty.terminal.files import Reading

_TYPES = mimetypes.MimeTypes(())  # Python's own table: the host's files must not decide what a guest's file is
_TOKEN = frozenset("!#$&+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
_GZIP = 16 + zlib.MAX_WBITS


def content_type(path: str) -> str:
    """By the name's ending; text is taken to be UTF-8."""
    return _content_type(base_name(path))


@lru_cache(maxsize=1024)  # to find it takes longer than all headers together
def _content_type(name: str) -> str:
    kind = _TYPES.guess_type(f"/{name.lower()}", strict=False)[0] or "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def content_disposition(name: str) -> str:
    """`inline` with the file's name, as RFC 6266 wants names that are no tokens."""
    if name and _TOKEN.issuperset(name):
        return f"inline; filename={name}"
    if name.isascii() and name.isprintable():
        escaped = name.replace("\\", "\\\\").replace('"', '\\"')
        return f'inline; filename="{escaped}"'
    return f"inline; filename*=utf-8''{quote(printable(name), safe='')}"


@lru_cache(maxsize=64)
def choose_coding(header: str | None) -> str | None:
    """`gzip`, `identity`, or None when the client takes neither.

    A client that names other codings beside gzip only says what its library knows; compressing would cost both sides
    more time than the bytes they save. One that asks for gzip alone wants it.
    """
    if header is None or not header.strip():
        return "identity"
    weights: dict[str, float] = {}
    for item in header.split(","):
        name, _, parameters = item.partition(";")
        try:
            weight = float(parameters.split("=", 1)[1]) if "=" in parameters else 1.0
        except ValueError:
            weight = 1.0
        weights[name.strip().lower()] = weight
    gzip = weights.get("gzip", weights.get("*", 0.0)) > 0
    identity = weights.get("identity", 1.0 if weights.get("*", 1.0) > 0 else 0.0) > 0
    wanted = {name for name, weight in weights.items() if weight > 0}
    if gzip and (wanted == {"gzip"} or not identity):
        return "gzip"
    return "identity" if identity else None


async def gathered(reading: Reading, at_least: int) -> tuple[bytes, bool]:
    """The first pieces, and whether that is all there is: what small files and files of /proc really are."""
    pieces = bytearray()
    while len(pieces) < at_least:
        piece = await reading.piece()
        if not piece:
            return bytes(pieces), True
        pieces += piece
    return bytes(pieces), False


async def _compressed(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """gzip, off the event loop: a piece takes milliseconds, in which keys of terminals would wait."""
    compressor = zlib.compressobj(config.FILE_GZIP_LEVEL, zlib.DEFLATED, _GZIP)
    async for piece in pieces:
        if packed := await asyncio.to_thread(compressor.compress, piece):
            yield packed
    yield compressor.flush()


async def _after(first: bytes, reading: Reading | None) -> AsyncIterator[bytes]:
    if first:
        yield first
    while reading is not None and (piece := await reading.piece()):
        yield piece


async def send_file(
    request: web.Request, reading: Reading, headers: Mapping[str, str], *, coding: str = "identity"
) -> web.StreamResponse:
    """The rest of `reading`, whose whole is what is wanted. Its length is said where it is sure.

    A file that turns out shorter than was said, or cannot be read on, ends in a cut connection, never in a good answer.
    """
    first, whole = await gathered(reading, config.FILE_FIRST_BYTES)
    response = web.StreamResponse(headers=headers)
    said: int | None = None
    if coding == "gzip":
        response.headers["Content-Encoding"] = "gzip"
    elif whole:
        said = len(first)
    elif reading.entry.size > len(first):
        said = reading.entry.size
    if whole and said is not None:  # head and body go in one piece
        return web.Response(body=first, headers=response.headers)
    if said is not None and not whole and may_pour(request, said):
        return await _pour(request, response, first, reading, said)
    return await _send(request, response, _after(first, None if whole else reading), said, coding)


async def send_part(
    request: web.Request, reading: Reading, headers: Mapping[str, str], length: int
) -> web.StreamResponse:
    """206 with the `length` bytes that `reading` was asked for."""
    response = web.StreamResponse(status=206, headers=headers)
    if may_pour(request, length):
        return await _pour(request, response, b"", reading, length)
    return await _send(request, response, _after(b"", reading), length, "identity")


async def _send(
    request: web.Request, response: web.StreamResponse, pieces: AsyncIterator[bytes], said: int | None, coding: str
) -> web.StreamResponse:
    if said is None:
        response.enable_chunked_encoding()
    else:
        response.content_length = said
    await response.prepare(request)
    try:
        async with aclosing(_compressed(pieces) if coding == "gzip" else pieces) as source:  # type: ignore[type-var]
            await _write_all(response, source, said)
    except BaseException:
        if request.transport is not None:  # whatever was said of the length is not true any more
            request.transport.abort()
        raise
    return response


async def _pour(
    request: web.Request, response: web.StreamResponse, first: bytes, reading: Reading, said: int
) -> web.StreamResponse:
    """As `_send`, for what is so big that its bytes are better not seen by us."""
    response.content_length = said
    await response.prepare(request)
    try:
        left = said - len(first[:said])
        if first:
            async with asyncio.timeout(config.FILE_STALL_S):
                await response.write(first[:said])
        if await pour(request, reading, left) != left:
            raise ConnectionResetError("the file ended before its length")
        await response.write_eof()
    except BaseException:
        if request.transport is not None:
            request.transport.abort()
        raise
    return response


async def _write_all(response: web.StreamResponse, source: AsyncIterator[bytes], said: int | None) -> None:
    left = said
    async for piece in source:
        part = piece if left is None else piece[:left]
        async with asyncio.timeout(config.FILE_STALL_S):
            await response.write(part)
        if left is not None:
            left -= len(part)
            if left == 0:
                break
    if left:
        raise ConnectionResetError("the file ended before its length")
    await response.write_eof()
