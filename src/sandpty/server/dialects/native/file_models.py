"""The native dialect's files: what a query may ask, and what is answered of an entry and of an event."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from sandpty import config
from sandpty.server.bodies import query_pairs
from sandpty.server.files.times import rfc3339
from sandpty.terminal.files import KEEP, Entry, EntryType, Files, WatchEvent
from sandpty.wire.errors import SandptyError
from sandpty.wire.path_text import path_to_text

Q = TypeVar("Q", bound="FileQuery")
_IDS = re.compile(r"(\d{1,10}):(\d{1,10})", re.ASCII)
_MODE = re.compile(r"[0-7]{1,5}", re.ASCII)


class FileQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every request names. `path`: absolute, or below the user's home, also with `~`. `user` empty: `user`."""

    path: str
    user: str = ""


class StatQuery(FileQuery, frozen=True):
    follow: bool = False


class ListQuery(FileQuery, frozen=True):
    depth: int = 1
    limit: int = config.FILES_LISTED_MAX


class ReadQuery(FileQuery, frozen=True):
    pass


class WriteQuery(FileQuery, frozen=True):
    """`metadata` is a JSON object; without it the file keeps what it has."""

    truncate: bool = True
    append: bool = False
    exclusive: bool = False
    parents: bool = False
    mode: str = ""
    owner: str = ""
    offset: int | None = None
    metadata: str = ""


class MakeDirectoryQuery(FileQuery, frozen=True):
    parents: bool = False
    mode: str = "0755"
    owner: str = ""


class MakeSymlinkQuery(FileQuery, frozen=True):
    text: str


class MoveQuery(FileQuery, frozen=True):
    to: str
    overwrite: bool = True
    parents: bool = False


class CopyQuery(FileQuery, frozen=True):
    to: str
    recursive: bool = False
    overwrite: bool = True
    parents: bool = False


class RemoveQuery(FileQuery, frozen=True):
    recursive: bool = False


class ChangeQuery(FileQuery, frozen=True):
    mode: str = ""
    owner: str = ""
    modified_ns: int | None = None
    accessed_ns: int | None = None
    recursive: bool = False
    follow: bool = True


class WatchQuery(FileQuery, frozen=True):
    recursive: bool = False
    entries: bool = False
    network_file_systems: bool = False


def query(request: web.Request, model: type[Q]) -> Q:
    """The request's query. Raises bad_request: something missing, unknown, twice, or of another kind."""
    pairs = query_pairs(request)
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise SandptyError("bad_request", "the query names something twice")
    try:
        return msgspec.convert(fields, model, strict=False)
    except (msgspec.MsgspecError, UnicodeError) as error:
        text = str(error).encode("utf-8", "replace").decode()
        raise SandptyError("bad_request", f"the query: {text}") from error


def mode_of(text: str, default: int) -> int:
    """Octal digits. Raises bad_argument."""
    if not text:
        return default
    if not _MODE.fullmatch(text) or int(text, 8) > 0o7777:
        raise SandptyError("bad_argument", "mode is octal, like 0644")
    return int(text, 8)


async def owner_of(files: Files, text: str) -> tuple[int, int]:
    """uid and gid of `NAME` or `UID:GID`; KEEP, KEEP of nothing. Raises no_such_user."""
    if not text:
        return KEEP, KEEP
    if ids := _IDS.fullmatch(text):
        return int(ids[1]), int(ids[2])
    account = await files.look_up(text)
    return account.uid, account.gid


def metadata_of(text: str) -> dict[str, str] | None:
    """Raises bad_request."""
    if not text:
        return None
    try:
        return msgspec.json.decode(text.encode(), type=dict[str, str])
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise SandptyError("bad_request", f"metadata is no JSON object of strings: {error}") from error


def entry_json(entry: Entry) -> dict[str, Any]:
    """Everything there is to know. Paths are text as wire/path_text.py has it."""
    symlink = entry.type is EntryType.SYMLINK
    return {
        "path": path_to_text(entry.path),
        "name": path_to_text(entry.name),
        "type": entry.type.name.lower(),
        "size": entry.size,
        "mode": f"{entry.mode:04o}",
        "permissions": entry.permissions,
        "uid": entry.uid,
        "gid": entry.gid,
        "owner": path_to_text(entry.owner),
        "group": path_to_text(entry.group),
        "modified_at": rfc3339(entry.modified_ns),
        "modified_ns": entry.modified_ns,
        "link_text": path_to_text(entry.link_text or "") if symlink else None,
        "target": path_to_text(entry.target) if entry.target is not None else None,
        "target_type": entry.target_type.name.lower() if symlink else None,
        "metadata": {path_to_text(name): path_to_text(value) for name, value in entry.metadata.items()},
    }


def event_json(event: WatchEvent) -> dict[str, Any]:
    """`name` is relative to the watched directory."""
    return {
        "type": event.type.name.lower(),
        "name": path_to_text(event.name),
        "entry": entry_json(event.entry) if event.entry is not None else None,
    }
