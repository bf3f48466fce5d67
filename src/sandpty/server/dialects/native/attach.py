"""The WebSockets of attachments: to a process that runs, or to one that is started with it.

Byte by byte in docs/reference/protocol.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from aiohttp import WSMsgType, web

from sandpty import config
from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.dialects.native.answers import PROCESS, SANDBOX, answering, decoded, number, principal
from sandpty.server.dialects.native.models import OpenBody, StartBody, sandbox_json
from sandpty.server.dialects.native.processes import selector, start_request
from sandpty.server.dialects.native.relay import Relay, close_with
from sandpty.server.dialects.native.sandboxes import create_spec
from sandpty.server.websocket_input import TakingSocket
from sandpty.terminal import attachment
from sandpty.wire import frames
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import Attach, From
from sandpty.wire.verbs import Sandbox

T = TypeVar("T")


class Attaching:
    def __init__(self, context: Context) -> None:
        self._context = context
        self._relays: set[Relay] = set()
        context.stopping.append(self._going_away)

    def routes(self) -> Sequence[web.AbstractRouteDef]:
        return [
            web.get(PROCESS + "/attach", self.attach),
            web.get(SANDBOX + "/start", self.start),
            web.get("/v1/start", self.open),
        ]

    def _going_away(self) -> None:
        for relay in self._relays:
            relay.go_away()

    async def _sandbox(self, request: web.Request, who: Principal) -> Sandbox:
        return await self._context.registry.awake(request.match_info["sandbox"], who)

    @answering
    async def attach(self, request: web.Request) -> web.StreamResponse:
        """Errors before the upgrade are HTTP answers; after it, close codes 4000 + status."""
        who = principal(self._context, request)
        sandbox = await self._sandbox(request, who)
        wanted = _attach_request(request)
        socket = _socket(request)
        window = wanted.window or config.ATTACH_WINDOW_BYTES
        async with await attachment.attach(sandbox.socket, replace(wanted, window=window)) as attached:
            relay = Relay(socket, attached, may_write=wanted.may_write, client_acks=wanted.window > 0)
            await self._carry(request, who, sandbox, relay)
        return socket

    @answering
    async def start(self, request: web.Request) -> web.StreamResponse:
        """A process with the attachment to it: the first message says what to start, as the body of a POST does.

        It saves who opens a terminal a request. What fails after the upgrade is a close code.
        """
        await self._sandbox(request, principal(self._context, request))

        async def begin(socket: TakingSocket) -> None:
            body = await _first_message(socket, StartBody)
            who = principal(self._context, request)  # the key may have been revoked, the sandbox paused meanwhile
            await self._start(request, socket, who, await self._sandbox(request, who), body)

        return await self._upgraded(request, begin)

    @answering
    async def open(self, request: web.Request) -> web.StreamResponse:
        """The same in a sandbox that is made for it: the server's first message is a text, that sandbox."""
        principal(self._context, request)

        async def begin(socket: TakingSocket) -> None:
            body = await _first_message(socket, OpenBody)
            who = principal(self._context, request)
            key = request.headers.get("Idempotency-Key", "")
            sandbox = await self._context.registry.create(create_spec(body.sandbox), who, key)
            await socket.send_json(sandbox_json(sandbox))
            await self._start(request, socket, who, sandbox, body.process)

        return await self._upgraded(request, begin)

    async def _upgraded(
        self, request: web.Request, begin: Callable[[TakingSocket], Awaitable[None]]
    ) -> web.StreamResponse:
        """Upgrade first; what fails from then on closes the WebSocket."""
        _window(request), _stall_ms(request)  # what is wrong with them is said before the upgrade
        socket = _socket(request)
        await socket.prepare(request)
        try:
            await begin(socket)
        except SandptyError as error:
            await close_with(socket, error)
        return socket

    async def _start(
        self, request: web.Request, socket: TakingSocket, who: Principal, sandbox: Sandbox, body: StartBody
    ) -> None:
        window = _window(request)
        wanted = replace(
            start_request(sandbox, body), window=window or config.ATTACH_WINDOW_BYTES, stall_ms=_stall_ms(request)
        )
        async with await attachment.start(sandbox.socket, wanted) as attached:
            await self._carry(request, who, sandbox, Relay(socket, attached, client_acks=window > 0))

    async def _carry(self, request: web.Request, who: Principal, sandbox: Sandbox, relay: Relay) -> None:
        """Raises sandbox_paused, no_such_sandbox when it was paused or killed while we attached."""
        registry = self._context.registry
        with registry.cutting(sandbox.id, relay.cut):
            registry.running(sandbox.id, who)
            await relay.prepare(request)
            self._context.auth.when_revoked(request, who, relay.key_revoked)
            self._relays.add(relay)
            try:
                await relay.run()
            finally:
                self._relays.discard(relay)
                relay.leave()


def _window(request: web.Request) -> int:
    return number(request, "window", 0, 2**31)


def _stall_ms(request: web.Request) -> int:
    return number(request, "stall_ms", 0, frames.NEVER_MS)


def _attach_request(request: web.Request) -> Attach:
    origin = request.query.get("from", "continue").upper()
    mode = request.query.get("mode", "rw")
    if origin not in From.__members__:
        raise SandptyError("bad_request", "from must be offset, tail, continue, end or screen")
    if mode not in ("rw", "ro"):
        raise SandptyError("bad_request", "mode must be rw or ro")
    return Attach(
        selector(request),
        may_write=mode == "rw",
        origin=From[origin],
        value=number(request, "value", 0, 2**63),
        window=_window(request),
        stall_ms=_stall_ms(request),
    )


def _socket(request: web.Request) -> TakingSocket:
    """Raises bad_request when no WebSocket is asked for."""
    socket = TakingSocket(
        timeout=config.WS_CLOSE_TIMEOUT_S,
        autoping=False,
        max_msg_size=frames.MAX_FRAME_BYTES,
        compress=False,
        writer_limit=config.CLIENT_UNSENT_BYTES,
    )
    if not socket.can_prepare(request):
        raise SandptyError("bad_request", "this is a WebSocket; the request does not ask for one")
    return socket


async def _first_message(socket: web.WebSocketResponse, model: type[T]) -> T:
    """What to start. Raises bad_request, timeout."""
    try:
        async with asyncio.timeout(config.WS_FIRST_MESSAGE_S):
            message = await socket.receive()
    except TimeoutError as error:
        raise SandptyError("timeout", "the first message, which says what to start, did not come") from error
    if message.type is not WSMsgType.TEXT:
        raise SandptyError("bad_request", "the first message is a text: what to start, in JSON")
    return decoded(message.data, model)
