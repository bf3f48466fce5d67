"""`sandpty attach`: back to a terminal of a sandbox, whoever started it."""

from __future__ import annotations

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
)
from sandpty.cli.completing import complete_terminals
from sandpty.cli.connection import find_server, run_async, sandbox_argument, server_options
from sandpty.wire.errors import SandptyError

if TYPE_CHECKING:
    from sandpty.cli.connection import Server
    from sandpty.sdk import AsyncClient, ProcessInfo


@click.command()
@server_options
@read_only_option
@click.option("--from-start", is_flag=True, help="Show all that is kept of its output first, not the present screen.")
@reconnect_option
@sandbox_argument
@click.argument("process", metavar="[PROCESS]", required=False, shell_complete=complete_terminals)
def attach(
    *,
    url: str | None,
    data_dir: Path | None,
    read_only: bool,
    from_start: bool,
    reconnect_timeout_s: float,
    sandbox_id: str,
    process: str | None,
) -> None:
    """Come back to a terminal of a sandbox.

    PROCESS is its pid in the sandbox (`sandpty ps` shows it) or `tag:TAG`. Without it: the only terminal that runs
    there; when there are several they are listed, with status 2. Several people can be attached to one terminal. Keys,
    detaching and the exit status are those of `sandpty shell`. A program that has ended lately shows what it said, and
    its exit status.

    \b
    Examples:
      sandpty attach i0123456789abcdefghi
      sandpty attach i0123456789abcdefghi 42 --read-only
      sandpty attach i0123456789abcdefghi tag:build --from-start
    """
    manner = Manner(read_only=read_only, fresh=from_start, reconnect_timeout_s=reconnect_timeout_s)
    raise SystemExit(run_async(_attach(find_server(url, data_dir), sandbox_id, process, manner)))


async def _attach(server: Server, sandbox_id: str, process: str | None, manner: Manner) -> int:
    from sandpty.sdk import AsyncClient

    local = local_terminal()
    async with AsyncClient(server.url, server.api_key) as client:
        found = await (_named(client, sandbox_id, process) if process else _only(client, sandbox_id))
        if not found.pty:
            raise SandptyError("not_a_pty", f"process {found.pid} has pipes and no terminal to attach to")
        outcome = await converse(client, sandbox_id, found.process, local, manner)
    return status_of(outcome, f"sandpty attach {sandbox_id} {found.pid}")


async def _named(client: AsyncClient, sandbox_id: str, process: str) -> ProcessInfo:
    if not process.startswith(("tag:", "pid:")):
        if not (process.isascii() and process.isdigit()):
            raise SandptyError("bad_argument", f"{process!r} is not the pid of a process, nor tag:TAG")
        process = f"pid:{process}"
    return await client.get_process(sandbox_id, process)


async def _only(client: AsyncClient, sandbox_id: str) -> ProcessInfo:
    found = await running_terminals(client, sandbox_id)
    if len(found) == 1:
        return found[0]
    if not found:
        raise SandptyError(
            "no_such_process", f"no terminal runs in {sandbox_id}; sandpty shell {sandbox_id} starts one"
        )
    from sandpty.cli.looking import print_processes

    print_processes(found, err=True)
    raise SandptyError("bad_argument", f"{len(found)} terminals run in {sandbox_id}: name one by its pid")
