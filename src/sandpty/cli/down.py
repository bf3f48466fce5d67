"""`sandpty down`: end every sandbox and the supervisor."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import click

from sandpty import config
from sandpty.cli.connection import find_server, run_async, server_options
from sandpty.cli.json_output import json_option, print_json
from sandpty.config import DataDir
from sandpty.wire.errors import SandptyError

GONE_TIMEOUT_S = 30.0
_POLL_S = 0.02


@click.command()
@server_options
@json_option
def down(url: str | None, data_dir: Path | None, as_json: bool) -> None:
    """End all sandboxes of this data directory, and its supervisor.

    Needs to be root, as the supervisor is. Anybody else with the key ends the sandboxes through the server, and the
    supervisor stays.

    \b
    Examples:
      sandpty down
      sandpty down --data-dir /tmp/x
    """
    data = DataDir((data_dir or config.default_data_dir()).absolute())
    told = Told(as_json)
    if url is None:
        try:
            _end_everything(data, told)
            return
        except PermissionError:
            click.echo("not root: ending the sandboxes through the server", err=True)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError):
            told.end(f"nothing runs for {data.root}", supervisor_ended=False)
            return
    _end_through_server(url, data_dir, told)


class Told:
    """What is said on the way, and at the end."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._ended: list[str] = []

    def ending(self, number: int, count: int, sandbox_id: str) -> None:
        self._ended.append(sandbox_id)
        if not self._as_json:
            click.echo(f"[{number}/{count}] ending {sandbox_id}")

    def end(self, text: str, *, supervisor_ended: bool) -> None:
        if self._as_json:
            print_json({"sandboxes": self._ended, "supervisor_ended": supervisor_ended})
        else:
            click.echo(text)


def _end_everything(data: DataDir, told: Told) -> None:
    end_supervisor(data, told.ending)
    told.end("down: no sandboxes, no supervisor", supervisor_ended=True)
    if server := _server_pid(data):
        click.echo(
            f"the server (process {server}) still listens, with nothing to serve; Ctrl-C there ends it", err=True
        )


def end_supervisor(data: DataDir, tell: Callable[[int, int, str], None] | None = None) -> None:
    """End every sandbox, telling which as it goes, then the supervisor; returns once it is gone.

    Raises what SupervisorLink raises on entering, SandptyError supervisor_down or timeout.
    """
    from sandpty.cli.supervisor_link import SupervisorLink

    watcher = _pid(data.root / "supervisor-watch.pid") or _pid(data.supervisor_pid)
    try:
        with SupervisorLink(data.supervisor_socket) as link:
            ids = [sandbox.id for sandbox in link.sandboxes()]
            for number, each in enumerate(ids, 1):
                if tell is not None:
                    tell(number, len(ids), each)
                link.kill(each)
            link.shutdown()
    except (EOFError, ConnectionResetError, BrokenPipeError, TimeoutError) as error:
        raise SandptyError("supervisor_down", f"the supervisor stopped answering: {error}") from error
    _wait_until_gone(watcher)


def _wait_until_gone(pid: int | None) -> None:
    deadline = time.monotonic() + GONE_TIMEOUT_S
    while pid is not None and _runs(pid):
        if time.monotonic() > deadline:
            raise SandptyError("timeout", f"the supervisor (process {pid}) did not end within {GONE_TIMEOUT_S:g} s")
        time.sleep(_POLL_S)


def _runs(pid: int) -> bool:
    try:
        # A zombie of a parent that does not reap has ended all the same.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def _pid(path: Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(path.read_text())
    return None


def _server_pid(data: DataDir) -> int | None:
    """The process that holds the server's lock."""
    import fcntl

    try:
        descriptor = os.open(data.server_lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _pid(data.server_lock)
    finally:
        os.close(descriptor)
    return None


def _end_through_server(url: str | None, data_dir: Path | None, told: Told) -> None:
    server = find_server(url, data_dir)

    async def end() -> None:
        from sandpty.sdk import AsyncClient

        async with AsyncClient(server.url, server.api_key) as client:
            ids = [sandbox.id for sandbox in await client.list_sandboxes()]
            for number, each in enumerate(ids, 1):
                told.ending(number, len(ids), each)
                with contextlib.suppress(SandptyError):  # it may have ended by itself
                    await client.kill_sandbox(each)

    run_async(end())
    told.end(
        "down: no sandboxes of this key; the supervisor stays (root ends it with sandpty down)", supervisor_ended=False
    )
