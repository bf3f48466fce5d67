"""`sandpty exec`: one command in a sandbox, as if it ran here: streams, exit status, signals."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sandpty.cli.attaching import Manner, converse, local_terminal, reconnect_option, status_of, terminal_env
from sandpty.cli.connection import Duration, Pair, find_server, run_async, sandbox_argument, server_options
from sandpty.wire.errors import SandptyError

if TYPE_CHECKING:
    import asyncio

    from sandpty.cli.connection import Server
    from sandpty.sdk import AsyncClient, AsyncTerminal

READ_BYTES = 64 * 1024
LOG_BYTES = 16 * 1024 * 1024  # what it may say while the connection is away
SIGNAL_RETRY_S = 0.5  # while the server is away
FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")


@click.command(name="exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@server_options
@click.option("-e", "--env", "envs", type=Pair(), multiple=True, metavar="NAME=VALUE", help="Environment; repeatable.")
@click.option("--user", "-u", metavar="NAME", help="Whose process it is. [default: user]")
@click.option("--cwd", metavar="DIR", default="", help="Where it starts. [default: the user's home]")
@click.option("--timeout", "timeout_s", type=Duration(), default=0.0, metavar="TIME", help="Kill it after this long.")
@click.option("--no-stdin", is_flag=True, help="Give it an empty input instead of this one.")
@click.option("--tty", "-t", "in_terminal", is_flag=True, help="Give it a terminal: for editors, top, prompts.")
@reconnect_option
@sandbox_argument
@click.argument("command", metavar="[--] COMMAND [ARG]...", nargs=-1, required=True, type=click.UNPROCESSED)
def exec_(
    *,
    url: str | None,
    data_dir: Path | None,
    envs: tuple[tuple[str, str], ...],
    user: str | None,
    cwd: str,
    timeout_s: float,
    no_stdin: bool,
    in_terminal: bool,
    reconnect_timeout_s: float,
    sandbox_id: str,
    command: tuple[str, ...],
) -> None:
    """Run a command in a sandbox with this terminal's input and outputs.

    Ends with the command's exit status (128 + the signal's number when a signal ended it, 124 at --timeout). Ctrl-C and
    other signals go to the command. A connection that breaks is made again, and nothing is lost. With -t the command
    has a terminal that is this one, as in `sandpty shell`: Enter ~ . detaches, `sandpty attach` comes back.

    \b
    Examples:
      sandpty exec i0123456789abcdefghi uname -a
      sandpty exec i0123456789abcdefghi -- sh -c 'exit 7'
      sandpty exec -t i0123456789abcdefghi vim notes
      tar c . | sandpty exec i0123456789abcdefghi -- tar x
    """
    if command and command[0] == "--":
        command = command[1:]
    if not command:
        raise click.UsageError("name a command", click.get_current_context())
    if in_terminal and no_stdin:
        raise click.UsageError("-t joins both terminals; --no-stdin has no part in it", click.get_current_context())
    wish: dict[str, Any] = {
        "argv": list(command),
        "env": dict(envs),
        "user": user or "",
        "cwd": cwd,
        "deadline_s": timeout_s,
        "log_bytes": LOG_BYTES,
    }
    execute = _execute_in_terminal if in_terminal else _execute
    server = find_server(url, data_dir)
    raise SystemExit(run_async(execute(server, sandbox_id, {**wish, "stdin": not no_stdin}, reconnect_timeout_s)))


async def _execute_in_terminal(
    server: Server, sandbox_id: str, wish: dict[str, Any], reconnect_timeout_s: float
) -> int:
    from sandpty.sdk import AsyncClient

    local = local_terminal()
    wish = {**wish, "env": {**terminal_env(), **wish["env"]}, "pty": local.size(), "tag": "exec"}
    async with AsyncClient(server.url, server.api_key) as client:
        started = await client.start_process(sandbox_id, **wish)
        manner = Manner(fresh=True, reconnect_timeout_s=reconnect_timeout_s)
        outcome = await converse(client, sandbox_id, started.process, local, manner)
    return status_of(outcome, f"sandpty attach {sandbox_id} {started.pid}")


async def _execute(server: Server, sandbox_id: str, wish: dict[str, Any], reconnect_timeout_s: float) -> int:
    import asyncio

    from sandpty.cli.signals import handled
    from sandpty.sdk import AsyncClient, AsyncTerminal
    from sandpty.wire.frames import From

    signals: asyncio.Queue[str] = asyncio.Queue()
    # From before the command runs: what comes meanwhile is for it.
    with handled(FORWARDED, signals.put_nowait):
        async with AsyncClient(server.url, server.api_key) as client:
            started = await client.start_process(sandbox_id, **wish)
            terminal = AsyncTerminal(
                client, sandbox_id, started.process, origin=From.OFFSET, reconnect_timeout_s=reconnect_timeout_s
            )
            async with terminal:
                others = [_pass_signals(client, sandbox_id, started.process, signals)]
                if wish["stdin"]:
                    others.append(_pass_input(terminal))
                return await _pass_output_beside(terminal, others)


async def _pass_output_beside(terminal: AsyncTerminal, others: Sequence[Coroutine[Any, Any, None]]) -> int:
    """Until the end of the output, which ends the others; the exit status."""
    import asyncio

    beside = [asyncio.create_task(other) for other in others]
    try:
        return await _pass_output(terminal)
    finally:
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)


async def _pass_output(terminal: AsyncTerminal) -> int:
    """Until the end; the exit status."""
    import asyncio

    from sandpty.sdk.values import exit_status
    from sandpty.wire.frames import Exit, Gap, Output, Stream

    loop = asyncio.get_running_loop()
    async for event in terminal:
        match event:
            case Output():
                descriptor = 2 if event.stream == Stream.STDERR else 1
                await loop.run_in_executor(None, _write, descriptor, event.data)
            case Gap():
                lost = event.end - event.start
                click.echo(f"sandpty: {lost} bytes of output are gone: the log keeps only the newest", err=True)
            case Exit():
                return exit_status(event)
    raise AssertionError("a process's events end with Exit")


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


async def _pass_input(terminal: AsyncTerminal) -> None:
    """What comes in here goes to the command; its end too."""
    import asyncio

    chunks: asyncio.Queue[bytes] = asyncio.Queue(1)
    loop = asyncio.get_running_loop()
    # A thread of its own that nobody waits for: a read of a terminal ends only when somebody types.
    threading.Thread(target=_read_all, args=(chunks, loop), daemon=True).start()
    with contextlib.suppress(SandptyError):  # it has ended, or closed its input: the output's side tells how
        while chunk := await chunks.get():
            await terminal.send_input(chunk)
        await terminal.close_stdin()


def _read_all(chunks: asyncio.Queue[bytes], loop: asyncio.AbstractEventLoop) -> None:
    import asyncio

    with contextlib.suppress(OSError, RuntimeError):  # no stdin, or the loop has ended
        chunk = b"-"
        while chunk:
            chunk = os.read(sys.stdin.fileno(), READ_BYTES)
            asyncio.run_coroutine_threadsafe(chunks.put(chunk), loop).result()


async def _pass_signals(client: AsyncClient, sandbox_id: str, process: int, signals: asyncio.Queue[str]) -> None:
    """Signals that would end us go to the command instead; its end is ours."""
    import asyncio

    while True:
        name = await signals.get()
        try:
            await client.signal_process(sandbox_id, process, name, target="tree")
        except SandptyError as error:
            if error.reason.name == "server_unreachable":  # it comes back, or the output's side gives up
                signals.put_nowait(name)
                await asyncio.sleep(SIGNAL_RETRY_S)
