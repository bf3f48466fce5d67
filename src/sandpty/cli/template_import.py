"""`sandpty template import`: an image of a registry, an archive or a layout becomes a template."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sandpty import config
from sandpty.cli.json_output import json_option, print_json
from sandpty.config import DataDir
from sandpty.wire.errors import SandptyError

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from sandpty.images.reference import Source
    from sandpty.images.telling import Order
    from sandpty.wire.images import Image, ImportProgress
    from sandpty.wire.templates import Template

_MIB = 1024 * 1024
_SHORT_DIGEST = slice(7, 19)
Show = Callable[["ImportProgress"], None]


@click.command("import")
@click.argument("source", metavar="IMAGE")
@click.option("--name", "-n", metavar="NAME[:TAG]", help="What to call the template. [default: as the image]")
@click.option("--platform", metavar="OS/ARCH", default="", help="Of an image for several. [default: this machine's]")
@click.option("--username", "-u", metavar="NAME", default="", help="For the registry; the password is read from stdin.")
@click.option(
    "--cpu", type=click.FloatRange(0.1), metavar="N", default=2.0, show_default=True, help="Of its sandboxes."
)
@click.option(
    "--memory", type=click.IntRange(64), metavar="MIB", default=1024, show_default=True, help="Of its sandboxes."
)
@click.option(
    "--data-dir",
    metavar="DIR",
    type=click.Path(path_type=Path, readable=False),
    help="The server's data directory. [default: as root /var/lib/sandpty]",
)
@json_option
def import_(
    *,
    source: str,
    name: str | None,
    platform: str,
    username: str,
    cpu: float,
    memory: int,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Make a template from an image, for every team.

    IMAGE is a registry's, as Docker names it; docker-archive:FILE (what `docker save` writes); or oci:DIR (an OCI
    layout). Mirrors and registries without TLS stand in registries.conf of the data directory, credentials in
    registries-auth.json. Imported again, the template's next sandboxes are of the newer image.

    \b
    Examples:
      sandpty template import ubuntu:22.04 && sandpty shell --template ubuntu:22.04
      sandpty template import ghcr.io/team/tool:v2 --name tool --username me < token
      sandpty template import docker-archive:./image.tar --name mine
    """
    from sandpty.cli.supervisor_link import connected
    from sandpty.images import reference
    from sandpty.images.telling import Order as ToImport

    data = DataDir((data_dir or config.default_data_dir()).absolute())
    image_name, tag = _named(reference.parse(source), name)
    with connected(data) as link:
        link.template_or_none(image_name)  # a name that cannot be had is told before the work
    order = ToImport(
        images=str(data.images),
        source=_absolute(source),
        platform=platform,
        username=username,
        password=_password() if username else "",
        operator=True,
        registries=str(data.registries),
        registry_auth=str(data.registry_auth),
    )
    with _progress(quiet=as_json) as show, _imported(order, show) as image, connected(data) as link:
        saved = link.save_template(
            _with_build(link.template_or_none(image_name), image, image_name, tag, (cpu, memory))
        )
    if as_json:
        about: dict[str, object] = {
            "id": saved.id,
            "name": image_name,
            "tag": tag,
            "image": image.id,
            "reference": image.reference,
        }
        about |= {"digest": image.digest, "platform": image.platform, "notices": list(image.notices)}
        print_json({**about, "size_bytes": image.size_bytes, "entries": image.entries})
        return
    click.echo(f"{image_name}:{tag} is {image.reference} ({image.platform}, {image.size_bytes / _MIB:.0f} MiB)")
    for notice in image.notices:
        click.echo(f"  {notice}")


def _named(source: Source, name: str | None) -> tuple[str, str]:
    """The template's name and tag. Raises bad_argument where it has to be given."""
    from sandpty.wire.templates import parted

    if name:
        return parted(name)
    if source.kind != "docker":
        raise SandptyError("bad_argument", "an archive has no name of its own: give one with --name")
    return source.path.rpartition("/")[2], "latest" if source.digest else source.tag


def _password() -> str:
    if sys.stdin.isatty():
        return str(click.prompt("password", hide_input=True, err=True))
    return sys.stdin.readline().rstrip("\n")


def _absolute(source: str) -> str:
    kind, colon, rest = source.partition(":")
    return f"{kind}:{Path(rest).absolute()}" if colon and kind in ("oci", "docker-archive") and rest else source


def _with_build(old: Template | None, image: Image, name: str, tag: str, size: tuple[float, int]) -> Template:
    """The template with one more build, which its tag and its bare name mean from now on."""
    import msgspec

    from sandpty.wire.templates import DEFAULT_TAG, Build, Files, Tag, Template

    now = time.time()
    build = Build(
        id=str(uuid.uuid4()),
        state="ready",
        cpu_count=size[0],
        memory_mb=size[1],
        files=Files("image", image.id),
        defaults=image.defaults,
        source=f"{image.reference}@{image.digest}" if "@" not in image.reference else image.reference,
        created_at=now,
        updated_at=now,
        finished_at=now,
        size_bytes=image.size_bytes,
    )
    template = old or Template(names=(name,), public=True)
    moved = {DEFAULT_TAG, tag}
    tags = [each for each in template.tags if each.name not in moved]
    kept = {each.build for each in tags}
    return msgspec.structs.replace(
        template,
        builds=(*(each for each in template.builds if each.id in kept), build),
        tags=(*tags, *(Tag(each, build.id, now) for each in sorted(moved))),
    )


# --- the program that imports ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _imported(order: Order, show: Show) -> Iterator[Image]:
    """Kept from being collected meanwhile. Raises SandptyError; Ctrl-C ends it in order."""
    import msgspec

    from sandpty.images import telling

    process = subprocess.Popen(
        telling.argv(sys.executable), stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(msgspec.json.encode(order) + b"\n")
        process.stdin.flush()
        for line in process.stdout:
            match msgspec.json.decode(line, type=telling.Said):
                case telling.Going(progress):
                    show(progress)
                case telling.Failed(reason, message):
                    raise SandptyError(reason, message)
                case telling.Done(image):
                    yield image
                    return
        raise SandptyError("internal", "the import ended without a word")
    finally:
        process.stdin.close()
        process.wait()


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Show]:
    """Bars on a terminal, a line for each step elsewhere."""
    from rich.console import Console

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        said: list[str] = []

        def say(progress: ImportProgress) -> None:
            step = progress.text.partition(",")[0]
            if not quiet and said != [step]:
                said[:] = [step]
                click.echo(step, err=True)

        yield say
        return
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description:40}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}% {task.fields[size]}"),
    )
    with Bars(*columns, TimeElapsedColumn(), console=console, transient=True) as bars:
        yield _Drawing(bars).draw


class _Drawing:
    """The whole, and below it each layer while it comes."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._whole = bars.add_task("starting", total=100, size="")
        self._layers: dict[str, TaskID] = {}

    def draw(self, progress: ImportProgress) -> None:
        self._bars.update(self._whole, description=progress.text[:40], completed=progress.percent)
        for blob in progress.blobs:
            if blob.digest not in self._layers:
                name = f"  layer {blob.digest[_SHORT_DIGEST]}"
                self._layers[blob.digest] = self._bars.add_task(name, total=blob.size_bytes, size="")
            size = f"{blob.done_bytes / _MIB:.1f}/{blob.size_bytes / _MIB:.1f} MiB"
            self._bars.update(self._layers[blob.digest], completed=blob.done_bytes, size=size)
        if not progress.blobs:
            for task in self._layers.values():
                self._bars.update(task, visible=False)
