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
from sandpty.config import DataDir
from sandpty.wire.errors import SandptyError

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Result = TypeVar("_Result")
_UNIT_S = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
# What a server listens on is not always what a client can connect to.
_WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}


@dataclass(frozen=True, slots=True)
class Server:
    """A server's address and the key it takes."""

    url: str
    api_key: str


def server_options(command: _Command) -> _Command:
    """Adds --url and --data-dir."""
    url = click.option("--url", metavar="URL", help="The server's address. [default: the one that runs here]")
    data_dir = click.option(
        "--data-dir",
        metavar="DIR",
        type=click.Path(path_type=Path, readable=False),
        help="The server's data directory, where its address and key are found.",
    )
    return url(data_dir(command))


sandbox_argument = click.argument("sandbox_id", metavar="ID")


def find_server(url: str | None, data_dir: Path | None) -> Server:
    """--url, else the server of --data-dir, else SANDPTY_URL, else the server of the default data directory.

    Raises SandptyError when the key cannot be had.
    """
    directory = DataDir(data_dir or config.default_data_dir())
    if data_dir is None and url is None:
        url = os.environ.get("SANDPTY_URL")
    key = None if data_dir is not None else os.environ.get("SANDPTY_API_KEY")
    return Server(_checked(url) if url else server_url(directory), key or api_key(directory))


def server_url(directory: DataDir) -> str:
    """Where the server of this data directory listens, or would by default."""
    try:
        url = _checked(str(json.loads(directory.server_info.read_text())["url"]))
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


def _checked(url: str) -> str:
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
