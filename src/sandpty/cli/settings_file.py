"""The user's own settings: named servers, each with its key, and which of them is used. One JSON file, mode 0600."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from sandpty.wire.errors import SandptyError

FILE_BYTES_MOST = 1024 * 1024
DEFAULT_NAME = "default"


@dataclass(frozen=True, slots=True)
class NamedServer:
    """Either may be unset. The key is sent to this address only."""

    url: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """`used` names one of `servers`; None: whatever runs here."""

    used: str | None = None
    servers: dict[str, NamedServer] = field(default_factory=dict)

    def server(self, name: str) -> NamedServer:
        """Raises bad_argument with the names that there are."""
        if name not in self.servers:
            known = ", ".join(sorted(self.servers)) or "none"
            raise SandptyError("bad_argument", f"no server is called {name!r} in {path()} (there: {known})")
        return self.servers[name]

    def with_server(self, name: str, server: NamedServer) -> Settings:
        """The first server that is named is the one that is used."""
        used = name if not self.servers and self.used is None else self.used
        return replace(self, used=used, servers={**self.servers, name: server})

    def without_server(self, name: str) -> Settings:
        """Raises bad_argument."""
        self.server(name)
        left = {each: server for each, server in self.servers.items() if each != name}
        return replace(self, used=None if self.used == name else self.used, servers=left)


def path() -> Path:
    """SANDPTY_CONFIG, else config.json in the user's directory for settings (~/.config/sandpty by the XDG rules)."""
    if configured := os.environ.get("SANDPTY_CONFIG"):
        return Path(configured)
    return Path(click.get_app_dir("sandpty")) / "config.json"


def read() -> Settings:
    """Nothing set when there is no file. Raises bad_argument when it is not one of ours or cannot be read."""
    file = path()
    try:
        with file.open("rb") as opened:
            parsed = json.loads(opened.read(FILE_BYTES_MOST))
        return _settings(parsed)
    except FileNotFoundError:
        return Settings()
    except (ValueError, TypeError, RecursionError) as error:
        raise SandptyError("bad_argument", f"{file} is not a file of settings: {error}; mend or remove it") from error
    except OSError as error:
        raise SandptyError("bad_argument", f"{file} cannot be read: {error.strerror}") from error


def _settings(parsed: Any) -> Settings:
    if not isinstance(parsed, dict):
        raise TypeError("not a JSON object")
    servers = parsed.get("servers", {})
    if not isinstance(servers, dict) or not all(isinstance(each, dict) for each in servers.values()):
        raise TypeError("servers is not an object of objects")
    found = {name: NamedServer(_text(each.get("url")), _text(each.get("key"))) for name, each in servers.items()}
    return Settings(_text(parsed.get("used")), found)


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def write(settings: Settings) -> None:
    """Replaces the file in one step: nobody sees half of it, and nobody else can read it. Raises bad_argument."""
    file = path()
    servers = {
        name: {key: value for key, value in (("url", each.url), ("key", each.key)) if value is not None}
        for name, each in settings.servers.items()
    }
    content = json.dumps({"used": settings.used, "servers": servers}, indent=2) + "\n"
    try:
        file = file.resolve()  # a symlink, to a directory of dotfiles for example, stays one
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        import tempfile

        descriptor, temporary = tempfile.mkstemp(prefix=".config-", dir=file.parent)  # 0600
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
                opened.write(content)
                opened.flush()
                os.fsync(opened.fileno())
            os.replace(temporary, file)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise SandptyError("bad_argument", f"{file} cannot be written: {error.strerror}") from error
