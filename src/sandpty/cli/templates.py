"""`sandpty template ls|build|import|rm|gc`: what sandboxes are made from, as it is kept on this machine."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sandpty import config
from sandpty.cli.json_output import error_json, json_option, print_json
from sandpty.cli.serve import default_templates_dir
from sandpty.cli.template_build import build
from sandpty.cli.template_import import import_
from sandpty.config import DataDir
from sandpty.wire.errors import SandptyError

if TYPE_CHECKING:
    from sandpty.images.collecting import KeptImage
    from sandpty.templates.collecting import KeptTree
    from sandpty.wire.templates import Template

_templates_dir = click.option(
    "--templates-dir",
    metavar="DIR",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the trees of our own templates are kept. [default: as root /var/lib/sandpty/templates]",
)
_data_dir = click.option(
    "--data-dir",
    metavar="DIR",
    type=click.Path(path_type=Path, readable=False),
    help="The server's data directory. [default: as root /var/lib/sandpty]",
)
_MIB = 1024 * 1024


@click.group()
def template() -> None:
    """List templates, make them from images, and remove what nobody needs.

    A template is a stack of read-only trees; sandboxes of several templates share them. Needs to be who runs the
    supervisor (root).

    \b
    Examples:
      sandpty template build ./app
      sandpty template import ubuntu:22.04
      sandpty template ls
      sandpty template gc
    """


template.add_command(import_)
template.add_command(build)


@template.command()
@_data_dir
@_templates_dir
@click.option("--trees", is_flag=True, help="What they are stacked from instead, and whether anything needs it.")
@json_option
def ls(data_dir: Path | None, templates_dir: Path | None, trees: bool, as_json: bool) -> None:
    """List the templates of all teams.

    \b
    Examples:
      sandpty template ls
      sandpty template ls --trees
      sandpty template ls --json | jq -r '.[] | select(.state == "failed") | .name'
    """
    data = _directory(data_dir)
    if trees:
        _list_trees(data, (templates_dir or default_templates_dir()).absolute(), as_json=as_json)
        return
    from sandpty.cli.supervisor_link import connected

    with connected(data) as link:
        found = link.templates()
    if as_json:
        print_json([_summary(each) for each in found])
        return
    for each in found:
        click.echo(template_line(each))


def _directory(data_dir: Path | None) -> DataDir:
    return DataDir((data_dir or config.default_data_dir()).absolute())


def _summary(found: Template) -> dict[str, object]:
    shown = found.tagged() or (found.builds[-1] if found.builds else None)
    return {
        "id": found.id,
        "name": found.name,
        "aliases": list(found.aliases),
        "owner": found.owner,
        "public": found.public,
        "state": found.state,
        "detail": found.detail,
        "tags": [tag.name for tag in found.tags],
        "source": shown.source if shown is not None else "",
        "size_bytes": found.size_bytes,
        "created_at": found.created_at,
        "updated_at": found.updated_at,
        "used_count": found.used_count,
        "warm": found.warm,
    }


def template_line(found: Template) -> str:
    """One template, for people."""
    summary = _summary(found)
    names = ", ".join([found.name, *found.aliases])
    about = [str(summary["source"]), found.detail, f"{found.warm} warm" if found.warm else ""]
    if found.tags:
        about.append(f"tags {', '.join(tag.name for tag in found.tags)}")
    return (
        f"{names:28}  {found.state:8}  {_size(found.size_bytes)}  {_day(found.created_at)}  {_joined(about)}".rstrip()
    )


def _joined(words: list[str]) -> str:
    return "; ".join(word for word in words if word)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / _MIB:6.0f} MiB" if size_bytes else "         -"


def _day(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")


def _list_trees(data: DataDir, templates: Path, *, as_json: bool) -> None:
    from sandpty.images import collecting as images
    from sandpty.templates import collecting

    trees, kept = collecting.trees(templates), images.kept(data)
    if as_json:
        print_json({"trees": trees, "images": [{**_image(each), "used": each.used} for each in kept]})
        return
    for tree in trees:
        click.echo(line(tree))
    for each in kept:
        click.echo(image_line(each))
    if not trees and not kept:
        click.echo("no templates yet: `sandpty serve` builds them")


def _image(kept: KeptImage) -> dict[str, object]:
    image = kept.image
    fields = ("id", "reference", "digest", "platform", "size_bytes", "entries", "created_at")
    return {name: getattr(image, name) for name in fields}


def line(tree: KeptTree) -> str:
    """One tree, for people."""
    return f"{tree.name:34}  {tree.state:8}  {_size(tree.size_bytes)}  {_day(tree.created_at)}"


def image_line(kept: KeptImage) -> str:
    """One image, for people."""
    image, state = kept.image, "in use" if kept.used else "unused"
    return f"{image.id:34}  {state:8}  {_size(image.size_bytes)}  {_day(image.created_at)}  {image.reference}"


@template.command()
@_data_dir
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@json_option
def rm(data_dir: Path | None, names: tuple[str, ...], as_json: bool) -> None:
    """Remove templates, by name or ID. Sandboxes that were made from them go on.

    What they were made from goes when nothing needs it any more: after a week, or at `sandpty template gc`.

    \b
    Examples:
      sandpty template rm ubuntu
    """
    from sandpty.cli.supervisor_link import connected

    failed: SandptyError | None = None
    outcomes = []
    with connected(_directory(data_dir)) as link:
        for name in names:
            try:
                link.delete_template(_of(name, link.templates()).id)
            except SandptyError as error:
                failed = error
                outcomes.append({"id": name, **error_json(error)})
                continue
            outcomes.append({"id": name, "error": None})
            if not as_json:
                click.echo(name)
    if as_json:
        print_json(outcomes)
    if failed is not None:
        raise failed


@template.command()
@_data_dir
@click.argument("name")
@click.argument("count", type=click.IntRange(0, config.POOL_TEMPLATE_MAX))
@json_option
def warm(data_dir: Path | None, name: str, count: int, as_json: bool) -> None:
    """Keep sandboxes of a template ready to be taken.

    COUNT of them, with its start command running; 0: none. NAME is its ID, or the name of one that is everybody's. A
    create takes one of them in a few milliseconds; after another build of it they are made anew.

    \b
    Examples:
      sandpty template warm ubuntu 4
    """
    import msgspec

    from sandpty.cli.supervisor_link import connected

    with connected(_directory(data_dir)) as link:
        listed = _of(name, link.templates())
        found = link.template(listed.id, listed.owner)
        if not found.builds:
            raise SandptyError("conflict", f"{name} is a template that sandpty brings: see `sandpty serve --pool`")
        kept = link.save_template(msgspec.structs.replace(found, warm=count))
    if as_json:
        print_json(_summary(kept))
    else:
        click.echo(f"{kept.name}: {count} kept warm")


def _of(name: str, templates: list[Template]) -> Template:
    """Any team's by its ID, everybody's by its name too. Raises no_such_template."""
    for found in templates:
        if name == found.id or (not found.owner and name in found.names):
            return found
    raise SandptyError("no_such_template", f"template {name!r} does not exist; a team's own is known by its ID")


@template.command()
@_data_dir
@_templates_dir
@json_option
def gc(data_dir: Path | None, templates_dir: Path | None, as_json: bool) -> None:
    """Remove the trees and images that nothing needs.

    Not those on which a template, a sandbox, a snapshot or a running supervisor stands.

    \b
    Examples:
      sandpty template gc
    """
    from sandpty.images import collecting as images
    from sandpty.templates import collecting

    trees = collecting.collect((templates_dir or default_templates_dir()).absolute(), unused_s=0)
    removed = images.collect(_directory(data_dir), unused_s=0)
    if as_json:
        print_json({"trees": trees, "images": [_image(images.KeptImage(each, used=False)) for each in removed]})
        return
    for tree in trees:
        click.echo(f"removed {tree.name}")
    for image in removed:
        click.echo(f"removed {image.id} ({image.reference})")
    size = sum(tree.size_bytes for tree in trees) + sum(image.size_bytes for image in removed)
    count = len(trees) + len(removed)
    click.echo(f"{count} removed, {size / _MIB:.0f} MiB" if count else "nothing is unused")
