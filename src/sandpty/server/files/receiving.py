"""What clients upload: pieces of a body as they arrive. However long it takes in all, each piece must come in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from aiohttp import web

from sandpty import config
from sandpty.wire.errors import SandptyError

CODINGS = ("", "identity", "gzip", "deflate")  # aiohttp takes the last two off, a bounded piece at a time


async def small_body(request: web.Request) -> bytes | None:
    """All of a body that is no more than FILE_SMALL_BYTES and says so; else None, and nothing is read.

    Raises as `body_pieces`.
    """
    length = request.content_length
    if length is None or length > config.FILE_SMALL_BYTES or request.headers.get("Content-Encoding"):
        return None
    if request.content.is_eof() and request.content.exception() is None:
        return request.content.read_nowait()  # all of it came with the head
    return b"".join([piece async for piece in body_pieces(request)])


async def one_piece(data: bytes) -> AsyncIterator[bytes]:
    """What has arrived already, as `body_pieces` would say it."""
    if data:
        yield data


async def body_pieces(request: web.Request) -> AsyncIterator[bytes]:
    """The body without its coding. The socket is read no faster than the pieces are taken.

    Raises unsupported (another coding), timeout (nothing came for FILE_STALL_S), bad_request (cut off, bad gzip).
    """
    coding = request.headers.get("Content-Encoding", "").strip().lower()
    if coding not in CODINGS:
        raise SandptyError("unsupported", f"Content-Encoding {coding[:40]!r}: send it plain or with gzip")
    while True:
        try:
            async with asyncio.timeout(config.FILE_STALL_S):
                piece = await request.content.readany()
        except TimeoutError as error:
            raise SandptyError("timeout", f"nothing of the body came for {config.FILE_STALL_S:g} s") from error
        except (web.RequestPayloadError, ValueError) as error:
            raise SandptyError("bad_request", f"the request body cannot be read: {error}") from error
        if not piece:
            return
        yield piece
