"""The frames of a files connection: encode requests, decode answers. Pure.

The byte layout is docs/reference/agent-protocol.md, "Files connections". Everything decoded here may come from a
hostile agent: a decoder raises `FrameError` and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, IntFlag

from sandpty.wire.file_types import NO_METADATA, Account, Entry, EntryType, WatchEvent, WatchEventType
from sandpty.wire.frames import frame
from sandpty.wire.types import NO_OFFSET, FrameError

PIECE_BYTES = 256 * 1024  # most of a file in one frame, both ways
PATH_BYTES_MAX = 4095
METADATA_BYTES_MAX = 16 * 1024  # names and values of one entry
METADATA_MAX = 256
ANSWER_BYTES_MAX = 256 * 1024  # of any frame that is not content
NO_ID = 0xFFFF_FFFF
NO_TIME = -(1 << 63)

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_CODE = struct.Struct("<H")
_ENTRY = struct.Struct("<BBIIQIIqqQIBIIIIII")
_SIZE = struct.Struct("<QQ")
_CONTENT_HEAD = struct.Struct("<IB")
_LINK_TEXT, _TARGET = 1, 2


class FileFrame(IntEnum):
    """The type byte; below 0x80 towards the agent."""

    FILES = 0x12
    ACCOUNT_OF = 0x40
    STAT = 0x41
    REAL_PATH_OF = 0x42
    LIST = 0x43
    OPEN = 0x44
    READ = 0x45
    WRITE = 0x46
    DATA = 0x47
    END = 0x48
    MKDIR = 0x49
    MOVE = 0x4A
    COPY = 0x4B
    REMOVE = 0x4C
    CHANGE = 0x4D
    METADATA = 0x4E
    SYMLINK = 0x4F
    SIZE_OF = 0x50
    WATCH = 0x51
    SYNC = 0x52
    IF_ACCOUNT = 0x53
    LISTEN = 0x54
    CONNECT = 0x55
    ACCEPT = 0x56
    DONE = 0xB0
    ACCOUNT = 0xC0
    ENTRY = 0xC1
    ENTRIES = 0xC2
    CONTENT = 0xC3
    CONTENT_END = 0xC4
    WRITTEN = 0xC5
    MADE = 0xC6
    REAL_PATH = 0xC7
    SIZE = 0xC8
    EVENTS = 0xC9
    SYNCED = 0xCA
    FILE_ERROR = 0xCF
    ERROR = 0xFF


class FileErrorCode(IntEnum):
    """Codes of a FILE_ERROR that are no errno of Linux."""

    NOT_A_FILE = 1000
    BAD_PATH = 1001
    NETWORK_FILE_SYSTEM = 1002
    LIMIT = 1003
    ACCOUNT_CHANGED = 1004


class LookFlags(IntFlag):
    FOLLOW = 1
    METADATA = 2


class WriteFlags(IntFlag):
    TRUNCATE = 1
    APPEND = 2
    EXCLUSIVE = 4
    PARENTS = 8
    MODE = 16
    METADATA = 32


class PlaceFlags(IntFlag):
    KEEP = 1
    RECURSIVE = 2
    PARENTS = 8


class ChangeFlags(IntFlag):
    FOLLOW = 1
    RECURSIVE = 2


class WatchFlags(IntFlag):
    ENTRIES = 1
    RECURSIVE = 2
    NETWORK = 4


@dataclass(frozen=True, slots=True)
class Making:
    """How what is missing is made: directories' mode, and the owner (NO_ID: who acts)."""

    mode: int = 0o755
    uid: int = NO_ID
    gid: int = NO_ID

    def fields(self) -> bytes:
        return struct.pack("<III", self.mode, self.uid, self.gid)


@dataclass(frozen=True, slots=True)
class Write:
    """A request to write. mode: of the file; making: of missing directories, and the owner of all."""

    path: str
    flags: WriteFlags
    mode: int
    making: Making
    offset: int = NO_OFFSET
    metadata: Mapping[str, str] = field(default_factory=dict)


# --- requests --------------------------------------------------------------------------------------------------------


def _text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogateescape")
    return _U32.pack(len(raw)) + raw


def _pairs(metadata: Mapping[str, str]) -> bytes:
    items = [_text(part) for item in metadata.items() for part in item]
    return _U32.pack(len(items)) + b"".join(items)


def encode_files(user: str, umask: int) -> bytes:
    return frame(FileFrame.FILES, _U32.pack(umask) + _text(user))


def encode_name(kind: FileFrame, name: str) -> bytes:
    """ACCOUNT_OF, REAL_PATH_OF, SIZE_OF, LISTEN, CONNECT: one string."""
    return frame(kind, _text(name))


