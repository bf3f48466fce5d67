"""Terminals: created, looked at with or without their output, waited for, signalled, resized.

Output is told in chunks whose `seq` is the offset in the terminal's log at which the chunk ends: a client's `cursor`,
the last `seq` it has seen, is the offset from which it goes on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import suppress

import msgspec
from aiohttp import web

from sandpty import config
from sandpty.server.context import Context
from sandpty.server.dialects.hyperbrowser import models
from sandpty.server.dialects.hyperbrowser.chunks import Cutter, chunk
from sandpty.server.dialects.hyperbrowser.errors import json_response
from sandpty.server.dialects.hyperbrowser.requests import flag, look, read_json, wait_for_end
from sandpty.server.dialects.hyperbrowser.starting import (
    TERMINAL,
    directory,
    exit_code,
    selector,
    shown,
    terminal_start,
)
from sandpty.server.dialects.hyperbrowser.terminal_socket import Resizes
from sandpty.server.dialects.hyperbrowser.tokens import authorized_sandbox
from sandpty.terminal import attachment, control
from sandpty.terminal.signals import signal_number
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import Attach, Exit, ExitReason, From, Gap, Output, ProcessFlags, ProcessInfo, Selector, Target
from sandpty.wire.verbs import Sandbox

_SIGKILL = 9
# What a terminal sends by itself, and what ends what runs in front: for the group in the foreground, as from a key.
_FOREGROUND = frozenset(signal_number(name) for name in ("INT", "QUIT", "TSTP", "STOP", "CONT", "TERM", "WINCH"))


def terminal_status(info: ProcessInfo) -> models.TerminalStatus:
    argv = [shown(item) for item in info.argv] or [""]
    return models.TerminalStatus(
        id=shown(info.tag),
        command=argv[0],
        args=argv[1:],
        cwd=directory(info),
        pid=info.pid,
        running=bool(info.flags & ProcessFlags.RUNNING),
        exit_code=exit_code(info.exit),
        timed_out=info.exit is not None and info.exit.reason is ExitReason.DEADLINE,
        rows=info.rows,
        cols=info.cols,
        started_at=info.started_ms,
        finished_at=info.ended_ms or None,
    )


class Terminals:
    """The handlers of /pty."""

    def __init__(self, context: Context, resizes: Resizes) -> None:
        self._context = context
        self._resizes = resizes

    def _named(self, request: web.Request) -> tuple[Sandbox, Selector]:
        sandbox = authorized_sandbox(self._context, request)
        return sandbox, selector(TERMINAL, request.match_info["terminal"])

    async def create(self, request: web.Request) -> web.StreamResponse:
        sandbox = authorized_sandbox(self._context, request)
        start = terminal_start(await read_json(request, models.TerminalBody), sandbox)
        await attachment.start_detached(sandbox.socket, start)
        return _answer(await look(sandbox, Selector.tagged(start.tag)))

    async def get(self, request: web.Request) -> web.StreamResponse:
        sandbox, which = self._named(request)
        if flag(request, "includeOutput"):
            await self._first_output(sandbox, await look(sandbox, which))
            return await self._with_output(request, sandbox, which)
        await self._resizes.settled(sandbox.id, which.tag)
        return _answer(await look(sandbox, which))

    async def wait(self, request: web.Request) -> web.StreamResponse:
        """200 once it has ended, 408 when it does not in time."""
        sandbox, which = self._named(request)
        body = await read_json(request, models.WaitBody)
        await look(sandbox, which)
        await wait_for_end(sandbox, which, body)
        if body.include_output:
            return await self._with_output(request, sandbox, which)
        return _answer(await look(sandbox, which))

    async def signal(self, request: web.Request) -> web.StreamResponse:
        """Without a name: the whole tree is killed. What has ended cannot be signalled, and that is no error."""
        sandbox, which = self._named(request)
        body = await read_json(request, models.SignalBody)
        number = _SIGKILL if body.signal in (None, "") else signal_number(body.signal or "")
        target = Target.TREE if number == _SIGKILL else Target.GROUP if number in _FOREGROUND else Target.LEADER
        await look(sandbox, which)
        with suppressed("exited"):
            await control.signal(sandbox.socket, which, number, target)
        return _answer(await look(sandbox, which))

    async def resize(self, request: web.Request) -> web.StreamResponse:
        sandbox, which = self._named(request)
        body = await read_json(request, models.ResizeBody)
        await look(sandbox, which)
        with suppressed("exited"):
            await control.resize(sandbox.socket, which, body.cols, body.rows)
        return _answer(await look(sandbox, which))

    # --- with output ---

    async def _first_output(self, sandbox: Sandbox, info: ProcessInfo) -> None:
        """A terminal that has just been created is given a moment to say something, so that it is not asked in vain."""
        left_s = info.started_ms / 1000 + config.HYPERBROWSER_FIRST_OUTPUT_S - time.time()
        if info.end > 0 or info.exit is not None or not 0 < left_s <= config.HYPERBROWSER_FIRST_OUTPUT_S:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(left_s), await _reader(sandbox, info) as reading:
                while not isinstance(await reading.receive(), Output | Exit):
                    pass

    async def _with_output(self, request: web.Request, sandbox: Sandbox, which: Selector) -> web.StreamResponse:
        """The status and all output that is kept, in pieces: a log is too big to be held for every request."""
        await self._resizes.settled(sandbox.id, which.tag)
        info = await look(sandbox, which)
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        status = msgspec.json.encode(terminal_status(info))
        await response.write(b'{"pty":' + status[:-1] + b',"output":[')
        separator = b""
        try:
            async for data, end in kept_output(sandbox, info):
                if data:
                    await response.write(separator + b"{" + chunk(data, end) + b"}")
                    separator = b","
        except SandptyError as error:  # half an answer is none
            raise ConnectionResetError(error.message) from error
        await response.write(b"]}}")
        await response.write_eof()
        return response


async def _reader(sandbox: Sandbox, info: ProcessInfo) -> attachment.Attachment:
    wanted = Attach(
        Selector.process(info.process),
        may_write=False,
        origin=From.OFFSET,
        value=info.start,
        window=config.ATTACH_WINDOW_BYTES,
        stall_ms=1,  # reading what is kept holds nobody back
    )
    return await attachment.attach(sandbox.socket, wanted)


async def kept_output(sandbox: Sandbox, info: ProcessInfo) -> AsyncIterator[tuple[bytes, int]]:
    """(bytes, offset of their end) of everything that the log held at `info`, cut between characters."""
    cutter = Cutter(info.start)
    async with await _reader(sandbox, info) as reading:
        while reading.position < info.end:
            event = await reading.receive()
            if isinstance(event, Exit):
                break
            if isinstance(event, Gap):
                cutter = Cutter(event.end)
            if isinstance(event, Output):
                yield cutter.cut(event.data[: max(0, info.end - event.offset)], min(reading.position, info.end))
                reading.acknowledge()
        yield cutter.rest()


class suppressed:  # noqa: N801 - as contextlib.suppress
    """Suppresses a SandptyError of one reason."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        return isinstance(error, SandptyError) and error.reason.name == self._reason


def _answer(info: ProcessInfo) -> web.Response:
    return json_response({"pty": terminal_status(info)})
