"""The values of a files connection (docs/reference/agent-protocol.md, "Files connections").

Paths and names are a guest's bytes: `str` with `surrogateescape`, so that a name that is no UTF-8 comes back as it was.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType
from typing import NamedTuple


class EntryType(IntEnum):
    """What lies at a path. UNKNOWN as a symlink's target: it dangles, or may not be looked at."""

    UNKNOWN = 0
    FILE = 1
    DIRECTORY = 2
    SYMLINK = 3
    FIFO = 4
    SOCKET = 5
    CHARACTER_DEVICE = 6
    BLOCK_DEVICE = 7


_FORMATS = {
    EntryType.UNKNOWN: 0,
    EntryType.FILE: stat.S_IFREG,
    EntryType.DIRECTORY: stat.S_IFDIR,
    EntryType.SYMLINK: stat.S_IFLNK,
    EntryType.FIFO: stat.S_IFIFO,
    EntryType.SOCKET: stat.S_IFSOCK,
    EntryType.CHARACTER_DEVICE: stat.S_IFCHR,
    EntryType.BLOCK_DEVICE: stat.S_IFBLK,
}


@dataclass(frozen=True, slots=True)
class Account:
    """A user of the guest, from its /etc/passwd."""

    uid: int
    gid: int
    name: str
    home: str


NO_METADATA: Mapping[str, str] = MappingProxyType({})


class Entry(NamedTuple):
    """One file system entry (a tuple, because listings are made of ten thousands of them).

    path: as it was asked for; in a listing, the listed path with the entry's relative path joined to it.
    mode: permission bits and set-id/sticky bits (07777), of the entry itself.
    size: bytes, of the entry itself (0 for what has none, such as files of /proc).
    owner, group: names of the guest, else the number as text.
    link_text: what a symlink holds, as `readlink` says it; None for everything else.
    target: a symlink fully resolved, None when it cannot be (or this is no symlink).
    target_type, target_mode: of what a symlink leads to; for everything else of the entry itself.
    metadata: `user.e2b.*` extended attributes without that prefix; empty unless asked for.
    """

    path: str
    type: EntryType
    mode: int
    size: int
    uid: int
    gid: int
    owner: str
    group: str
    modified_ns: int
    accessed_ns: int
    inode: int
    links: int
    target_type: EntryType
    target_mode: int
    link_text: str | None = None
    target: str | None = None
    metadata: Mapping[str, str] = NO_METADATA

    @property
    def name(self) -> str:
        """The last component of the path; `/` for the root."""
        return self.path.rstrip("/").rpartition("/")[2] or "/"

    @property
    def is_directory(self) -> bool:
        """A directory itself; a symlink to one is not (see target_type)."""
        return self.type is EntryType.DIRECTORY

    @property
    def permissions(self) -> str:
        """As `ls -l` writes them: `-rw-r--r--`, `drwxr-xr-x`, `lrwxrwxrwx`."""
        return stat.filemode(_FORMATS[self.type] | self.mode)


class WatchEventType(IntEnum):
    """What happened below a watched directory.

    RENAME: the entry of that name moved away (its new place, when watched, is a CREATE). OVERFLOW: so much happened
    that the kernel dropped events; the name is empty. GONE: the watched directory itself was removed or moved away; it
    is the last.
    """

    CREATE = 1
    WRITE = 2
    REMOVE = 3
    RENAME = 4
    CHMOD = 5
    OVERFLOW = 6
    GONE = 7


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """name: relative to the watched directory (`sub/file`); entry: when asked for and still there."""

    type: WatchEventType
    name: str
    entry: Entry | None = None
