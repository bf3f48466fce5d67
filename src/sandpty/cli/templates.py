"""`sandpty template ls|gc`: what sandboxes are made from, as it is kept on this machine."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sandpty.cli.json_output import json_option, print_json
from sandpty.cli.serve import default_templates_dir

if TYPE_CHECKING:
    from sandpty.templates.collecting import KeptTree

_templates_dir = click.option(
    "--templates-dir",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where templates are kept. [default: as root /var/lib/sandpty/templates]",
)
_MIB = 1024 * 1024


@click.group()
def template() -> None:
    """List the templates of this machine, and remove what nobody needs.

    A template is a stack of read-only trees; sandboxes of several templates share them.

    \b
    Examples:
      sandpty template ls
      sandpty template gc
    """


@template.command()
@_templates_dir
@json_option
def ls(templates_dir: Path | None, as_json: bool) -> None:
    """List the trees that templates are stacked from, and who needs them.

    \b
    Examples:
      sandpty template ls
      sandpty template ls --json | jq '.[] | select(.state == "unused")'
    """
    from sandpty.templates.collecting import trees

    found = trees((templates_dir or default_templates_dir()).absolute())
    if as_json:
        print_json(found)
        return
    for tree in found:
        click.echo(line(tree))
    if not found:
        click.echo("no templates yet: `sandpty serve` builds them")


def line(tree: KeptTree) -> str:
    """One tree, for people."""
    size = f"{tree.size_bytes / _MIB:6.0f} MiB" if tree.size_bytes else "         -"
    made = datetime.fromtimestamp(tree.created_at, UTC).strftime("%Y-%m-%d %H:%M")
    return f"{tree.name:28}  {tree.state:8}  {size}  {made}"


@template.command()
@_templates_dir
@json_option
def gc(templates_dir: Path | None, as_json: bool) -> None:
    """Remove the trees that are unused. Nothing that a sandbox, a snapshot or a running supervisor stands on.

    \b
    Examples:
      sandpty template gc
    """
    from sandpty.templates.collecting import collect

    removed = collect((templates_dir or default_templates_dir()).absolute(), unused_s=0)
    if as_json:
        print_json(removed)
        return
    for tree in removed:
        click.echo(f"removed {tree.name}")
    size = sum(tree.size_bytes for tree in removed)
    click.echo(f"{len(removed)} removed, {size / _MIB:.0f} MiB" if removed else "nothing is unused")
