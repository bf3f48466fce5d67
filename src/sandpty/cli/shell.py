"""`sandpty shell`: a full interactive terminal in a sandbox, which one can leave and come back to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sandpty.cli.attaching import (
    Manner,
    converse,
    local_terminal,
    read_only_option,
    reconnect_option,
    running_terminals,
    status_of,
    terminal_env,
)
from sandpty.cli.completing import complete_sandboxes
from sandpty.cli.connection import Duration, Server, find_server, run_async, server_options
from sandpty.wire.errors import SandptyError

if TYPE_CHECKING:
    from sandpty.cli.conversation import Outcome
    from sandpty.cli.local_terminal import LocalTerminal
    from sandpty.sdk import AsyncClient, ProcessInfo

SANDBOX_TIMEOUT_S = 8 * 3600.0
LOGIN_SHELL = ("/bin/bash", "-l")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What was asked for on the command line."""

    sandbox_id: str | None
    template: str
    timeout_s: float
    user: str | None
    cwd: str
    command: str | None
    pid: int | None
    new: bool
    read_only: bool
    keep: bool
    reconnect_timeout_s: float


@click.command()
@server_options
@click.argument("sandbox_id", metavar="[ID]", required=False, shell_complete=complete_sandboxes)
@click.option("--template", "-t", metavar="NAME", default="base", show_default=True, help="Without ID: made from.")
@click.option(
    "--timeout",
    "timeout_s",
    type=Duration(),
    metavar="TIME",
    default=SANDBOX_TIMEOUT_S,
    help="Without ID: how long the new sandbox lives. [default: 8h]",
)
@click.option("--keep", is_flag=True, help="Without ID: keep the sandbox when its shell has ended.")
@click.option("--user", "-u", metavar="NAME", help="Who starts a new program. [default: user]")
@click.option("--cwd", metavar="DIR", default="", help="Where a new program starts. [default: home]")
@click.option("--cmd", "command", metavar="COMMAND", help="Run this instead of a login shell.")
@click.option("--new", is_flag=True, help="Start a new program even when a terminal is there to come back to.")
@click.option("--pid", type=click.IntRange(1), metavar="PID", help="Come back to this process of the sandbox.")
@read_only_option
@reconnect_option
def shell(
    *,
    url: str | None,
    data_dir: Path | None,
    sandbox_id: str | None,
    template: str,
    timeout_s: float,
    keep: bool,
    user: str | None,
    cwd: str,
    command: str | None,
    new: bool,
    pid: int | None,
    read_only: bool,
    reconnect_timeout_s: float,
) -> None:
    """Open a terminal in a sandbox; without ID, in a new one.

    With ID it comes back to the newest terminal that runs there and shows what you missed; when there is none, it
    starts a login shell.

    \b
    Keys, after Enter:
      ~.   detach: the program goes on, `sandpty shell ID` comes back to it
      ~^Z  suspend, as other jobs of the local shell
      ~?   help
      ~~   a tilde

    The exit status is the program's; after detaching 0. A sandbox made by this command ends with its shell, unless you
    detached or said --keep.

    \b
    Examples:
      sandpty shell
      sandpty shell i0123456789abcdefghi
      sandpty shell i0123456789abcdefghi --cmd 'vim notes' --user root
      sandpty shell i0123456789abcdefghi --pid 42 --read-only
    """
    if pid is not None and (new or command is not None):
        raise click.UsageError("--pid comes back to a process; --new and --cmd start one", click.get_current_context())
    if sandbox_id is None and (pid is not None or read_only):
        raise click.UsageError("--pid and --read-only need an ID", click.get_current_context())
    wish = Wish(
        sandbox_id=sandbox_id,
        template=template,
        timeout_s=timeout_s,
        user=user,
        cwd=cwd,
        command=command,
        pid=pid,
        new=new,
        read_only=read_only,
        keep=keep,
        reconnect_timeout_s=reconnect_timeout_s,
    )
    raise SystemExit(run_async(_shell(find_server(url, data_dir), wish)))


async def _shell(server: Server, wish: Wish) -> int:
    """The exit status."""
    from sandpty.sdk import AsyncClient

    local = local_terminal()
    async with AsyncClient(server.url, server.api_key) as client:
        if wish.sandbox_id is not None:
            return await _stay(client, wish.sandbox_id, wish, local, made_here=False)
        sandbox = await client.create_sandbox(wish.template, timeout_s=wish.timeout_s)
        return await _stay(client, sandbox.id, wish, local, made_here=True)


async def _stay(client: AsyncClient, sandbox_id: str, wish: Wish, local: LocalTerminal, *, made_here: bool) -> int:
    from sandpty.cli.conversation import Detached

    ended = False
    try:
        try:
            outcome = await _converse(client, sandbox_id, wish, local)
        except SandptyError as error:
            # A shell that never started leaves nothing to come back to; a lost connection does.
            ended = error.reason.name not in ("server_unreachable", "agent_unreachable", "supervisor_down")
            raise
        ended = not isinstance(outcome, Detached)
    finally:
        if made_here and ended and not wish.keep:
            await _end(client, sandbox_id)
    return status_of(outcome, f"sandpty shell {sandbox_id}")


async def _end(client: AsyncClient, sandbox_id: str) -> None:
    try:
        await client.kill_sandbox(sandbox_id)
    except SandptyError as error:
        if error.reason.name != "no_such_sandbox":
            click.echo(f"sandpty: {sandbox_id} lives on until its deadline: {error.message}", err=True)


async def _converse(client: AsyncClient, sandbox_id: str, wish: Wish, local: LocalTerminal) -> Outcome:
    found = await _find(client, sandbox_id, wish)
    process = found.process if found else await _start(client, sandbox_id, wish, local)
    manner = Manner(read_only=wish.read_only, fresh=not found, reconnect_timeout_s=wish.reconnect_timeout_s)
    return await converse(client, sandbox_id, process, local, manner)


async def _find(client: AsyncClient, sandbox_id: str, wish: Wish) -> ProcessInfo | None:
    """The process to come back to; None: start one."""
    if wish.pid is not None:
        return await client.get_process(sandbox_id, f"pid:{wish.pid}")
    if wish.sandbox_id is None or wish.new or wish.command is not None:
        return None
    if running := await running_terminals(client, sandbox_id):
        return running[-1]
    if wish.read_only:
        raise SandptyError("no_such_process", f"no terminal runs in {sandbox_id} to look at")
    return None


async def _start(client: AsyncClient, sandbox_id: str, wish: Wish, local: LocalTerminal) -> int:
    """Start what was asked for in a terminal of the local one's size."""
    argv = list(LOGIN_SHELL) if wish.command is None else [*LOGIN_SHELL, "-c", wish.command]
    started = await client.start_process(
        sandbox_id, argv, env=terminal_env(), user=wish.user or "", cwd=wish.cwd, pty=local.size(), tag="shell"
    )
    return started.process
