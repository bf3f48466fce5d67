"""A guest's entries in SFTP's words, and what little has to be asked for them."""

from __future__ import annotations

import contextlib
import stat
import time
from collections.abc import Coroutine
from typing import Any

import asyncssh
from asyncssh import SFTPAttrs, SFTPName

from sandpty.terminal.files import Entry, EntryType, Files
from sandpty.wire.errors import SandptyError

_FORMATS = {
    EntryType.FILE: stat.S_IFREG,
    EntryType.DIRECTORY: stat.S_IFDIR,
    EntryType.SYMLINK: stat.S_IFLNK,
    EntryType.FIFO: stat.S_IFIFO,
    EntryType.SOCKET: stat.S_IFSOCK,
    EntryType.CHARACTER_DEVICE: stat.S_IFCHR,
    EntryType.BLOCK_DEVICE: stat.S_IFBLK,
}
_TYPES = {
    EntryType.FILE: asyncssh.FILEXFER_TYPE_REGULAR,
    EntryType.DIRECTORY: asyncssh.FILEXFER_TYPE_DIRECTORY,
    EntryType.SYMLINK: asyncssh.FILEXFER_TYPE_SYMLINK,
}

_STATVFS_FIELDS = ("S", "s", "b", "f", "a", "c", "d", "l")  # of `stat --file-system --format`
STATVFS = " ".join(f"%{field}" for field in _STATVFS_FIELDS)


def text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def raw(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")


def attrs(entry: Entry) -> SFTPAttrs:
    return SFTPAttrs(
        type=_TYPES.get(entry.type, asyncssh.FILEXFER_TYPE_SPECIAL),
        size=entry.size,
        uid=entry.uid,
        gid=entry.gid,
        permissions=_FORMATS.get(entry.type, 0) | entry.mode,
        atime=entry.accessed_ns // 1_000_000_000,
        mtime=entry.modified_ns // 1_000_000_000,
        nlink=entry.links,
    )


def name_of(entry: Entry, name: str) -> SFTPName:
    when = time.strftime("%b %e %H:%M", time.gmtime(entry.modified_ns / 1e9))
    long = f"{entry.permissions} {entry.links:4d} {entry.owner:<8} {entry.group:<8} {entry.size:8d} {when} {name}"
    return SFTPName(raw(name), raw(long), attrs=attrs(entry))


async def meant(files: Files, entry: Entry) -> Entry:
    """The file behind a link. Links to directories stay links: they may lead round and round."""
    if entry.type == EntryType.SYMLINK and entry.target_type == EntryType.FILE:
        with contextlib.suppress(SandptyError):
            return (await files.stat(entry.path, follow=True, metadata=False))._replace(path=entry.path)
    return entry


def parsed_statvfs(said: str) -> asyncssh.SFTPVFSAttrs:
    """What a guest's `stat` said when it was asked for STATVFS."""
    try:
        frsize, bsize, blocks, bfree, bavail, files, ffree, namemax = map(int, said.split())
    except ValueError as error:
        raise SandptyError("file_error", "the sandbox's `stat` says something else") from error
    return asyncssh.SFTPVFSAttrs(
        bsize=bsize,
        frsize=frsize,
        blocks=blocks,
        bfree=bfree,
        bavail=bavail,
        files=files,
        ffree=ffree,
        favail=ffree,
        fsid=0,
        flags=0,
        namemax=namemax,
    )


class Listing:
    """A directory's names, looked up when the first is asked for."""

    def __init__(self, looking: Coroutine[Any, Any, list[SFTPName]]) -> None:
        self._looking: Coroutine[Any, Any, list[SFTPName]] | None = looking
        self._names: list[SFTPName] = []

    def __aiter__(self) -> Listing:
        return self

    async def __anext__(self) -> SFTPName:
        if self._looking is not None:
            looking, self._looking = self._looking, None
            self._names = await looking
            self._names.reverse()
        if not self._names:
            raise StopAsyncIteration
        return self._names.pop()

    def __del__(self) -> None:
        if self._looking is not None:
            self._looking.close()