def encode_if_account(asked: str, account: Account) -> bytes:
    """What goes before a request that counts on `asked` being that account."""
    numbers = struct.pack("<II", account.uid, account.gid)
    return frame(FileFrame.IF_ACCOUNT, _text(asked) + numbers + _text(account.name) + _text(account.home))


def encode_stat(path: str, flags: LookFlags) -> bytes:
    return frame(FileFrame.STAT, bytes([flags]) + _text(path))


def encode_list(path: str, flags: LookFlags, depth: int, limit: int) -> bytes:
    return frame(FileFrame.LIST, struct.pack("<BII", flags, depth, limit) + _text(path))


def encode_open(path: str, offset: int, length: int | None) -> bytes:
    return frame(FileFrame.OPEN, struct.pack("<QQ", offset, NO_OFFSET if length is None else length) + _text(path))


def encode_read(offset: int, length: int | None) -> bytes:
    return frame(FileFrame.READ, struct.pack("<QQ", offset, NO_OFFSET if length is None else length))


def encode_write(write: Write) -> bytes:
    head = bytes([write.flags]) + _U32.pack(write.mode) + write.making.fields() + _U64.pack(write.offset)
    return frame(FileFrame.WRITE, head + _text(write.path) + _pairs(write.metadata))


def data_head(count: int) -> bytes:
    """What goes before `count` bytes of a DATA frame."""
    return _CONTENT_HEAD.pack(count + 1, FileFrame.DATA)


END = frame(FileFrame.END)
ACCEPT = frame(FileFrame.ACCEPT)


def encode_content(data: bytes) -> bytes:
    """All of a file that is one piece at most, with its end."""
    return (data_head(len(data)) + data if data else b"") + END


def encode_mkdir(path: str, flags: PlaceFlags, making: Making) -> bytes:
    return frame(FileFrame.MKDIR, bytes([flags]) + making.fields() + _text(path))


def encode_transfer(kind: FileFrame, source: str, target: str, flags: PlaceFlags, making: Making) -> bytes:
    """MOVE and COPY."""
    return frame(kind, bytes([flags]) + making.fields() + _text(source) + _text(target))


def encode_remove(path: str, flags: PlaceFlags) -> bytes:
    return frame(FileFrame.REMOVE, bytes([flags]) + _text(path))


def encode_change(path: str, flags: ChangeFlags, change: Making, accessed_ns: int, modified_ns: int) -> bytes:
    """`change`: mode and owner as they shall be, NO_ID for what stays; times: NO_TIME for what stays."""
    times = struct.pack("<qq", accessed_ns, modified_ns)
    return frame(FileFrame.CHANGE, bytes([flags]) + change.fields() + times + _text(path))


def encode_metadata(path: str, metadata: Mapping[str, str]) -> bytes:
    return frame(FileFrame.METADATA, _text(path) + _pairs(metadata))


def encode_symlink(path: str, link_text: str) -> bytes:
    return frame(FileFrame.SYMLINK, _text(path) + _text(link_text))


def encode_watch(path: str, flags: WatchFlags) -> bytes:
    return frame(FileFrame.WATCH, bytes([flags]) + _text(path))


def encode_sync(token: int) -> bytes:
    return frame(FileFrame.SYNC, _U64.pack(token))


# --- answers ---------------------------------------------------------------------------------------------------------


def _take(fields: struct.Struct, payload: bytes, at: int) -> tuple[tuple[int, ...], int]:
    end = at + fields.size
    if end > len(payload):
        raise FrameError("frame is shorter than its fields")
    return fields.unpack_from(payload, at), end


def _take_text(payload: bytes, at: int) -> tuple[str, int]:
    (length,), at = _take(_U32, payload, at)
    end = at + length
    if end > len(payload):
        raise FrameError("string is longer than its frame")
    return payload[at:end].decode("utf-8", "surrogateescape"), end


def _finish(payload: bytes, at: int) -> None:
    if at != len(payload):
        raise FrameError("frame is longer than its fields")


