"""`sandpty ls`, `create`, `kill`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from sandpty.cli.connection import Duration, Pair, find_server, run_async, server_options
from sandpty.wire.errors import SandptyError

if TYPE_CHECKING:
    from sandpty.sdk import SandboxInfo

DEFAULT_TIMEOUT_S = 3600.0


@click.command()
@server_options
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of a table.")
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
        click.echo(json.dumps([_as_json(each) for each in sandboxes], indent=2))
    else:
        _print_table(sandboxes)


def _as_json(sandbox: SandboxInfo) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(sandbox)


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
@click.option("--json", "as_json", is_flag=True, help="Print the sandbox as JSON instead of its ID.")
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
    as_json: bool,
) -> None:
    """Create a sandbox and print its ID.

    \b
    Examples:
      sandpty create
      sandpty create --timeout 2h --metadata owner=ann --env DEBUG=1
      sandpty shell "$(sandpty create --no-internet)"
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
            )

    sandbox = run_async(made())
    click.echo(json.dumps(_as_json(sandbox), indent=2) if as_json else sandbox.id)


@click.command()
@server_options
@click.option("--all", "every", is_flag=True, help="Every sandbox of this key.")
@click.argument("ids", metavar="[ID]...", nargs=-1)
def kill(url: str | None, data_dir: Path | None, every: bool, ids: tuple[str, ...]) -> None:
    """End sandboxes, with every process in them and their files.

    Prints the ID of each that is gone. What cannot be ended is named at the end; the others are ended nevertheless.

    \b
    Examples:
      sandpty kill i0123456789abcdefghi
      sandpty kill --all
    """
    if not ids and not every:
        raise click.UsageError("name the sandboxes to end, or --all", click.get_current_context())
    server = find_server(url, data_dir)

    async def end() -> SandptyError | None:
        from sandpty.sdk import AsyncClient

        failure: SandptyError | None = None
        async with AsyncClient(server.url, server.api_key) as client:
            for each in [sandbox.id for sandbox in await client.list_sandboxes()] if every else ids:
                try:
                    await client.kill_sandbox(each)
                    click.echo(each)
                except SandptyError as error:
                    if every and error.reason.name == "no_such_sandbox":
                        continue  # it ended by itself between our looking and our killing
                    failure = error
        return failure

    if failure := run_async(end()):
        raise failure
