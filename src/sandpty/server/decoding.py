"""Compressed request bodies: decoded for the dialects, and only for them.

aiohttp would decode every body before anybody can say that it must not: what is passed on to a sandbox's service goes
as it came. So its decoding is off (app.py), and this middleware stands between the port proxy and the dialects.
"""

from __future__ import annotations

import asyncio
import zlib

from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.streams import StreamReader
from aiohttp.typedefs import Handler, Middleware

from sandpty import config

_WINDOW_BITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


class _Flow(BaseProtocol):
    """What a StreamReader tells that it has enough, or that it wants more."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.wanted = asyncio.Event()
        self.wanted.set()

    @property
    def connected(self) -> bool:
        return True

    def pause_reading(self) -> None:
        self._reading_paused = True
        self.wanted.clear()

    def resume_reading(self, resume_parser: bool = True) -> None:
        self._reading_paused = False
        self.wanted.set()


def decoded_bodies() -> Middleware:
    """The middleware. An encoding that is not known here is answered with 415."""

    @web.middleware
    async def decode(request: web.Request, handler: Handler) -> web.StreamResponse:
        encoding = request.headers.get("Content-Encoding", "").strip().lower()
        if encoding in ("", "identity") or not request.can_read_body:
            return await handler(request)
        if encoding not in _WINDOW_BITS:
            message = f"Content-Encoding {encoding[:32]!r} is not understood; gzip and deflate are"
            return web.json_response({"code": 415, "message": message}, status=415)
        loop = asyncio.get_running_loop()
        flow = _Flow(loop)
        decoded = StreamReader(flow, config.DECODED_BUFFER_BYTES, loop=loop)
        # Not `request.content`, which would be remembered: aiohttp offers no other way to replace a body.
        work = _decode(request._payload, decoded, flow, _WINDOW_BITS[encoding])
        decoding = asyncio.create_task(work, name="decode body")
        request._payload = decoded
        try:
            return await handler(request)
        finally:
            decoding.cancel()
            await asyncio.gather(decoding, return_exceptions=True)

    return decode


async def _decode(source: StreamReader, decoded: StreamReader, flow: _Flow, window_bits: int) -> None:
    """A little at a time, and only as fast as it is read: a bomb goes off in nobody's memory."""
    decoder = zlib.decompressobj(window_bits)
    try:
        async for arrived in source.iter_any():
            left = arrived
            while left:
                if decoder.eof:  # gzip's members follow one another
                    decoder = zlib.decompressobj(window_bits)
                decoded.feed_data(decoder.decompress(left, config.DECODED_BUFFER_BYTES))
                left = decoder.unused_data if decoder.eof else decoder.unconsumed_tail
                await flow.wanted.wait()
        decoded.feed_data(decoder.flush())
        if not decoder.eof:
            raise zlib.error("it ends too early")
    except (zlib.error, web.RequestPayloadError) as error:
        decoded.set_exception(web.RequestPayloadError(f"the body is not what its Content-Encoding says: {error}"))
        return
    decoded.feed_eof()
