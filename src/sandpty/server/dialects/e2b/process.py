"""The unary methods of E2B's process.Process. Facts of the protocol and of envd's behaviour: docs/reference/e2b.md."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec
from aiohttp import web

from sandpty.server.context import Context
from sandpty.server.dialects.e2b import models
from sandpty.server.dialects.e2b.connect import (
    decode_message,
)
from sandpty.server.dialects.e2b.selecting import (
    input_of,
    process_error,
    selector_of,
    signal_of,
    type_into,
    window_size,
)
from sandpty.server.dialects.e2b.starting import listed
from sandpty.server.dialects.e2b.unary import UnaryMethod, unary
from sandpty.terminal import control
from sandpty.wire import interpreter
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import ProcessFlags, Target
from sandpty.wire.verbs import Sandbox

Method = Callable[[Sandbox, bytes], Awaitable[msgspec.Struct | None]]
_SIGKILL = 9


def routes(context: Context) -> list[web.RouteDef]:
    methods: dict[str, Method] = {
        "List": list_processes,
        "SendInput": send_input,
        "SendSignal": send_signal,
        "Update": update,
        "CloseStdin": close_stdin,
    }
    return [
        web.post(f"/process.Process/{name}", unary(context, _of_sandbox(method))) for name, method in methods.items()
    ]


def _of_sandbox(method: Method) -> UnaryMethod:
    """A method that needs nothing of the request but its message."""
    return lambda sandbox, _, body: method(sandbox, body)


async def list_processes(sandbox: Sandbox, _: bytes) -> models.ListReply:
    processes = await control.list_processes(sandbox.socket)
    return models.ListReply(
        [
            listed(info, sandbox)
            for info in processes
            if info.flags & ProcessFlags.RUNNING and info.tag != interpreter.TAG
        ]
    )


async def send_input(sandbox: Sandbox, body: bytes) -> None:
    request = decode_message(body, models.SendInputRequest)
    selector = selector_of(request.process)
    stream, data = input_of(request.input)
    await type_into(sandbox.socket, selector, stream, data)


async def send_signal(sandbox: Sandbox, body: bytes) -> None:
    """KILL takes the whole tree and answers once all of it is reaped; E2B kills only the leader."""
    request = decode_message(body, models.SendSignalRequest)
    selector, signal = selector_of(request.process), signal_of(request.signal)
    target = Target.TREE if signal == _SIGKILL else Target.LEADER
    try:
        await control.signal(sandbox.socket, selector, signal, target)
    except SandptyError as error:
        raise process_error(error, selector, "signal") from error


async def update(sandbox: Sandbox, body: bytes) -> None:
    request = decode_message(body, models.UpdateRequest)
    selector = selector_of(request.process)
    try:
        if request.pty is None:  # nothing to change, but the process must be there
            if not (await control.stat(sandbox.socket, selector)).flags & ProcessFlags.RUNNING:
                raise SandptyError("exited", "the process has ended")
            return
        cols, rows = window_size(request.pty.size)
        await control.resize(sandbox.socket, selector, cols, rows)
    except SandptyError as error:
        raise process_error(error, selector, "resize") from error


async def close_stdin(sandbox: Sandbox, body: bytes) -> None:
    request = decode_message(body, models.SelectedRequest)
    selector = selector_of(request.process)
    try:
        await control.close_stdin(sandbox.socket, selector)
    except SandptyError as error:
        raise process_error(error, selector, "close") from error
