"""Connections that never get round to a request: let go after a while, so that they cannot use up our descriptors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from sandpty import config


class FirstRequests:
    """Give `protocol_factory` to the listener and `middleware` to the application."""

    def __init__(self) -> None:
        self._due: dict[asyncio.Protocol, asyncio.TimerHandle] = {}

    @property
    def waiting(self) -> int:
        """Connections whose first request is not here yet, or that left without one within the time for it."""
        return len(self._due)

    def protocol_factory(self, server: web.Server) -> Callable[[], asyncio.Protocol]:
        def make() -> asyncio.Protocol:
            protocol = server()
            loop = asyncio.get_running_loop()
            self._due[protocol] = loop.call_later(config.HTTP_FIRST_REQUEST_S, self._give_up, protocol)
            return protocol

        return make

    def _give_up(self, protocol: web.RequestHandler) -> None:
        self._due.pop(protocol, None)
        if protocol.transport is not None:
            protocol.transport.abort()

    def middleware(self) -> Middleware:
        @web.middleware
        async def arrived(request: web.Request, handler: Handler) -> web.StreamResponse:
            if (timer := self._due.pop(request.protocol, None)) is not None:
                timer.cancel()
            return await handler(request)

        return arrived
