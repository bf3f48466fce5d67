"""/v1/sandboxes/{id}/files/watch: what happens in a directory, over a WebSocket.

Text messages of JSON. Nothing is queued here: while the client does not read, events wait in the guest's kernel, which
keeps some 16,000 and then says that it dropped some.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web

from sandpty import config
from sandpty.server.context import Context
from sandpty.server.dialects.native import file_models as models
from sandpty.server.dialects.native.answers import answering, principal
from sandpty.server.dialects.native.files import FILES
from sandpty.server.files.paths import expand
from sandpty.server.guest_defaults import default_user
from sandpty.terminal.files import Watch
from sandpty.wire.errors import SandptyError

_ENDS = frozenset((WSMsgType.CLOSE, WSMsgType.CLOSING, WSMsgType.CLOSED, WSMsgType.ERROR))


class Watching:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._relays: set[_WatchRelay] = set()
        context.stopping.append(self._going_away)

    def routes(self) -> Sequence[web.AbstractRouteDef]:
        return [web.get(FILES + "/watch", self.watch, allow_head=False)]

    def _going_away(self) -> None:
        for relay in self._relays:
            relay.leave(WSCloseCode.GOING_AWAY, "the server stops; watch again")

    @answering
    async def watch(self, request: web.Request) -> web.StreamResponse:
        """Errors before the upgrade are HTTP answers; after it, close codes 4000 + status."""
        who = principal(self._context, request)
        wanted = models.query(request, models.WatchQuery)
        sandbox = await self._context.registry.awake(request.match_info["sandbox"], who)
        socket = web.WebSocketResponse(
            timeout=config.WS_CLOSE_TIMEOUT_S,
            heartbeat=config.WS_HEARTBEAT_S,
            max_msg_size=config.WATCH_MESSAGE_BYTES,
            compress=False,
        )
        if not socket.can_prepare(request):
            raise SandptyError("bad_request", "watch is a WebSocket; this request does not ask for one")
        relay = _WatchRelay(socket)
        revoked = SandptyError("unauthenticated", "the API key was revoked")
        self._context.auth.when_revoked(request, who, lambda: relay.fail(revoked))
        self._relays.add(relay)
        try:
            async with self._context.files.watching(sandbox, wanted.user or default_user(sandbox)) as files:
                watch = await files.watch(
                    expand(wanted.path, files.account),
                    recursive=wanted.recursive,
                    entries=wanted.entries,
                    network_file_systems=wanted.network_file_systems,
                )
                await socket.prepare(request)
                await relay.run(watch)
        except SandptyError as error:  # by now it says what became of the sandbox
            if not socket.prepared:
                raise
            relay.fail(error)
        finally:
            self._relays.discard(relay)
        await relay.close(request.transport)
        return socket


class _WatchRelay:
    """One watch carried to one client, until either side or the directory is gone."""

    def __init__(self, socket: web.WebSocketResponse) -> None:
        self._socket = socket
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._code: int | None = None
        self._text = ""

    def leave(self, code: int, text: str) -> None:
        """End it; the client is told why. The first reason counts."""
        if self._code is None:
            self._code, self._text = code, text
        for task in self._tasks:
            task.cancel()

    def fail(self, error: SandptyError) -> None:
        self.leave(error.reason.ws_close, f"{error.reason.name}: {error.message}")

    async def run(self, watch: Watch) -> None:
        """Raises SandptyError when the watch is lost, or the client breaks the protocol."""
        if self._code is not None:  # the key was revoked before we began
            return
        self._tasks = asyncio.create_task(self._output(watch)), asyncio.create_task(self._input(watch))
        try:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in self._tasks:
                task.cancel()
            ends = await asyncio.gather(*self._tasks, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception) and not isinstance(end, ConnectionError):
                raise end

    async def close(self, transport: asyncio.Transport | None) -> None:
        message = self._text.encode("utf-8", "replace")[: config.WS_CLOSE_TEXT_BYTES].decode("utf-8", "ignore")
        await self._socket.close(code=self._code or WSCloseCode.OK, message=message.encode())
        if transport is not None and transport.get_write_buffer_size():
            transport.abort()  # a client that has not taken everything by now never will

    async def _output(self, watch: Watch) -> None:
        """Ends after GONE."""
        while not watch.over:
            news = await watch.news()
            body = {"synced": news} if isinstance(news, int) else {"events": [models.event_json(each) for each in news]}
            await self._socket.send_str(msgspec.json.encode(body).decode())

    async def _input(self, watch: Watch) -> None:
        """The one thing a client may say is `sync`: it is answered once all that has happened until now was told."""
        while (message := await self._socket.receive()).type not in _ENDS:
            if message.type is not WSMsgType.TEXT or message.data != "sync":
                raise SandptyError("bad_frame", "a watch takes the text `sync` and nothing else")
            await watch.ask_all()
