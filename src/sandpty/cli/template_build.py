"""`sandpty template build`: a template from a Dockerfile and the files beside it, built by the server."""

from __future__ import annotations

import contextlib
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sandpty.cli.build_context import Context
from sandpty.cli.connection import find_server, server_options
from sandpty.cli.dockerfile import Dockerfile, parse
from sandpty.cli.json_output import json_option, print_json
from sandpty.wire.errors import SandptyError

if TYPE_CHECKING:
    import httpx

_NAMES = ("Dockerfile", "sandpty.Dockerfile", "e2b.Dockerfile")
_POLL_S = 0.2
_REQUEST_S = 60.0
_UPLOAD_S = 3600.0
_AWAY_S = 30.0  # for a server that is being restarted
_REASONS = {401: "unauthenticated", 503: "server_unreachable"}
_STEP = re.compile(r"(?:CACHED )?\[(\d+)/(\d+)\] [A-Z]")


@click.command()
@click.argument("directory", metavar="[DIRECTORY]", default=".", type=click.Path(path_type=Path, exists=True))
@click.option("--file", "-f", metavar="FILE", type=click.Path(path_type=Path, exists=True), help="The Dockerfile.")
@click.option("--name", "-n", metavar="NAME[:TAG]", help="What to call the template. [default: as the directory]")
@click.option("--tag", "tags", metavar="TAG", multiple=True, help="Another tag; may be said more than once.")
@click.option("--cpu", type=click.IntRange(1), metavar="N", help="Of its sandboxes. [default: 2]")
@click.option("--memory", type=click.IntRange(64), metavar="MIB", help="Of its sandboxes. [default: 1024]")
@click.option("--start", metavar="COMMAND", help="What runs from boot on. [default: the Dockerfile's CMD]")
@click.option("--ready", metavar="COMMAND", default="", help="Ends with 0 once a sandbox may be used.")
@click.option("--no-cache", is_flag=True, help="Build every step anew.")
@server_options
@json_option
def build(
    *,
    directory: Path,
    file: Path | None,
    name: str | None,
    tags: tuple[str, ...],
    cpu: int | None,
    memory: int | None,
    start: str | None,
    ready: str,
    no_cache: bool,
    url: str | None,
    data_dir: Path | None,
    as_json: bool,
) -> None:
    """Build a template from a Dockerfile; DIRECTORY holds the files that it copies.

    The server runs the steps, each in a sandbox, and keeps what each has left for the next build. Ctrl-C cancels.

    \b
    Examples:
      sandpty template build
      sandpty template build ./app --name app:v2 --start "python3 server.py" --ready "curl -sf localhost:8000"
    """
    import httpx

    root = directory if directory.is_dir() else directory.parent
    said = parse(_read(_dockerfile(directory, file)))
    context = Context(root)
    wanted = {"name": name or root.resolve().name.lower(), "tags": list(tags), "cpuCount": cpu, "memoryMB": memory}
    server = find_server(url, data_dir)
    headers = {"X-API-Key": server.api_key}
    with httpx.Client(base_url=server.url, headers=headers, timeout=_REQUEST_S) as client, _shown() as show:
        for notice in said.notices:
            show(notice)
        asked = _ask(client, "POST", "/v3/templates", json=wanted)
        template, number = asked["templateID"], asked["buildID"]
        start_cmd = said.start_cmd if start is None else start
        body = {"fromImage": said.image, "force": no_cache, "startCmd": start_cmd, "readyCmd": ready}
        place = f"/templates/{template}/builds/{number}"
        try:
            body["steps"] = list(_steps(client, template, said, context, show))
            _ask(client, "POST", f"/v2{place}", json=body)
            _follow(client, place, show)
        except BaseException:  # also of a file that cannot be read: no build is to wait for ever
            with contextlib.suppress(SandptyError):  # it is over
                _ask(client, "DELETE", f"/v2{place}")
            raise
    if as_json:
        print_json({"id": template, "build": number, "name": asked["aliases"][0], "tags": asked["tags"]})


