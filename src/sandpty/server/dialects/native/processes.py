"""/v1/sandboxes/{id}/processes: start, list, look, signal, resize, wait."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from aiohttp import web

from sandpty import config
from sandpty.server.context import Context
from sandpty.server.dialects.native.answers import PROCESS, SANDBOX, answering, body, number, principal
from sandpty.server.dialects.native.models import SignalBody, StartBody, WindowSize, exit_json, process_json
from sandpty.server.guest_defaults import default_cwd, default_env, default_user
from sandpty.terminal import attachment, control
from sandpty.terminal.attachment import check_window_size
from sandpty.terminal.signals import signal_number
from sandpty.wire.errors import SandptyError
from sandpty.wire.first_shell import TERMINAL
from sandpty.wire.frames import Selector, Start, StartFlags, Target
from sandpty.wire.verbs import Sandbox


def selector(request: web.Request) -> Selector:
    """`{process}` of the path: our process id, `pid:<n>` or `tag:<t>`. Raises bad_request."""
    raw = request.match_info["process"]
    kind, colon, value = raw.partition(":")
    if colon and kind == "tag":
        return Selector.tagged(value)
    digits = value if colon and kind == "pid" else raw
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 19):
        raise SandptyError("bad_request", "name a process by its id, by pid:<guest pid> or by tag:<tag>")
    return Selector.pid(int(digits)) if colon else Selector.process(int(digits))


_ANY_STREAM = 2  # the terminal, or the stdin pipe: whichever the process has


def start_request(sandbox: Sandbox, wanted: StartBody) -> Start:
    """Raises bad_argument, bad_window_size."""
    if not wanted.argv or any("\0" in item for item in wanted.argv):
        raise SandptyError("bad_argument", "argv needs at least a program, and no NUL characters")
    if not 0 <= wanted.deadline_s <= config.TIMEOUT_MAX_S:
        raise SandptyError("bad_timeout", f"deadline_s must be between 0 and {config.TIMEOUT_MAX_S}")
    if not 0 <= wanted.log_bytes <= config.PROCESS_LOG_MAX_BYTES:
        raise SandptyError("bad_argument", f"log_bytes must be between 0 and {config.PROCESS_LOG_MAX_BYTES}")
    flags = StartFlags(0)
    if wanted.pty is not None:
        check_window_size(wanted.pty.cols, wanted.pty.rows)
        flags = StartFlags.PTY
    elif wanted.stdin:
        flags = StartFlags.STDIN
    terminal = TERMINAL if wanted.pty else {}
    return Start(
        argv=wanted.argv,
        env={**terminal, **default_env(sandbox), **wanted.env},
        user=wanted.user or default_user(sandbox),
        cwd=wanted.cwd or default_cwd(sandbox),
        tag=wanted.tag,
        flags=flags,
        cols=wanted.pty.cols if wanted.pty else 0,
        rows=wanted.pty.rows if wanted.pty else 0,
        log_bytes=wanted.log_bytes,
        deadline_ms=math.ceil(wanted.deadline_s * 1000),
    )


class Processes:
    def __init__(self, context: Context) -> None:
        self._context = context

    def routes(self) -> Sequence[web.AbstractRouteDef]:
        return [
            web.post(SANDBOX + "/processes", self.start),
            web.get(SANDBOX + "/processes", self.list),
            web.get(PROCESS, self.get),
            web.post(PROCESS + "/signal", self.signal),
            web.post(PROCESS + "/resize", self.resize),
            web.post(PROCESS + "/input", self.send_input),
            web.post(PROCESS + "/close-stdin", self.close_stdin),
            web.get(PROCESS + "/wait", self.wait),
        ]

    async def _sandbox(self, request: web.Request) -> Sandbox:
        who = principal(self._context, request)
        return await self._context.registry.awake(request.match_info["sandbox"], who)

    @answering
    async def start(self, request: web.Request) -> web.Response:
        sandbox = await self._sandbox(request)
        wanted = start_request(sandbox, await body(request, StartBody))
        wanted = replace(wanted, flags=wanted.flags | StartFlags.REPLY_ONLY)
        started = await attachment.start_detached(sandbox.socket, wanted)
        return web.json_response({"process": started.process, "pid": started.pid}, status=201)

    @answering
    async def list(self, request: web.Request) -> web.Response:
        found = await control.list_processes((await self._sandbox(request)).socket)
        return web.json_response({"processes": [process_json(info) for info in found]})

    @answering
    async def get(self, request: web.Request) -> web.Response:
        return web.json_response(
            process_json(await control.stat((await self._sandbox(request)).socket, selector(request)))
        )

    @answering
    async def signal(self, request: web.Request) -> web.Response:
        sandbox = await self._sandbox(request)
        wanted = await body(request, SignalBody)
        target = Target[wanted.target.upper()]
        if isinstance(wanted.signal, str) and wanted.signal.isdigit():
            raise SandptyError("bad_argument", "a signal is a name or a number, not a number in quotes")
        await control.signal(sandbox.socket, selector(request), signal_number(wanted.signal), target)
        return web.Response(status=204)

    @answering
    async def resize(self, request: web.Request) -> web.Response:
        sandbox = await self._sandbox(request)
        wanted = await body(request, WindowSize)
        await control.resize(sandbox.socket, selector(request), wanted.cols, wanted.rows)
        return web.Response(status=204)

    @answering
    async def send_input(self, request: web.Request) -> web.Response:
        """The body as it is; answered once the program's side took it: a full pipe is the program's backpressure."""
        sandbox = await self._sandbox(request)
        try:
            data = await request.read()
        except web.HTTPRequestEntityTooLarge as error:
            raise SandptyError("too_large", "input is over 1 MiB; send it in parts, or attach") from error
        await control.send_input(sandbox.socket, selector(request), _ANY_STREAM, data)
        return web.Response(status=204)

    @answering
    async def close_stdin(self, request: web.Request) -> web.Response:
        sandbox = await self._sandbox(request)
        await control.close_stdin(sandbox.socket, selector(request))
        return web.Response(status=204)

    @answering
    async def wait(self, request: web.Request) -> web.Response:
        sandbox = await self._sandbox(request)
        timeout_s = number(request, "timeout_s", config.WAIT_DEFAULT_S, config.WAIT_MAX_S)
        return web.json_response(exit_json(await control.wait(sandbox.socket, selector(request), timeout_s)))