def _take_metadata(payload: bytes, at: int, count: int) -> tuple[Mapping[str, str], int]:
    if count > 2 * METADATA_MAX or count % 2:
        raise FrameError(f"metadata of {count} strings")
    metadata = {}
    for _ in range(count // 2):
        key, at = _take_text(payload, at)
        metadata[key], at = _take_text(payload, at)
    return metadata, at


def take_entry(payload: bytes, at: int, base: str = "") -> tuple[Entry, int]:
    """An entry at `at`, and where it ends; its path is joined to `base`."""
    start = at + _ENTRY.size
    if start > len(payload):
        raise FrameError("frame is shorter than its fields")
    fields = _ENTRY.unpack_from(payload, at)
    kind, target_kind, mode, target_mode, size, uid, gid, modified, accessed, inode, links, flags = fields[:12]
    path_bytes, owner_bytes, group_bytes, text_bytes, target_bytes, strings = fields[12:]
    if kind > EntryType.BLOCK_DEVICE or target_kind > EntryType.BLOCK_DEVICE or (mode | target_mode) > 0o7777:
        raise FrameError("an entry of no known type")
    path_end = start + path_bytes
    owner_end = path_end + owner_bytes
    group_end = owner_end + group_bytes
    text_end = group_end + text_bytes
    end = text_end + target_bytes
    if end > len(payload):
        raise FrameError("string is longer than its frame")
    metadata, at = _take_metadata(payload, end, strings) if strings else (NO_METADATA, end)
    entry = Entry(
        base + payload[start:path_end].decode("utf-8", "surrogateescape"),
        _TYPES[kind],
        mode,
        size,
        uid,
        gid,
        payload[path_end:owner_end].decode("utf-8", "surrogateescape"),
        payload[owner_end:group_end].decode("utf-8", "surrogateescape"),
        modified,
        accessed,
        inode,
        links,
        _TYPES[target_kind],
        target_mode,
        payload[group_end:text_end].decode("utf-8", "surrogateescape") if flags & _LINK_TEXT else None,
        payload[text_end:end].decode("utf-8", "surrogateescape") if flags & _TARGET else None,
        metadata,
    )
    return entry, at


_TYPES = tuple(EntryType)


def decode_entry(payload: bytes, at: int = 0) -> Entry:
    """ENTRY; with `at`, an entry after other fields."""
    entry, at = take_entry(payload, at)
    _finish(payload, at)
    return entry


def decode_entries(payload: bytes, base: str) -> list[Entry]:
    """ENTRIES of a listing; `base` is the listed path with a slash."""
    (count,), at = _take(_U32, payload, 0)
    if count * _ENTRY.size > len(payload):
        raise FrameError("list is longer than its frame")
    entries = []
    for _ in range(count):
        entry, at = take_entry(payload, at, base)
        entries.append(entry)
    _finish(payload, at)
    return entries


def decode_events(payload: bytes, base: str) -> list[WatchEvent]:
    (count,), at = _take(_U32, payload, 0)
    if count * 6 > len(payload):
        raise FrameError("list is longer than its frame")
    events = []
    for _ in range(count):
        kind = payload[at] if at < len(payload) else 0
        name, at = _take_text(payload, at + 1)
        if not WatchEventType.CREATE <= kind <= WatchEventType.GONE or at >= len(payload):
            raise FrameError("an event of no known type")
        described = payload[at]
        at += 1
        entry = None
        if described:
            entry, at = take_entry(payload, at, base)
        events.append(WatchEvent(WatchEventType(kind), name, entry))
    _finish(payload, at)
    return events


def decode_account(payload: bytes) -> Account:
    (uid,), at = _take(_U32, payload, 0)
    (gid,), at = _take(_U32, payload, at)
    name, at = _take_text(payload, at)
    home, at = _take_text(payload, at)
    _finish(payload, at)
    return Account(uid, gid, name, home)


def decode_text(payload: bytes) -> str:
    """REAL_PATH."""
    text, at = _take_text(payload, 0)
    _finish(payload, at)
    return text


def decode_written(payload: bytes) -> tuple[bool, Entry]:
    if not payload:
        raise FrameError("frame is shorter than its fields")
    return payload[0] != 0, decode_entry(payload, 1)


def decode_made(payload: bytes) -> tuple[int, Entry]:
    (made,), at = _take(_U32, payload, 0)
    return made, decode_entry(payload, at)


def decode_number(payload: bytes) -> int:
    """CONTENT_END's count, SYNCED's token."""
    (number,), at = _take(_U64, payload, 0)
    _finish(payload, at)
    return number


def decode_size(payload: bytes) -> tuple[int, int]:
    (size, entries), at = _take(_SIZE, payload, 0)
    _finish(payload, at)
    return size, entries


def decode_file_error(payload: bytes) -> tuple[int, str]:
    (code,), at = _take(_U32, payload, 0)
    message, at = _take_text(payload, at)
    _finish(payload, at)
    return code, message


def is_error(payload: bytes, code: FileErrorCode) -> bool:
    """Whether a FILE_ERROR has this code."""
    return payload[:4] == _U32.pack(code)


def decode_error(payload: bytes) -> tuple[int, str]:
    (code,), at = _take(_CODE, payload, 0)
    message, at = _take_text(payload, at)
    _finish(payload, at)
    return code, message
