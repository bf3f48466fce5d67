"""`sandpty exec`: one command in a sandbox, as if it ran here: streams, exit status, signals."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sandpty.cli.connection import Duration, Pair, find_server, run_async, server_options
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
@click.argument("sandbox_id", metavar="ID")
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
    sandbox_id: str,
    command: tuple[str, ...],
) -> None:
    """Run a command in a sandbox with this terminal's input and outputs.

    Ends with the command's exit status (128 + the signal's number when a signal ended it, 124 at --timeout). Ctrl-C and
    other signals go to the command. A connection that breaks is made again, and nothing is lost. For programs that need
    a terminal there is `sandpty shell ID --cmd`.

    \b
    Examples:
      sandpty exec i0123456789abcdefghi uname -a
      sandpty exec i0123456789abcdefghi -- sh -c 'exit 7'
      tar c . | sandpty exec i0123456789abcdefghi -- tar x
    """
    if command and command[0] == "--":
        command = command[1:]
    if not command:
        raise click.UsageError("name a command", click.get_current_context())
    wish: dict[str, Any] = {
        "argv": list(command),
        "env": dict(envs),
        "user": user or "",
        "cwd": cwd,
        "deadline_s": timeout_s,
        "stdin": not no_stdin,
        "log_bytes": LOG_BYTES,
    }
    raise SystemExit(run_async(_execute(find_server(url, data_dir), sandbox_id, wish)))


async def _execute(server: Server, sandbox_id: str, wish: dict[str, Any]) -> int:
    import asyncio

    from sandpty.sdk import AsyncClient, AsyncTerminal
    from sandpty.wire.frames import From

    async with AsyncClient(server.url, server.api_key) as client:
        signals: asyncio.Queue[str] = asyncio.Queue()
        for name in FORWARDED:  # from before the command runs: what comes meanwhile is for it
            asyncio.get_running_loop().add_signal_handler(getattr(signal, name), signals.put_nowait, name)
        started = await client.start_process(sandbox_id, **wish)
        async with AsyncTerminal(client, sandbox_id, started.process, origin=From.OFFSET) as terminal:
            beside = [asyncio.create_task(_pass_signals(client, sandbox_id, started.process, signals))]
            if wish["stdin"]:
                beside.append(asyncio.create_task(_pass_input(terminal)))
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
