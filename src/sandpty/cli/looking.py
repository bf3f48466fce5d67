"""`sandpty info`, `ps`, `logs`, `metrics`: what there is to know of one sandbox."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from sandpty.cli.connection import find_server, run_async, sandbox_argument, server_options
from sandpty.cli.json_output import json_option, print_json
from sandpty.wire.errors import SandptyError

if TYPE_CHECKING:
    from sandpty.sdk import AsyncClient, ProcessInfo

T = TypeVar("T")
MIB = 1024 * 1024


def _ask(url: str | None, data_dir: Path | None, question: Callable[[AsyncClient], Awaitable[T]]) -> T:
    server = find_server(url, data_dir)

    async def asked() -> T:
        from sandpty.sdk import AsyncClient

        async with AsyncClient(server.url, server.api_key) as client:
            return await question(client)

    return run_async(asked())


@click.command()
@server_options
@json_option
@sandbox_argument
def info(url: str | None, data_dir: Path | None, as_json: bool, sandbox_id: str) -> None:
    """Show what a sandbox is.

    \b
    Examples:
      sandpty info i0123456789abcdefghi
    """
    found = asdict(_ask(url, data_dir, lambda client: client.get_sandbox(sandbox_id)))
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        shown = " ".join(f"{key}={each}" for key, each in value.items()) if isinstance(value, dict) else value
        click.echo(f"{name.replace('_', ' '):12} {shown}")


@click.command()
@server_options
@json_option
@click.option("--all", "-a", "ended_too", is_flag=True, help="Also what has ended lately.")
@sandbox_argument
def ps(url: str | None, data_dir: Path | None, as_json: bool, ended_too: bool, sandbox_id: str) -> None:
    """List the processes that were started in a sandbox.

    \b
    Examples:
      sandpty ps i0123456789abcdefghi
      sandpty ps --all i0123456789abcdefghi
    """
    found = _ask(url, data_dir, lambda client: client.list_processes(sandbox_id))
    found = [each for each in found if ended_too or each.running]
    if as_json:
        print_json(found)
        return
    if not found:
        click.echo("nothing runs there (--all shows what has ended)", err=True)
        return
    print_processes(found)


def print_processes(found: list[ProcessInfo], *, err: bool = False) -> None:
    """A table, on stdout or stderr."""
    rows = [("PID", "KIND", "USER", "STATE", "OUTPUT", "COMMAND"), *map(_row, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        line = [*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]
        click.echo("  ".join(line), err=err)


def _row(process: ProcessInfo) -> tuple[str, ...]:
    from sandpty.sdk.terminal_values import exit_code_of

    state = "running" if process.running else f"exit {exit_code_of(process.exit)}"
    command = " ".join(process.argv).replace("\n", " ")[:80]
    kind = f"{process.cols}x{process.rows}" if process.pty else "pipes"
    return str(process.pid), kind, process.user, state, f"{process.log_end}", command


@click.command()
@server_options
@json_option
@sandbox_argument
def logs(url: str | None, data_dir: Path | None, as_json: bool, sandbox_id: str) -> None:
    """Show what has happened to a sandbox, its processes included.

    \b
    Examples:
      sandpty logs i0123456789abcdefghi
    """
    lines = _ask(url, data_dir, lambda client: client.sandbox_log(sandbox_id))
    if as_json:
        print_json(lines)
        return
    for line in lines:
        click.echo(f"{line.get('at', '')}  {line.get('level', ''):5}  {line.get('message', '')}")


@click.command()
@server_options
@json_option
@sandbox_argument
def metrics(url: str | None, data_dir: Path | None, as_json: bool, sandbox_id: str) -> None:
    """Show what a sandbox uses.

    \b
    Examples:
      sandpty metrics i0123456789abcdefghi
    """
    samples = _ask(url, data_dir, lambda client: client.sandbox_metrics(sandbox_id))
    if as_json:
        print_json(samples)
        return
    if not samples:
        raise SandptyError("conflict", f"nothing was measured in {sandbox_id} yet")
    last = samples[-1]
    click.echo(f"at         {last['at']}")
    click.echo(f"cpu        {last['cpu_pct']:.1f} %")
    for name in ("memory", "cache", "disk"):
        if (used := last.get(f"{name}_bytes")) is not None:
            click.echo(f"{name:10} {used / MIB:.1f} MiB")
    click.echo(f"processes  {last['processes']}")
