"""What E2B's clients send and expect about files (filesystem.Filesystem and `/files`), and entries in those words."""

from __future__ import annotations

import stat
from functools import lru_cache

import msgspec

from sandpty.server.files.paths import base_name, printable
from sandpty.server.files.times import rfc3339
from sandpty.terminal.files import Entry, EntryType, WatchEvent, WatchEventType


class PathRequest(msgspec.Struct, frozen=True):
    """Stat, MakeDir, Remove."""

    path: str = ""


class MoveRequest(msgspec.Struct, frozen=True):
    source: str = ""
    destination: str = ""


class ListDirRequest(msgspec.Struct, frozen=True):
    path: str = ""
    depth: int | str | None = None


class WatchRequest(msgspec.Struct, frozen=True):
    """WatchDir and CreateWatcher. proto3 JSON readers take the original names too."""

    path: str = ""
    recursive: bool = False
    include_entry: bool = False
    include_entry_camel: bool = msgspec.field(name="includeEntry", default=False)
    allow_network_mounts: bool = False
    allow_network_mounts_camel: bool = msgspec.field(name="allowNetworkMounts", default=False)

    @property
    def wants_entries(self) -> bool:
        return self.include_entry or self.include_entry_camel

    @property
    def allows_network(self) -> bool:
        return self.allow_network_mounts or self.allow_network_mounts_camel


class WatcherRequest(msgspec.Struct, frozen=True):
    watcher_id: str = ""
    watcher_id_camel: str = msgspec.field(name="watcherId", default="")

    @property
    def id(self) -> str:
        return self.watcher_id or self.watcher_id_camel


class EntryInfo(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """int64 is text in proto3 JSON, times are RFC 3339, what is default is left out."""

    name: str
    path: str
    permissions: str
    owner: str
    group: str
    modified_time: str
    type: str = "FILE_TYPE_UNSPECIFIED"
    size: str = "0"
    mode: int = 0
    symlink_target: str | None = None
    metadata: dict[str, str] | None = None


class EntryReply(msgspec.Struct, frozen=True):
    entry: EntryInfo


class FilesystemEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    type: str
    entry: EntryInfo | None = None


class EventsReply(msgspec.Struct, frozen=True):
    events: list[FilesystemEvent]


class WatcherReply(msgspec.Struct, frozen=True, rename="camel"):
    watcher_id: str


class WrittenFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """One file of an upload's answer."""

    path: str
    name: str
    type: str | msgspec.UnsetType = msgspec.UNSET
    metadata: dict[str, str] | None = None


class ComposeBody(msgspec.Struct, frozen=True):
    source_paths: list[str] = []
    destination: str = ""
    username: str | None = None


class MetricsReply(msgspec.Struct, frozen=True):
    """GET /metrics of a sandbox: memory and disk in bytes, and memory in MiB once more."""

    ts: int
    cpu_count: int
    cpu_used_pct: float
    mem_total: int
    mem_used: int
    mem_cache: int
    mem_total_mib: int
    mem_used_mib: int
    disk_used: int
    disk_total: int


_PERMISSIONS_KEPT = 1024  # as text: ten thousand entries have a handful of different ones
_TYPES = {
    EntryType.FILE: "FILE_TYPE_FILE",
    EntryType.DIRECTORY: "FILE_TYPE_DIRECTORY",
    EntryType.SYMLINK: "FILE_TYPE_SYMLINK",
}
# As Go's FileMode.String writes them: one letter for each bit that is set, "-" when none is.
_LETTERS = {
    EntryType.DIRECTORY: "d",
    EntryType.SYMLINK: "L",
    EntryType.FIFO: "p",
    EntryType.SOCKET: "S",
    EntryType.CHARACTER_DEVICE: "D",
    EntryType.BLOCK_DEVICE: "D",
}
_EVENT_TYPES = {
    WatchEventType.CREATE: "EVENT_TYPE_CREATE",
    WatchEventType.WRITE: "EVENT_TYPE_WRITE",
    WatchEventType.REMOVE: "EVENT_TYPE_REMOVE",
    WatchEventType.RENAME: "EVENT_TYPE_RENAME",
    WatchEventType.CHMOD: "EVENT_TYPE_CHMOD",
}


@lru_cache(maxsize=_PERMISSIONS_KEPT)
def permissions(kind: EntryType, mode: int) -> str:
    """`-rw-r--r--`, `drwxr-xr-x`, `Lrwxrwxrwx`, `dtrwxrwxrwx`."""
    bits = {
        stat.S_ISUID: "u",
        stat.S_ISGID: "g",
        0: "c" if kind is EntryType.CHARACTER_DEVICE else "",
        stat.S_ISVTX: "t",
    }
    letters = _LETTERS.get(kind, "") + "".join(letter for bit, letter in bits.items() if mode & bit == bit)
    plain = "".join(letter if mode & (0o400 >> place) else "-" for place, letter in enumerate("rwxrwxrwx"))
    return (letters or "-") + plain


def entry_info(entry: Entry) -> EntryInfo:
    """A symlink has the type and mode of what it leads to; its own are in `permissions`.

    One that leads nowhere is a symlink to our clients: envd says nothing, and the SDKs leave such entries out of lists.
    `isSymlink` is left out, as by the version of envd that we say we are: with it the SDKs say `symlink`, not `file`.
    """
    kind, target = entry.target_type, None
    if entry.type is EntryType.SYMLINK:
        kind = entry.type if kind is EntryType.UNKNOWN else kind
        target = printable(entry.target or entry.path)
    path = printable(entry.path)
    metadata = {printable(key): printable(value) for key, value in entry.metadata.items()} if entry.metadata else None
    return EntryInfo(
        name=base_name(path),
        path=path,
        permissions=permissions(entry.type, entry.mode),
        owner=printable(entry.owner),
        group=printable(entry.group),
        modified_time=rfc3339(entry.modified_ns),
        type=_TYPES.get(kind, "FILE_TYPE_UNSPECIFIED"),
        size=str(entry.size),
        mode=entry.target_mode & 0o777,
        symlink_target=target,
        metadata=metadata,
    )


def event_of(event: WatchEvent) -> FilesystemEvent | None:
    """None for what E2B's clients have no word for. The watched directory itself is called `.`."""
    if event.type is WatchEventType.GONE:
        return FilesystemEvent(name=".", type="EVENT_TYPE_REMOVE")
    kind = _EVENT_TYPES.get(event.type)
    if kind is None:
        return None
    return FilesystemEvent(printable(event.name), kind, entry_info(event.entry) if event.entry is not None else None)
