"""Attaching to a terminal: from which offset, and the upgrade to a WebSocket."""

from __future__ import annotations

import asyncio
import socket as sockets
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec
from aiohttp import web

from sandpty import config
from sandpty.server.context import Context
from sandpty.server.dialects.hyperbrowser import models
from sandpty.server.dialects.hyperbrowser.errors import bad_request, not_running, replay_window_expired
from sandpty.server.dialects.hyperbrowser.requests import look, number
from sandpty.server.dialects.hyperbrowser.starting import TERMINAL, exit_code, selector
from sandpty.server.dialects.hyperbrowser.terminal_socket import Resizes, TerminalSocket
from sandpty.server.dialects.hyperbrowser.terminals import terminal_status
from sandpty.server.dialects.hyperbrowser.tokens import authorized_sandbox, now_ms
from sandpty.server.ends import still_runs, wait_for_the_end
from sandpty.server.websocket_output import keep_little_unsent
from sandpty.terminal import attachment, control
from sandpty.wire import frames
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import Attach, Exit, From, ProcessInfo, Selector
from sandpty.wire.verbs import Sandbox


class Attaching:
    """The handler of /pty/{terminal}/ws."""

    def __init__(self, context: Context, resizes: Resizes) -> None:
        self._context = context
        self._resizes = resizes
        context.stopping.append(resizes.go_away)

    async def attach(self, request: web.Request) -> web.StreamResponse:
        sandbox = authorized_sandbox(self._context, request)
        which = selector(TERMINAL, request.match_info["terminal"])
        cursor = number(request, "cursor")
        socket = web.WebSocketResponse(
            timeout=config.HYPERBROWSER_CLOSE_S,
            autoping=False,
            max_msg_size=frames.MAX_FRAME_BYTES,
            compress=False,
            writer_limit=config.CLIENT_UNSENT_BYTES,
        )
        if not socket.can_prepare(request):
            raise bad_request("this is a WebSocket; the request does not ask for one")
        info = await look(sandbox, which)
        async with await self._attach(sandbox, info, cursor) as attached:
            with self._context.registry.cutting(sandbox.id, attached.close):
                if not still_runs(self._context, sandbox):
                    raise not_running(sandbox.id)
                await socket.prepare(request)
                keep_little_unsent(request.transport)
                _notice_death(request.transport)
                relay = TerminalSocket(
                    socket, request.transport, attached, self._status(sandbox, info), exact=cursor is not None
                )
                with self._resizes.registered(sandbox.id, which.tag, relay):
                    await _to_its_end(relay)
        return socket

    async def _attach(self, sandbox: Sandbox, info: ProcessInfo, cursor: int | None) -> attachment.Attachment:
        """Raises HyperbrowserError 410 when the log has lost what follows the cursor, 400 for one from the future."""
        if cursor is not None and cursor < info.start:
            raise replay_window_expired()
        wanted = Attach(
            Selector.process(info.process),
            origin=From.OFFSET,
            value=info.start if cursor is None else cursor,
            window=config.ATTACH_WINDOW_BYTES,
            stall_ms=int(config.HYPERBROWSER_REATTACH_S * 1000),
            keeps_place=True,
        )
        attached = await attachment.attach(sandbox.socket, wanted)
        if cursor is None:
            return attached
        # A flood may have gone past the cursor since we looked. Attached, we hold it: now what we see stays true.
        again = await control.stat(sandbox.socket, Selector.process(info.process))
        if cursor < again.start:
            attached.close()
            raise replay_window_expired()
        return attached

    def _status(
        self, sandbox: Sandbox, info: ProcessInfo
    ) -> Callable[[Exit | None], Awaitable[models.TerminalStatus | None]]:
        async def status(ended: Exit | None) -> models.TerminalStatus | None:
            if ended is None:
                await wait_for_the_end(self._context, sandbox)
                if sandbox.id not in self._context.registry:
                    return _gone(info)
                return None
            with suppress(SandptyError):
                return terminal_status(await control.stat(sandbox.socket, Selector.process(info.process)))
            known = _gone(info)
            return msgspec.structs.replace(known, exit_code=exit_code(ended), error=None)

        return status


def _gone(info: ProcessInfo) -> models.TerminalStatus:
    """As it was last, and ended with its sandbox."""
    known = terminal_status(info)
    if not known.running:
        return known
    return msgspec.structs.replace(known, running=False, finished_at=now_ms(), error="the sandbox is not running")


async def _to_its_end(relay: TerminalSocket) -> None:
    """A client that is gone cancels its request, but what it has typed still goes to the program."""
    task = asyncio.create_task(relay.run(), name="terminal-socket")
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            async with asyncio.timeout(config.HYPERBROWSER_SETTLE_S):
                await task
        raise
    finally:
        task.cancel()


def _notice_death(transport: asyncio.Transport | None) -> None:
    """Let the kernel find out that a client is gone, and how soon."""
    if transport is not None and not transport.is_closing():
        client = transport.get_extra_info("socket")
        client.setsockopt(sockets.SOL_SOCKET, sockets.SO_KEEPALIVE, 1)
        client.setsockopt(sockets.IPPROTO_TCP, sockets.TCP_USER_TIMEOUT, int(config.HYPERBROWSER_DEAD_S * 1000))