def _dockerfile(directory: Path, file: Path | None) -> Path:
    """Raises SandptyError no_such_file."""
    if file is not None:
        return file
    if directory.is_file():
        return directory
    for name in _NAMES:
        if (directory / name).is_file():
            return directory / name
    raise SandptyError("no_such_file", f"{directory} has no Dockerfile; --file names another")


def _read(dockerfile: Path) -> str:
    """Raises SandptyError bad_argument."""
    try:
        return dockerfile.read_text(encoding="utf-8")
    except OSError as error:
        raise SandptyError("bad_argument", f"{dockerfile} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SandptyError("bad_argument", f"{dockerfile} is no text in UTF-8") from error


def _steps(
    client: httpx.Client, template: str, said: Dockerfile, context: Context, show: Show
) -> Iterator[dict[str, Any]]:
    """As the server takes them; files that it does not have are sent."""
    for step in said.steps:
        if step.kind != "COPY":
            yield {"type": step.kind, "args": step.args}
            continue
        source = step.args[0].lstrip("/") or "."
        files = context.hash(source)
        known = _ask(client, "GET", f"/templates/{template}/files/{files}")
        if not known["present"]:
            show(f"sending {source}")
            with context.archive(source) as archive:
                _ask(client, "PUT", known["url"], content=archive, timeout=_UPLOAD_S)
        yield {"type": "COPY", "args": (source, *step.args[1:]), "filesHash": files}


def _follow(client: httpx.Client, place: str, show: Show) -> None:
    """Show what the build says until it is over; a server that restarts is waited for. Raises SandptyError when it
    fails."""
    offset, heard_at = 0, time.monotonic()
    while True:
        try:
            status = _ask(client, "GET", f"{place}/status", params={"logsOffset": offset})
        except SandptyError as error:
            if error.reason.name != "server_unreachable" or time.monotonic() - heard_at > _AWAY_S:
                raise
            time.sleep(_POLL_S)
            continue
        heard_at = time.monotonic()
        offset += len(status["logEntries"])
        for entry in status["logEntries"]:
            if entry["level"] != "error":
                show(entry["message"])
        if status["logEntries"]:
            continue
        if status["status"] == "error":
            what, how = f"{status['reason']['message']}\n".split("\n")[:2]
            how = how.partition("; its last output")[0]  # it was shown above
            raise SandptyError("build_failed", f"{what}: {how}" if how else what)
        if status["status"] == "ready":
            return
        time.sleep(_POLL_S)


def _ask(client: httpx.Client, method: str, path: str, **more: Any) -> Any:
    """Raises SandptyError: what the server says, or that it is not there."""
    import httpx

    try:
        return _checked(client.request(method, path, **more))
    except httpx.TransportError as error:
        raise SandptyError("server_unreachable", f"no answer from {client.base_url}: {error}") from error


def _checked(answer: httpx.Response) -> Any:
    if answer.is_success:
        return answer.json() if answer.content else None
    try:
        message = str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        message = f"HTTP {answer.status_code}"
    raise SandptyError(_REASONS.get(answer.status_code, "bad_request"), message)


class Show:
    """Takes a line of what happens: on a terminal above a bar of the steps, else as a line."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __call__(self, line: str) -> None:
        if self._bar is None:
            click.echo(line, err=True)
            return
        from rich.text import Text

        match = _STEP.match(line)
        if match is not None:
            self._bar.update(self._bar.task_ids[0], completed=int(match[1]) - 1, total=int(match[2]), phase=line[:60])
        self._bar.console.print(Text(line, style="bold" if match else "dim"))

    def on(self, bar: Any) -> None:
        self._bar = bar


@contextlib.contextmanager
def _shown() -> Iterator[Show]:
    """What it says goes to stderr: stdout is for what a program may read."""
    show = Show()
    if not sys.stderr.isatty():
        yield show
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("building"), BarColumn(), TextColumn("{task.fields[phase]}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.add_task("build", total=None, phase="")
        show.on(bar)
        yield show
