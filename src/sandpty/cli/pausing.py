"""`sandpty pause`, `resume`, `snapshot`, `snapshots`, `fork`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sandpty.cli.completing import complete_sandboxes
from sandpty.cli.connection import Duration, find_server, run_async, sandbox_argument, server_options
from sandpty.cli.json_output import json_option, print_json
from sandpty.cli.sandboxes import DEFAULT_TIMEOUT_S, do_each, printable
from sandpty.wire.errors import SandptyError

if TYPE_CHECKING:
    from sandpty.sdk import AsyncClient, SandboxInfo, Snapshot

_TIMEOUT = click.option(
    "--timeout",
    "timeout_s",
    type=Duration(),
    metavar="TIME",
    default=DEFAULT_TIMEOUT_S,
    help="How long it lives from now: seconds, or 90s, 10m, 2h, 1d. [default: 1h]",
)


@click.command()
@server_options
@click.option("--disk", is_flag=True, help="End the processes and keep only the files: frees the memory.")
@json_option
@click.argument("ids", metavar="ID...", nargs=-1, required=True, shell_complete=complete_sandboxes)
def pause(url: str | None, data_dir: Path | None, disk: bool, as_json: bool, ids: tuple[str, ...]) -> None:
    """Stop sandboxes where they are, until `sandpty resume`.

    Their processes are frozen and keep their memory. A paused sandbox has no end of life.

    \b
    Examples:
      sandpty pause i0123456789abcdefghi
      sandpty pause --disk i0123456789abcdefghi
    """

    async def do(client: AsyncClient, sandbox_id: str) -> object:
        return await client.pause_sandbox(sandbox_id, memory=not disk)

    do_each(find_server(url, data_dir), ids, do, as_json=as_json)


@click.command()
@server_options
@_TIMEOUT
@click.option("--restart", is_flag=True, help="Leave its memory behind: start again from the files.")
@json_option
@click.argument("ids", metavar="ID...", nargs=-1, required=True, shell_complete=complete_sandboxes)
def resume(
    *, url: str | None, data_dir: Path | None, timeout_s: float, restart: bool, as_json: bool, ids: tuple[str, ...]
) -> None:
    """Let paused sandboxes go on.

    \b
    Examples:
      sandpty resume i0123456789abcdefghi
      sandpty resume --timeout 8h i0123456789abcdefghi
    """

    async def do(client: AsyncClient, sandbox_id: str) -> object:
        return await client.resume_sandbox(sandbox_id, timeout_s=timeout_s, memory=not restart)

    do_each(find_server(url, data_dir), ids, do, as_json=as_json)


@click.command(short_help="Keep a sandbox's files, to make others from.")
@server_options
@click.option("--name", "-n", metavar="NAME", default="", help="What it is called; an older one of that name goes.")
@json_option
@sandbox_argument
def snapshot(url: str | None, data_dir: Path | None, name: str, as_json: bool, sandbox_id: str) -> None:
    """Keep a sandbox's files as they are now, and print the snapshot's ID.

    The sandbox goes on. `sandpty create --template` takes the ID or the name. Memory is not kept.

    \b
    Examples:
      sandpty snapshot i0123456789abcdefghi --name clean
      sandpty create --template clean
    """
    server = find_server(url, data_dir)

    async def made() -> Snapshot:
        from sandpty.sdk import AsyncClient

        async with AsyncClient(server.url, server.api_key) as client:
            return await client.snapshot_sandbox(sandbox_id, name=name)

    snapshot = run_async(made())
    if as_json:
        print_json(snapshot)
    else:
        click.echo(snapshot.id)


@click.command()
@server_options
@click.option("--delete", metavar="SNAPSHOT", multiple=True, help="Delete this one, by ID or name. Repeatable.")
@json_option
def snapshots(url: str | None, data_dir: Path | None, delete: tuple[str, ...], as_json: bool) -> None:
    """List snapshots, or delete some.

    Sandboxes that were made from a deleted snapshot go on; its bytes are freed with the last of them.

    \b
    Examples:
      sandpty snapshots
      sandpty snapshots --delete clean
    """
    server = find_server(url, data_dir)
    if delete:
        do_each(server, delete, lambda client, snapshot: client.delete_snapshot(snapshot), as_json=as_json)
        return

    async def listed() -> list[Snapshot]:
        from sandpty.sdk import AsyncClient

        async with AsyncClient(server.url, server.api_key) as client:
            return await client.list_snapshots()

    found = run_async(listed())
    if as_json:
        print_json(found)
        return
    for each in found:
        fields = (each.id, each.name or "-", each.sandbox, each.created_at, f"{each.size_bytes / 1e6:.1f} MB")
        click.echo("  ".join(printable(field) for field in fields))


@click.command(short_help="Make sandboxes with the files of one.")
@server_options
@_TIMEOUT
@click.option("--count", "-n", type=click.IntRange(1, 100), default=1, show_default=True, help="How many.")
@json_option
@sandbox_argument
def fork(
    *, url: str | None, data_dir: Path | None, timeout_s: float, count: int, as_json: bool, sandbox_id: str
) -> None:
    """Make sandboxes with the files that this one has now, and print their IDs.

    The sandbox goes on. Memory is not copied: the new ones begin with no processes of the old one.

    \b
    Examples:
      sandpty fork i0123456789abcdefghi
      sandpty fork --count 3 --timeout 10m i0123456789abcdefghi
    """
    server = find_server(url, data_dir)

    async def made() -> list[SandboxInfo | SandptyError]:
        from sandpty.sdk import AsyncClient

        async with AsyncClient(server.url, server.api_key) as client:
            return await client.fork_sandbox(sandbox_id, count=count, timeout_s=timeout_s)

    forks = sorted(run_async(made()), key=lambda each: isinstance(each, SandptyError))
    if as_json:
        print_json(forks)
    for each in forks:
        if isinstance(each, SandptyError):
            raise each  # those that could be made stand before it
        if not as_json:
            click.echo(each.id)
