"""The handlers of /files/watch, and the WebSocket over which one watch's events go out."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import msgspec
from aiohttp import WSMsgType, web

from sandpty import config
from sandpty.server.context import Context
from sandpty.server.dialects.hyperbrowser import file_models as models
from sandpty.server.dialects.hyperbrowser.errors import HyperbrowserError, bad_request, json_response
from sandpty.server.dialects.hyperbrowser.requests import flag, number, read_json
from sandpty.server.dialects.hyperbrowser.tokens import authorized_sandbox
from sandpty.server.dialects.hyperbrowser.watches import Watches, Watching
from sandpty.wire import frames

_ENDS = frozenset((WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR))


class WatchHandlers:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._watches = Watches(context)

    def _named(self, request: web.Request) -> Watching:
        sandbox = authorized_sandbox(self._context, request)
        return self._watches.find(sandbox.id, request.match_info["watch"])

    async def create(self, request: web.Request) -> web.StreamResponse:
        sandbox = authorized_sandbox(self._context, request)
        watching = await self._watches.create(sandbox, await read_json(request, models.WatchBody))
        return json_response({"watch": watching.status()})

    async def get(self, request: web.Request) -> web.StreamResponse:
        return json_response({"watch": self._named(request).status(events=flag(request, "includeEvents"))})

    async def stop(self, request: web.Request) -> web.StreamResponse:
        self._watches.remove(self._named(request))
        return json_response({"success": True})

    async def stream(self, request: web.Request) -> web.StreamResponse:
        """On `/stream` the end is said in a `done` frame. On `/ws` it is the connection's end: Python's watch_dir takes
        any other frame for an error.
        """
        watching = self._named(request)
        cursor = watching.check(number(request, "cursor"))
        socket = web.WebSocketResponse(
            timeout=config.HYPERBROWSER_CLOSE_S,
            heartbeat=config.WS_HEARTBEAT_S,
            autoping=False,
            max_msg_size=frames.MAX_FRAME_BYTES,
            compress=False,
        )
        if not socket.can_prepare(request):
            raise bad_request("this is a WebSocket; the request does not ask for one")
        await socket.prepare(request)
        watching.readers += 1
        listening = asyncio.Event()
        say_done = request.path.endswith("/stream")
        output = asyncio.create_task(_say_events(socket, watching, cursor, listening, say_done=say_done))
        try:
            await _listen(socket, output, listening)
        finally:
            watching.readers -= 1
            output.cancel()
            await asyncio.gather(output, return_exceptions=True)
        with suppress(ConnectionError):
            await socket.close()
        return socket


async def _say_events(
    socket: web.WebSocketResponse, watching: Watching, cursor: int, listening: asyncio.Event, *, say_done: bool
) -> None:
    """Begins once the client has answered a ping: Node would miss what comes earlier (terminal_socket.py tells why)."""
    with suppress(ConnectionError):
        await socket.ping()
        with suppress(TimeoutError):
            async with asyncio.timeout(config.HYPERBROWSER_LISTENING_S):
                await listening.wait()
        try:
            async for event in watching.after(cursor):
                text = msgspec.json.encode(event).decode()
                await socket.send_str(f'{{"type":"event","event":{text}}}')
        except HyperbrowserError as error:
            said = {"type": "error", "error": error.message, "code": error.code}
            await socket.send_str(msgspec.json.encode(said).decode())
            return
        if say_done:
            text = msgspec.json.encode(watching.status()).decode()
            await socket.send_str(f'{{"type":"done","status":{text}}}')


async def _listen(socket: web.WebSocketResponse, output: asyncio.Task[None], listening: asyncio.Event) -> None:
    """Until the client says goodbye or there is nothing more to say. What else the client says is nothing."""

    async def listen() -> None:
        while (message := await socket.receive()).type not in _ENDS:
            listening.set()
            if message.type is WSMsgType.PING:
                await socket.pong(message.data)

    input_ = asyncio.create_task(listen())
    try:
        await asyncio.wait((output, input_), return_when=asyncio.FIRST_COMPLETED)
    finally:
        input_.cancel()
        await asyncio.gather(input_, return_exceptions=True)
