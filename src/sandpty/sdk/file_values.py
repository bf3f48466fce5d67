"""The values of `sandbox.files`, named as in E2B's SDK, and how they travel."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any, TypeAlias, TypedDict
from urllib.parse import urlencode

from sandpty.wire.path_text import path_from_text

Progress: TypeAlias = Callable[[int, int | None], object]  # bytes so far, bytes in all (None: nobody knows)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class FileType(Enum):
    """What lies at a path."""

    FILE = "file"
    DIR = "dir"
    SYMLINK = "symlink"
    FIFO = "fifo"
    SOCKET = "socket"
    CHARACTER_DEVICE = "character_device"
    BLOCK_DEVICE = "block_device"
    UNKNOWN = "unknown"


class FilesystemEventType(Enum):
    """What happened. RENAME: the entry of that name moved away (its new place, when watched, is a CREATE).

    OVERFLOW: events are missing here, because there were too many or the connection was lost: list the directory again.
    GONE: the watched directory itself was removed or moved; it is the last.
    """

    CREATE = "create"
    WRITE = "write"
    REMOVE = "remove"
    RENAME = "rename"
    CHMOD = "chmod"
    OVERFLOW = "overflow"
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryInfo:
    """An entry of the guest's file system. Names that are no UTF-8 hold surrogates, as everywhere in Python (PEP 383).

    mode: permission, set-id and sticky bits (07777). size: in bytes. symlink_target: where a symlink leads in the end,
    else what it holds (`link_text`). metadata: what `write` was given, None when there is none. modified_time is cut to
    what a datetime can hold, modified_ns is exact.
    """

    name: str
    type: FileType
    path: str
    size: int = 0
    mode: int = 0
    permissions: str = ""
    owner: str = ""
    group: str = ""
    uid: int = 0
    gid: int = 0
    modified_ns: int = 0
    symlink_target: str | None = None
    link_text: str | None = None
    target_type: FileType | None = None
    metadata: Mapping[str, str] | None = None

    @property
    def modified_time(self) -> datetime:
        """In UTC, to the microsecond."""
        try:
            return _EPOCH + timedelta(microseconds=self.modified_ns // 1000)
        except OverflowError:
            return _EPOCH


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesystemEvent:
    """name: relative to the watched directory; entry: when it was asked for and is still there."""

    name: str
    type: FilesystemEventType
    entry: EntryInfo | None = None


class WriteEntry(TypedDict):
    """One file of `write_files`. data: text, bytes, a file object, or an iterable of bytes."""

    path: str
    data: Any


def query_of(path: str, **wanted: Any) -> str:
    """A query for the native dialect: names are percent-encoded as bytes; what is None or "" is left out."""
    said = {"path": path}
    for name, value in wanted.items():
        if value is not None and value != "":
            said[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return urlencode(said, errors="surrogateescape")


def octal(mode: int | None) -> str | None:
    """As queries have it."""
    return None if mode is None else f"{mode:04o}"


def file_type(text: object) -> FileType:
    """Of the wire's word; one that this version does not know is UNKNOWN."""
    if text == "directory":
        return FileType.DIR
    return FileType(text) if text in _TYPES else FileType.UNKNOWN


_TYPES = frozenset(each.value for each in FileType)


def entry_of(said: Mapping[str, Any]) -> EntryInfo:
    """From what the server says. A guest chooses what stands in it: anything but its shape."""
    link_text, target = said.get("link_text"), said.get("target")
    found = {path_from_text(name): path_from_text(value) for name, value in (said.get("metadata") or {}).items()}
    kind = file_type(said["type"])
    return EntryInfo(
        name=path_from_text(said["name"]),
        type=kind,
        path=path_from_text(said["path"]),
        size=said["size"],
        mode=int(said["mode"], 8),
        permissions=said["permissions"],
        owner=path_from_text(said["owner"]),
        group=path_from_text(said["group"]),
        uid=said["uid"],
        gid=said["gid"],
        modified_ns=said["modified_ns"],
        symlink_target=path_from_text(target or link_text or "") if kind is FileType.SYMLINK else None,
        link_text=path_from_text(link_text) if link_text is not None else None,
        target_type=file_type(said["target_type"]) if said.get("target_type") else None,
        metadata=found or None,
    )


def event_of(said: Mapping[str, Any]) -> FilesystemEvent | None:
    """None for a kind of event that this version does not know."""
    try:
        kind = FilesystemEventType(said["type"])
    except ValueError:
        return None
    entry = said.get("entry")
    return FilesystemEvent(name=path_from_text(said["name"]), type=kind, entry=entry_of(entry) if entry else None)
