"""`sandpty ls`, `create`, `kill`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from sandpty.cli.completing import complete_sandboxes
from sandpty.cli.connection import Duration, Mount, Pair, find_server, run_async, server_options
from sandpty.cli.json_output import error_json, json_option, print_json
from sandpty.wire.errors import SandptyError

if TYPE_CHECKING:
    from sandpty.cli.connection import Server
    from sandpty.sdk import AsyncClient, SandboxInfo

DEFAULT_TIMEOUT_S = 3600.0


@click.command()
@server_options
@json_option
def ls(url: str | None, data_dir: Path | None, as_json: bool) -> None:
    """List sandboxes, running and paused.

    \b
    Examples:
      sandpty ls
      sandpty ls --json | python3 -m json.tool
    """
    server = find_server(url, data_dir)

    async def found() -> list[SandboxInfo]:
        from sandpty.sdk import AsyncClient

        async with AsyncClient(server.url, server.api_key) as client:
            return await client.list_sandboxes()

    sandboxes = run_async(found())
    if as_json:
        print_json(sandboxes)
    else:
        _print_table(sandboxes)


def _print_table(sandboxes: list[SandboxInfo]) -> None:
    if not sandboxes:
        click.echo("no sandboxes (sandpty create or sandpty shell makes one)", err=True)
        return
    rows = [("ID", "TEMPLATE", "STATE", "TIER", "AGE", "LEFT", "METADATA")]
    for each in sandboxes:
        metadata = " ".join(f"{name}={value}" for name, value in each.metadata.items())
        row = (each.id, each.template, each.state, each.tier, _since(each.started_at), _until(each.end_at), metadata)
        rows.append(tuple(printable(cell) for cell in row))  # type: ignore[arg-type]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def printable(text: str) -> str:
    """Metadata is anybody's: it must not steer the terminal it is printed on."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _since(moment: str) -> str:
    return _span((datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()) if moment else ""


def _until(moment: str) -> str:
    return _span((datetime.fromisoformat(moment) - datetime.now(UTC)).total_seconds()) if moment else ""


def _span(seconds: float) -> str:
    whole = max(0, int(seconds))
    if whole < 120:
        return f"{whole}s"
    if whole < 7200:
        return f"{whole // 60}m"
    return f"{whole // 3600}h" if whole < 172800 else f"{whole // 86400}d"


@click.command()
@server_options
@click.option("--template", "-t", metavar="NAME", default="base", show_default=True, help="What it is made from.")
@click.option(
    "--timeout",
    "timeout_s",
    type=Duration(),
    metavar="TIME",
    default=DEFAULT_TIMEOUT_S,
    help="How long it lives: seconds, or 90s, 10m, 2h, 1d. [default: 1h]",
)
@click.option(
    "--on-timeout",
    type=click.Choice(["kill", "pause", "pause_disk"]),
    default="kill",
    show_default=True,
    help="What happens then. pause_disk keeps only its files.",
)
@click.option("--metadata", "-m", metavar="NAME=VALUE", type=Pair(), multiple=True, help="Shown by ls. Repeatable.")
@click.option("--env", "-e", metavar="NAME=VALUE", type=Pair(), multiple=True, help="For its processes. Repeatable.")
@click.option("--no-internet", is_flag=True, help="No network but its own loopback, and what --allow-out names.")
@click.option(
    "--allow-out", metavar="TARGET", multiple=True, help="What it may connect to: address, network, domain. Repeatable."
)
@click.option("--deny-out", metavar="TARGET", multiple=True, help="What it may not: address, network. Repeatable.")
@click.option(
    "--volume",
    "mounts",
    metavar="NAME:PATH[:ro]",
    type=Mount(),
    multiple=True,
    help="A volume and where it appears. Repeatable.",
)
@json_option
def create(
    *,
    url: str | None,
    data_dir: Path | None,
    template: str,
    timeout_s: float,
    on_timeout: Literal["kill", "pause", "pause_disk"],
    metadata: tuple[tuple[str, str], ...],
    env: tuple[tuple[str, str], ...],
    no_internet: bool,
    allow_out: tuple[str, ...],
    deny_out: tuple[str, ...],
    mounts: tuple[dict[str, Any], ...],
    as_json: bool,
) -> None:
    """Create a sandbox and print its ID.

    \b
    Examples:
      sandpty create
      sandpty create --timeout 2h --metadata owner=ann --env DEBUG=1
      sandpty shell "$(sandpty create --no-internet)"
      sandpty create --volume data:/mnt/data --volume models:/models:ro
      sandpty create --no-internet --allow-out example.com --allow-out '*.example.com'
    """
    server = find_server(url, data_dir)

    async def made() -> SandboxInfo:
        from sandpty.sdk import AsyncClient

        async with AsyncClient(server.url, server.api_key) as client:
            return await client.create_sandbox(
                template,
                timeout_s=timeout_s,
                metadata=dict(metadata),
                env=dict(env),
                internet=not no_internet,
                network={"allow_out": allow_out, "deny_out": deny_out},
                on_timeout=on_timeout,
                volumes=mounts,
            )

    sandbox = run_async(made())
    if as_json:
        print_json(sandbox)
    else:
        click.echo(sandbox.id)


@click.command()
@server_options
@click.option("--all", "every", is_flag=True, help="Every sandbox of this key.")
@json_option
@click.argument("ids", metavar="[ID]...", nargs=-1, shell_complete=complete_sandboxes)
def kill(url: str | None, data_dir: Path | None, every: bool, as_json: bool, ids: tuple[str, ...]) -> None:
    """End sandboxes, with every process in them and their files.

    Prints the ID of each that is gone. What cannot be ended is named at the end; the others are ended nevertheless.

    \b
    Examples:
      sandpty kill i0123456789abcdefghi
      sandpty kill --all
    """
    if not ids and not every:
        raise click.UsageError("name the sandboxes to end, or --all", click.get_current_context())

    async def do(client: AsyncClient, sandbox_id: str) -> None:
        try:
            await client.kill_sandbox(sandbox_id)
        except SandptyError as error:
            if not every or error.reason.name != "no_such_sandbox":  # it ended by itself after we looked
                raise

    do_each(find_server(url, data_dir), None if every else ids, do, as_json=as_json)


def do_each(
    server: Server, ids: Sequence[str] | None, do: Callable[[AsyncClient, str], Awaitable[object]], *, as_json: bool
) -> None:
    """Do it to each (None: every sandbox of this key) and print its ID; as JSON a list of `{"id", "error"}`.

    Raises the first failure there was, after the others are done.
    """

    async def work() -> list[tuple[str, SandptyError | None]]:
        from sandpty.sdk import AsyncClient

        done: list[tuple[str, SandptyError | None]] = []
        async with AsyncClient(server.url, server.api_key) as client:
            for each in [sandbox.id for sandbox in await client.list_sandboxes()] if ids is None else ids:
                try:
                    await do(client, each)
                except SandptyError as error:
                    done.append((each, error))
                    continue
                done.append((each, None))
                if not as_json:
                    click.echo(each)
        return done

    done = run_async(work())
    if as_json:
        print_json([{"id": id_, "error": error and error_json(error)["error"]} for id_, error in done])
    for _, error in done:
        if error is not None:
            raise error
