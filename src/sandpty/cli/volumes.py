"""`sandpty volumes ls|create|rm`: directories that outlive sandboxes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from sandpty.cli.connection import find_server, run_async, server_options
from sandpty.cli.json_output import json_option, print_json
from sandpty.cli.sandboxes import do_each

if TYPE_CHECKING:
    from sandpty.sdk import Volume


@click.group()
def volumes() -> None:
    """Directories that outlive sandboxes, and are shared by them.

    \b
    Examples:
      sandpty volumes create data
      sandpty create --volume data:/mnt/data
      sandpty volumes ls
    """


@volumes.command()
@server_options
@click.option("--size", "disk_mb", metavar="MIB", type=click.IntRange(16), help="What it can hold. [default: 10240]")
@json_option
@click.argument("name", metavar="NAME")
def create(url: str | None, data_dir: Path | None, disk_mb: int | None, as_json: bool, name: str) -> None:
    """Make a volume. It takes no more of the disk than what is in it.

    \b
    Examples:
      sandpty volumes create data
      sandpty volumes create models --size 51200
    """
    server = find_server(url, data_dir)

    async def made() -> Volume:
        from sandpty.sdk import AsyncClient

        async with AsyncClient(server.url, server.api_key) as client:
            return await client.create_volume(name, disk_mb=disk_mb or 0)

    volume = run_async(made())
    if as_json:
        print_json(volume)
    else:
        click.echo(volume.name)


@volumes.command()
@server_options
@json_option
def ls(url: str | None, data_dir: Path | None, as_json: bool) -> None:
    """List volumes: name, what is in them and what fits, who mounts them.

    \b
    Examples:
      sandpty volumes ls
      sandpty volumes ls --json | jq -r '.[].name'
    """
    server = find_server(url, data_dir)

    async def found() -> list[Volume]:
        from sandpty.sdk import AsyncClient

        async with AsyncClient(server.url, server.api_key) as client:
            return await client.list_volumes()

    listed = run_async(found())
    if as_json:
        print_json(listed)
        return
    for each in listed:
        size = f"{each.size_bytes / 1e6:.1f} MB of {each.disk_mb / 1024:.1f} GiB"
        click.echo("  ".join((each.name, each.id, each.created_at, size, " ".join(each.mounted_by) or "-")))
    if not listed:
        click.echo("no volumes (sandpty volumes create makes one)", err=True)


@volumes.command()
@server_options
@json_option
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
def rm(url: str | None, data_dir: Path | None, as_json: bool, names: tuple[str, ...]) -> None:
    """Delete volumes, by name or ID, with all that is in them. One that a sandbox mounts stays.

    \b
    Examples:
      sandpty volumes rm data
    """
    do_each(find_server(url, data_dir), names, lambda client, name: client.delete_volume(name), as_json=as_json)
