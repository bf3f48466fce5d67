"""What Hyperbrowser's clients send and expect about files. Times in milliseconds."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Meta

Encoding: TypeAlias = Literal["utf8", "base64"]
Mode: TypeAlias = Annotated[str, Meta(pattern=r"^(0o?)?[0-7]{1,4}$")]
Id: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class _Body(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """`runAs` names whom to act as; the default is the sandbox's user."""

    run_as: str | None = None


class _Reply(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    pass


class PathBody(_Body, frozen=True, kw_only=True):
    path: str


class ReadBody(PathBody, frozen=True, kw_only=True):
    """POST /files/read."""

    offset: Annotated[int, Meta(ge=0)] | None = None
    length: Annotated[int, Meta(ge=0)] | None = None
    encoding: Encoding | None = None


class WriteEntry(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    data: str = ""
    encoding: Encoding | None = None
    append: bool | None = None
    mode: Mode | None = None


class WriteBody(_Body, frozen=True, kw_only=True):
    """POST /files/write: one file (Python), or a list of them."""

    files: list[WriteEntry] | None = None
    path: str | None = None
    data: str = ""
    encoding: Encoding | None = None
    append: bool | None = None
    mode: Mode | None = None

    @property
    def entries(self) -> list[WriteEntry]:
        if self.files is not None:
            return self.files
        if self.path is None:
            return []
        return [WriteEntry(path=self.path, data=self.data, encoding=self.encoding, append=self.append, mode=self.mode)]


class MakeDirectoryBody(PathBody, frozen=True, kw_only=True):
    parents: bool | None = None
    mode: Mode | None = None


class TransferBody(_Body, frozen=True, kw_only=True):
    """POST /files/move, POST /files/copy."""

    source: str = msgspec.field(name="from")
    to: str
    recursive: bool | None = None
    overwrite: bool | None = None


class DeleteBody(PathBody, frozen=True, kw_only=True):
    recursive: bool | None = None


class ChmodBody(PathBody, frozen=True, kw_only=True):
    mode: Mode
    recursive: bool | None = None


class ChownBody(PathBody, frozen=True, kw_only=True):
    uid: Id | None = None
    gid: Id | None = None
    recursive: bool | None = None


class WatchBody(PathBody, frozen=True, kw_only=True):
    recursive: bool | None = None


class PresignBody(PathBody, frozen=True, kw_only=True):
    expires_in_seconds: Annotated[int, Meta(ge=1)] | None = None
    one_time: bool | None = None


class FileInfo(_Reply, frozen=True, kw_only=True):
    path: str
    name: str
    type: Literal["file", "dir"]
    size: int
    mode: int
    permissions: str
    owner: str
    group: str
    modified_time: int
    symlink_target: str | None


class FileList(_Reply, frozen=True, kw_only=True):
    path: str
    depth: int
    entries: list[FileInfo]


class Written(_Reply, frozen=True, kw_only=True):
    path: str
    name: str
    type: Literal["file"] = "file"


class Transferred(_Reply, frozen=True, kw_only=True):
    path: str
    bytes_written: int


class Presigned(_Reply, frozen=True, kw_only=True):
    token: str
    path: str
    method: Literal["GET", "PUT"]
    expires_at: int
    url: str


class FileEvent(_Reply, frozen=True, kw_only=True):
    """`op`: create, write, remove, rename or chmod. `path` is absolute."""

    seq: int
    path: str
    op: str
    timestamp: int


class WatchStatus(_Reply, frozen=True, kw_only=True, omit_defaults=True):
    id: str
    path: str
    recursive: bool
    active: bool
    created_at: int
    oldest_seq: int
    last_seq: int
    event_count: int
    stopped_at: int | None = None
    error: str | None = None
    events: list[FileEvent] | None = None
