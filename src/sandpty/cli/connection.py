"""Which server a command talks to, and with which key."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from sandpty import config
from sandpty.cli import settings_file
from sandpty.cli.completing import complete_sandboxes
from sandpty.config import DataDir
from sandpty.wire.errors import SandptyError

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Result = TypeVar("_Result")
_DIRECTORY = "the data directory"
_NAMED = "sandpty.server"  # what --server said, in click's notes of this run
_UNIT_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
# What a server listens on is not always what a client can connect to.
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}


@dataclass(frozen=True, slots=True)
class Server:
    """A server's address and the key it takes."""

    url: str
    api_key: str


@dataclass(frozen=True, slots=True)
class Setting:
    """A value, and in words where it comes from."""

    value: str
    source: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a command would use. `name`: of the named server; `missing_key`: why there is no key."""

    url: Setting
    key: Setting | None
    name: str | None = None
    missing_key: SandptyError | None = None


def server_options(command: _Command) -> _Command:
    """Adds --url, --server and --data-dir."""
    url = click.option("--url", metavar="URL", help="The server's address. [default: the one that runs here]")
    server = click.option(
        "--server",
        metavar="NAME",
        expose_value=False,
        callback=lambda context, _, value: context.meta.__setitem__(_NAMED, value),
        help="A server that `sandpty config` has under this name.",
    )
    data_dir = click.option(
        "--data-dir",
        metavar="DIR",
        type=click.Path(path_type=Path, readable=False),
        help="The server's data directory, where its address and key are found.",
    )
    return url(server(data_dir(command)))


sandbox_argument = click.argument("sandbox_id", metavar="ID", shell_complete=complete_sandboxes)


def find_server(url: str | None, data_dir: Path | None) -> Server:
    """The server and the key that a command is to use. Raises SandptyError when the key cannot be had."""
    found = resolve(url, data_dir)
    if found.key is None:
        assert found.missing_key is not None
        raise found.missing_key
    return Server(found.url.value, found.key.value)


def resolve(url: str | None, data_dir: Path | None) -> Resolved:
    """--url, else --server, else the server of --data-dir, else SANDPTY_URL, else SANDPTY_SERVER, else that of
    SANDPTY_DATA_DIR, else the named server that is used, else the server of the default data directory; and its key.

    Raises bad_argument for no address and no known name.
    """
    context = click.get_current_context(silent=True)
    said = context.meta.get(_NAMED) if context else None
    if said and (url or data_dir):
        raise SandptyError(
            "bad_argument", "--server is an address and a key; say it alone, without --url and --data-dir"
        )
    address, name = _address(url, data_dir, said)
    # A data directory's server goes with its own key, whatever other server once had this address.
    by_file = not address.source.startswith(_DIRECTORY) if data_dir is None else False
    try:
        key = _key(address, data_dir, name, said=bool(said), by_file=by_file)
    except SandptyError as error:
        return Resolved(address, None, name, error)
    return Resolved(address, key, name)


def _address(url: str | None, data_dir: Path | None, said: str | None) -> tuple[Setting, str | None]:
    """And the name of the named server, when it is one."""
    if url:
        return Setting(checked_url(url), "--url"), None
    if data_dir is None:
        environment = os.environ.get("SANDPTY_URL") if not said else None
        if environment:
            return Setting(checked_url(environment), "SANDPTY_URL"), None
        settings = settings_file.read()
        name = said or os.environ.get("SANDPTY_SERVER")
        if not name and "SANDPTY_DATA_DIR" not in os.environ:
            name = settings.used
        if name:
            found = settings.server(name)
            if found.url is None:
                raise SandptyError("bad_argument", f"the server {name!r} has no address: sandpty config set url")
            return Setting(checked_url(found.url), f"{name!r} in {settings_file.path()}"), name
    directory = _directory(data_dir)
    found_there = directory.server_info.exists()
    return Setting(
        server_url(directory), f"{_DIRECTORY} {directory.root}" + ("" if found_there else ", by default")
    ), None


def _key(address: Setting, data_dir: Path | None, name: str | None, *, said: bool, by_file: bool) -> Setting:
    """A key of the file goes to the address that it was set for, to no other. Raises SandptyError."""
    if data_dir is None:
        if not said and (key := os.environ.get("SANDPTY_API_KEY")):
            return Setting(key, "SANDPTY_API_KEY")
        for each, server in settings_file.read().servers.items() if by_file else ():
            if server.key and server.url == address.value and name in (None, each):
                return Setting(server.key, f"{each!r} in {settings_file.path()}")
        if name is not None:
            raise SandptyError("unauthenticated", f"the server {name!r} has no key: sandpty config set key")
    directory = _directory(data_dir)
    return Setting(api_key(directory), f"{_DIRECTORY} {directory.root}")


def _directory(data_dir: Path | None) -> DataDir:
    return DataDir(data_dir or config.default_data_dir())


def server_url(directory: DataDir) -> str:
    """Where the server of this data directory listens, or would by default."""
    try:
        url = checked_url(str(json.loads(directory.server_info.read_text())["url"]))
    except (OSError, ValueError, KeyError, TypeError, SandptyError):
        return f"http://{config.DEFAULT_HOST}:{config.DEFAULT_PORT}"
    host = urlsplit(url).hostname or ""
    if host in _WILDCARDS:
        url = re.sub(r"//(\[::\]|0\.0\.0\.0)", "//" + _WILDCARDS[host], url)
    return url


def api_key(directory: DataDir) -> str:
    """The key in the data directory. Raises SandptyError when there is none or it is not ours to read."""
    try:
        return directory.api_key.read_text().strip()
    except FileNotFoundError:
        message = f"there is no API key in {directory.root}: no server has run with it, or the key was revoked"
        raise SandptyError("server_unreachable", message) from None
    except OSError as error:
        message = f"the API key in {directory.root} cannot be read: {error.strerror}"
        raise SandptyError("unauthenticated", message) from None


def checked_url(url: str) -> str:
    """Without a slash at its end. Raises bad_argument."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SandptyError("bad_argument", f"{url!r} is not the address of a server, like http://127.0.0.1:3980")
    return url.rstrip("/")


def run_async(work: Awaitable[_Result]) -> _Result:
    """Run a command's asynchronous part."""

    import asyncio

    async def body() -> _Result:
        return await work

    return asyncio.run(body())


class Duration(click.ParamType[float]):
    """Seconds, or a number with s, m, h or d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        if matched := re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", value):
            return float(matched[1]) * _UNIT_S[matched[2]]
        return self.fail(f"{value!r} is not a duration, like 90, 90s, 10m, 2h or 1d", param, ctx)


class Mount(click.ParamType[dict[str, Any]]):
    """`NAME:PATH` or `NAME:PATH:ro`, as a body of /v1/sandboxes says it."""

    name = "volume"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        volume, _, path = value.partition(":")
        read_only = path.endswith(":ro")
        path = path.removesuffix(":ro").removesuffix(":rw")
        if not volume or not path.startswith("/"):
            return self.fail(f"{value!r} is not NAME:/PATH or NAME:/PATH:ro", param, ctx)
        return {"volume": volume, "path": path, "read_only": read_only}


class Pair(click.ParamType[tuple[str, str]]):
    """NAME=VALUE."""

    name = "pair"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, rest = value.partition("=")
        if not name or not equals:
            return self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        return name, rest
