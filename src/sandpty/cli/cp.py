"""`sandpty cp`: files and trees between this machine and a sandbox."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sandpty.cli.connection import find_server, run_async, server_options
from sandpty.cli.json_output import json_option, print_json
from sandpty.cli.sandboxes import printable
from sandpty.wire.errors import SandptyError

if TYPE_CHECKING:
    from sandpty.cli.connection import Server
    from sandpty.cli.copying import Copied

# What stands before the first colon, and before any slash. One letter is a drive of Windows.
_IN_SANDBOX = re.compile(r"([A-Za-z0-9_-]{2,}):(.*)", re.DOTALL)
FAILED_EXIT_STATUS = 1
STREAM = "-"
Progress = tuple[Callable[[int], object], Callable[[str, int], object]]


@dataclass(frozen=True, slots=True)
class Place:
    """One side of a copy. sandbox_id None: on this machine; `-` there is stdin or stdout."""

    sandbox_id: str | None
    path: str


def parse_place(text: str) -> Place:
    """`ID:PATH` (without a path: the home directory), else a path of this machine."""
    matched = _IN_SANDBOX.fullmatch(text)
    return Place(matched[1], matched[2] or "~") if matched else Place(None, text)


@click.command()
@server_options
@click.option("--recursive", "-r", is_flag=True, help="Directories too, with all in them.")
@click.option("--user", "-u", metavar="NAME", help="Who reads and writes in the sandbox. [default: user]")
@click.option("--quiet", "-q", is_flag=True, help="No progress bar.")
@json_option
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.argument("target", metavar="TARGET")
def cp(
    *,
    url: str | None,
    data_dir: Path | None,
    recursive: bool,
    user: str | None,
    quiet: bool,
    as_json: bool,
    sources: tuple[str, ...],
    target: str,
) -> None:
    """Copy files and directories to a sandbox, or from it.

    A path in a sandbox is ID:PATH; without a slash in front it is below the user's home. A TARGET that is a directory
    gets what is copied under its own name. `-` is the content of one file, from stdin or to stdout. Modes and symlinks
    are kept, owners and times are not. What a sandbox names or links cannot make anything be written outside of TARGET.

    \b
    Examples:
      sandpty cp notes.txt i0123456789abcdefghi:
      sandpty cp -r i0123456789abcdefghi:/var/log ./logs
      sandpty cp -r src tests i0123456789abcdefghi:project
      sandpty cp i0123456789abcdefghi:/etc/passwd - | grep user
    """
    origins, goal = [parse_place(each) for each in sources], parse_place(target)
    ids = {each.sandbox_id for each in origins}
    if len(ids) > 1 or (goal.sandbox_id is None) == (None in ids):
        raise click.UsageError("one side is in one sandbox (ID:PATH), the other on this machine")
    server, sandbox_id = find_server(url, data_dir), goal.sandbox_id or str(ids.pop())
    if any(each == Place(None, STREAM) for each in (*origins, goal)):
        if len(origins) > 1:
            raise click.UsageError("`-` is one file, and nothing beside it")
        _copy_stream(server, sandbox_id, origins[0], goal, user)
        return
    with _progress(shown=not quiet and not as_json and sys.stderr.isatty()) as progress:
        work = _copy(
            server,
            sandbox_id,
            origins=origins,
            goal=goal,
            user=user,
            into=Path(goal.path).is_dir(),
            recursive=recursive,
            progress=progress,
        )
        copied = run_async(work)
    _tell(copied, as_json=as_json)


async def _copy(
    server: Server,
    sandbox_id: str,
    *,
    origins: list[Place],
    goal: Place,
    user: str | None,
    into: bool,
    recursive: bool,
    progress: Progress,
) -> Copied:
    from sandpty.cli.copying import Copying
    from sandpty.sdk import AsyncClient
    from sandpty.sdk._async.files import AsyncFiles

    on_size, on_bytes = progress
    async with AsyncClient(server.url, server.api_key) as client:
        files = AsyncFiles(client, sandbox_id)
        copying = Copying(files, user=user, recursive=recursive, on_size=on_size, on_bytes=on_bytes)
        if goal.sandbox_id:
            into = await copying.is_directory(goal.path)
        if not into and (len(origins) > 1 or goal.path.endswith("/")):
            raise SandptyError("not_a_directory", f"{goal.path} is no directory")
        for each in origins:
            try:
                if goal.sandbox_id:
                    await copying.upload(each.path, goal.path, into=into)
                else:
                    await copying.download(each.path, Path(goal.path))
            except OSError as error:
                if isinstance(error, SandptyError):
                    raise
                raise click.ClickException(f"{error.filename or each.path}: {error.strerror or error}") from error
        return copying.copied


def _copy_stream(server: Server, sandbox_id: str, origin: Place, goal: Place, user: str | None) -> None:
    """One file's content. Blocking: a read of a terminal can then be interrupted."""
    from sandpty.sdk import Client
    from sandpty.sdk._sync.files import Files

    with Client(server.url, server.api_key) as client:
        files = Files(client, sandbox_id)
        if goal.sandbox_id:
            files.write(goal.path, sys.stdin.buffer, user, parents=False)
            return
        with files.read(origin.path, "stream", user) as stream:
            for piece in stream:
                view = memoryview(piece)
                while view:
                    view = view[os.write(sys.stdout.fileno(), view) :]


@contextmanager
def _progress(*, shown: bool) -> Iterator[Progress]:
    """On stderr: one bar for all, with the file that moves."""
    if not shown:
        yield lambda size: None, lambda path, count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as bar:
        task, whole = bar.add_task("", total=0), 0

        def on_size(size: int) -> None:
            nonlocal whole
            whole += size
            bar.update(task, total=whole)

        def on_bytes(path: str, count: int) -> None:
            name = printable(path.rpartition("/")[2])
            bar.update(task, advance=count, description=name if len(name) <= 24 else name[:23] + "…")

        yield on_size, on_bytes


def _tell(copied: Copied, *, as_json: bool) -> None:
    """What was left out, on stderr; status 1 when something failed."""
    if as_json:
        named = {name: [{"path": _shown(path), "why": why} for path, why in getattr(copied, name)] for name in _NAMED}
        print_json({**asdict(copied), **named})
    for name in _NAMED:
        for path, why in getattr(copied, name):
            what = why if why.startswith(path) else f"{path}: {why}"
            click.echo(f"sandpty: {name}: {printable(what)}", err=True)
    if copied.failed:
        raise SystemExit(FAILED_EXIT_STATUS)


_NAMED = ("skipped", "failed")


def _shown(path: str) -> str:
    """For JSON, which holds no lone surrogates that others could read."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
