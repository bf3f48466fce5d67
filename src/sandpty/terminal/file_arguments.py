"""What may be asked of a files connection: arguments are checked here, before a frame is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from sandpty.wire.errors import SandptyError
from sandpty.wire.file_frames import (
    METADATA_BYTES_MAX,
    METADATA_MAX,
    NO_ID,
    PATH_BYTES_MAX,
    Making,
    PlaceFlags,
    Write,
    WriteFlags,
    encode_write,
)
from sandpty.wire.frames import NO_OFFSET

KEEP = -1  # for owner and mode arguments: leave it as it is


def check_path(path: str) -> None:
    raw = path.encode("utf-8", "surrogateescape")
    if not raw.startswith(b"/") or b"\0" in raw or len(raw) > PATH_BYTES_MAX:
        shown = raw[:200].decode("utf-8", "replace").replace("\0", "�")
        raise SandptyError("bad_path", f"not an absolute path of at most {PATH_BYTES_MAX} bytes: {shown}")


def check_metadata(metadata: Mapping[str, str]) -> None:
    size = sum(
        len(key.encode("utf-8", "replace")) + len(value.encode("utf-8", "replace")) for key, value in metadata.items()
    )
    if size > METADATA_BYTES_MAX or len(metadata) > METADATA_MAX:
        raise SandptyError("too_large", f"metadata is over {METADATA_BYTES_MAX} bytes or {METADATA_MAX} entries")
    if any(not key or "\0" in key or len(key.encode("utf-8", "replace")) > 246 for key in metadata):
        raise SandptyError("bad_argument", "a metadata key has 1 to 246 bytes and no NUL")


def number(value: int) -> int:
    if not -1 <= value < NO_ID:
        raise SandptyError("bad_argument", f"{value} is no mode, user or group")
    return NO_ID if value == KEEP else value


def making(mode: int, uid: int, gid: int) -> Making:
    return Making(number(mode), number(uid), number(gid))


def check_range(offset: int, length: int | None) -> None:
    if not 0 <= offset < NO_OFFSET or (length is not None and not 0 <= length < NO_OFFSET):
        raise SandptyError("bad_argument", "offset and length are 0 or more")


def place_flags(*, keep: bool = False, recursive: bool = False, parents: bool = False) -> PlaceFlags:
    flags = PlaceFlags.KEEP if keep else PlaceFlags(0)
    flags |= PlaceFlags.RECURSIVE if recursive else PlaceFlags(0)
    return flags | (PlaceFlags.PARENTS if parents else PlaceFlags(0))


class WriteOptions(TypedDict, total=False):
    """See `Files.create`."""

    mode: int
    truncate: bool
    append: bool
    exclusive: bool
    parents: bool
    parents_mode: int
    uid: int
    gid: int
    set_mode: bool
    offset: int | None
    metadata: Mapping[str, str] | None


def write_request(path: str, how: WriteOptions) -> bytes:
    """The request to write that `Files.create` describes. Raises as the checks here."""
    metadata, offset, append = how.get("metadata"), how.get("offset"), how.get("append", False)
    chosen = (
        (how.get("truncate", True) and not append, WriteFlags.TRUNCATE),
        (append, WriteFlags.APPEND),
        (how.get("exclusive"), WriteFlags.EXCLUSIVE),
        (how.get("parents"), WriteFlags.PARENTS),
        (how.get("set_mode"), WriteFlags.MODE),
        (metadata is not None, WriteFlags.METADATA),
    )
    flags = WriteFlags(sum(flag.value for wanted, flag in chosen if wanted))
    check_range(offset or 0, None)
    check_metadata(metadata or {})
    where = NO_OFFSET if offset is None else offset
    made = making(how.get("parents_mode", 0o755), how.get("uid", KEEP), how.get("gid", KEEP))
    return encode_write(Write(path, flags, number(how.get("mode", 0o666)), made, where, metadata or {}))
