"""Requests about processes without attaching to them: list, stat, wait, signal, resize, type.

Every function opens a connection to the agent's socket, asks, and closes. All raise SandptyError: no_such_process,
agent_unreachable, agent_misbehaved, and what their docstring names.
"""

from __future__ import annotations

import asyncio
import math

from sandpty import config
from sandpty.terminal.attachment import check_window_size
from sandpty.terminal.connection import AgentConnection
from sandpty.wire import frames
from sandpty.wire.errors import SandptyError
from sandpty.wire.frames import NO_OFFSET, Done, Exit, FromAgent, ProcessInfo, Selector, Target


async def _ask(socket: str, request: bytes, takes_s: float | None = 0.0) -> FromAgent:
    """One question, one answer. `takes_s`: how long the agent may work on it (None: without limit)."""
    async with await AgentConnection.open(socket, request) as connection:
        return await connection.reply(None if takes_s is None else takes_s + config.AGENT_REPLY_TIMEOUT_S)


async def _done(socket: str, request: bytes, takes_s: float | None = 0.0) -> None:
    reply = await _ask(socket, request, takes_s)
    if not isinstance(reply, Done):
        raise SandptyError("agent_misbehaved", f"{type(reply).__name__} where DONE was due")


def _size_bytes(info: ProcessInfo) -> int:
    return sum(len(item) + 8 for item in info.argv) + sum(len(key) + len(value) + 8 for key, value in info.env.items())


async def list_processes(socket: str) -> list[ProcessInfo]:
    """Running processes and kept ended ones, oldest first; at most PROCESSES_LISTED_MAX."""
    found: list[ProcessInfo] = []
    size_bytes = 0
    async with await AgentConnection.open(socket, frames.encode_list()) as connection:
        try:
            async with asyncio.timeout(config.AGENT_REPLY_TIMEOUT_S):
                while not isinstance(reply := await connection.reply(None), Done):
                    if not isinstance(reply, ProcessInfo) or len(found) >= config.PROCESSES_LISTED_MAX:
                        raise SandptyError("agent_misbehaved", "the agent's list of processes is not one")
                    size_bytes += _size_bytes(reply)
                    if size_bytes > config.PROCESSES_LISTED_BYTES:
                        raise SandptyError("limit", "arguments and environments are too big to list")
                    found.append(reply)
        except TimeoutError as error:
            raise SandptyError("agent_unreachable", "the sandbox does not finish its list of processes") from error
    return found


async def stat(socket: str, selector: Selector) -> ProcessInfo:
    reply = await _ask(socket, frames.encode_stat(selector))
    if not isinstance(reply, ProcessInfo):
        raise SandptyError("agent_misbehaved", f"{type(reply).__name__} where PROCESS was due")
    return reply


async def wait(socket: str, selector: Selector, timeout_s: float | None = None) -> Exit:
    """The exit status once there is one. Raises `timeout` after `timeout_s` (None: waits without limit)."""
    timeout_ms = frames.NEVER_MS if timeout_s is None else min(math.ceil(timeout_s * 1000), frames.NEVER_MS - 1)
    reply = await _ask(socket, frames.encode_wait(selector, timeout_ms), timeout_s)
    if not isinstance(reply, Exit):
        raise SandptyError("agent_misbehaved", f"{type(reply).__name__} where EXIT was due")
    return reply


async def signal(socket: str, selector: Selector, signal: int, target: Target = Target.LEADER) -> None:
    """Send a signal. SIGKILL returns once everything it was aimed at is gone. Raises exited, bad_argument."""
    await _done(socket, frames.encode_signal_process(selector, signal, target))


async def resize(socket: str, selector: Selector, cols: int, rows: int) -> None:
    """Raises bad_window_size, not_a_pty, exited."""
    check_window_size(cols, rows)
    await _done(socket, frames.encode_resize_process(selector, cols, rows))


async def send_input(socket: str, selector: Selector, stream: int, data: bytes, offset: int = NO_OFFSET) -> None:
    """Type `data` (stream: 0 PTY, 1 stdin, 2 whichever); returns when the program's side took it, however long that
    takes: a full pipe is the program's backpressure. Raises not_a_pty, not_a_pipe, stdin_closed, exited.
    """
    for at in range(0, len(data) or 1, config.INPUT_CHUNK_BYTES):
        chunk = data[at : at + config.INPUT_CHUNK_BYTES]
        number = NO_OFFSET if offset == NO_OFFSET else offset + at
        await _done(socket, frames.encode_input_process(selector, stream, chunk, number), takes_s=None)


async def close_stdin(socket: str, selector: Selector) -> None:
    """End of input for a pipe process; repeating is fine. Raises not_a_pipe for a PTY."""
    await _done(socket, frames.encode_close_stdin_process(selector))
