"""`sandpty exec`: one command in a sandbox, as if it ran here: streams, exit status, signals."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import click

from sandpty.cli.attaching import Manner, converse, local_terminal, reconnect_option, status_of, terminal_env
from sandpty.cli.connection import Duration, Pair, find_server, run_async, sandbox_argument, server_options
from sandpty.wire.errors import SandptyError

if TYPE_CHECKING:
    from sandpty.cli.connection import Server
    from sandpty.sdk import Client, Terminal

READ_BYTES = 64 * 1024
LOG_BYTES = 16 * 1024 * 1024  # what it may say while the connection is away
SIGNAL_RETRY_S = 0.5  # while the server is away
FORWARDED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")


@click.command(
    name="exec",
    short_help="Run a command in a sandbox, as if it ran here.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
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
    server = find_server(url, data_dir)
    if in_terminal:
        raise SystemExit(run_async(_execute_in_terminal(server, sandbox_id, wish, reconnect_timeout_s)))
    raise SystemExit(_execute(server, sandbox_id, {**wish, "stdin": not no_stdin}, reconnect_timeout_s))


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


def _execute(server: Server, sandbox_id: str, wish: dict[str, Any], reconnect_timeout_s: float) -> int:
    # The blocking client: an event loop alone takes a tenth of the time that all this may take.
    from sandpty.cli.signals import caught
    from sandpty.sdk import Client, Terminal

    with Client(server.url, server.api_key) as client:
        view = client.start_attached(sandbox_id, **wish)
        terminal = Terminal(client, sandbox_id, view, reconnect_timeout_s=reconnect_timeout_s)
        signals = _Signals(client, sandbox_id)
        # From before the command runs: what comes meanwhile is for it.
        with caught(FORWARDED, signals.take), terminal:
            signals.pass_to(terminal.info.process)
            if wish["stdin"]:
                # A thread that nobody waits for: a read of a terminal ends only when somebody types.
                threading.Thread(target=_pass_input, args=(terminal,), daemon=True).start()
            return _pass_output(terminal)


def _pass_output(terminal: Terminal) -> int:
    """Until the end; the exit status."""
    from sandpty.sdk.values import exit_status
    from sandpty.wire.frames import Exit, Gap, Output, Stream

    for event in terminal:
        match event:
            case Output():
                _write(2 if event.stream == Stream.STDERR else 1, event.data)
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


def _pass_input(terminal: Terminal) -> None:
    """What comes in here goes to the command; its end too."""
    with contextlib.suppress(SandptyError):  # it has ended, or closed its input: the output's side tells how
        while chunk := _read():
            terminal.send_input(chunk)
        terminal.close_stdin()


def _read() -> bytes:
    """Empty at the end, and when there is no stdin."""
    try:
        return os.read(sys.stdin.fileno(), READ_BYTES) if sys.stdin else b""
    except OSError:
        return b""


class _Signals:
    """Signals that would end us go to the command instead; its end is ours."""

    def __init__(self, client: Client, sandbox_id: str) -> None:
        self._client = client
        self._sandbox_id = sandbox_id
        self._process = 0
        self._names: SimpleQueue[str] = SimpleQueue()

    def take(self, name: str) -> None:
        """In a signal handler. Who asks twice before the command has begun does not want it any more."""
        if not self._process and not self._names.empty():
            raise KeyboardInterrupt
        self._names.put(name)

    def pass_to(self, process: int) -> None:
        """What came, and what comes."""
        self._process = process
        threading.Thread(target=self._pass, daemon=True).start()

    def _pass(self) -> None:
        while True:
            name = self._names.get()
            try:
                self._client.signal_process(self._sandbox_id, self._process, name, target="tree")
            except SandptyError as error:
                if error.reason.name == "server_unreachable":  # it comes back, or the output's side gives up
                    self._names.put(name)
                    time.sleep(SIGNAL_RETRY_S)
