"""SFTP on the files of a sandbox, as a user of it. Names are bytes; what a kernel refuses is said as SFTP says it.

asyncssh serves one request after the other, so nothing here needs a lock. Whoever asks without reading the answers is
made to wait.
"""

from __future__ import annotations

import asyncio
import errno
import os
import posixpath
import stat
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakSet

import asyncssh
from asyncssh import SFTPAttrs, SFTPName

from sandpty import config
from sandpty.server.auth import Principal
from sandpty.server.context import Context
from sandpty.server.dialects.ssh import guest_command, roles
from sandpty.server.dialects.ssh.bounds import Turns
from sandpty.server.dialects.ssh.login import Login
from sandpty.server.dialects.ssh.sftp_entries import STATVFS, Listing, meant, name_of, parsed_statvfs, raw, text
from sandpty.server.dialects.ssh.sftp_entries import attrs as entry_attrs
from sandpty.server.dialects.ssh.sftp_errors import SAID_ALOUD, as_sftp
from sandpty.server.dialects.ssh.sftp_handles import Handle, Handles
from sandpty.server.dialects.ssh.transport import Channel
from sandpty.server.guest_defaults import default_user
from sandpty.terminal.files import KEEP, Files
from sandpty.wire.errors import SandptyError
from sandpty.wire.verbs import Sandbox

_P = ParamSpec("_P")
_R = TypeVar("_R")
_STDERR = 1


def _saying(
    method: Callable[Concatenate[SftpServer, _P], Coroutine[Any, Any, _R]],
) -> Callable[Concatenate[SftpServer, _P], Coroutine[Any, Any, _R]]:
    """Answers once there is room for the answer; a SandptyError becomes SFTP's."""

    @wraps(method)
    async def wrapped(self: SftpServer, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            async with self.turn():
                return await method(self, *args, **kwargs)
        except SandptyError as error:
            self.say(error)
            raise as_sftp(error) from error

    return wrapped


class SftpServer(asyncssh.SFTPServer):
    """One client's view of one sandbox's files.

    `scp`: for the older scp, which has words of its own for errors, and copies files for links to them.
    """

    def __init__(self, channel: Channel, context: Context, principal: Principal, login: Login, *, scp: bool) -> None:
        super().__init__(channel)
        self._scp = scp
        self._channel = channel
        self._context = context
        self._principal = principal
        self._login = login
        self._handles = Handles(self._files)
        self._open: set[Handle] = set()
        self._listings: WeakSet[Listing] = WeakSet()
        self._home: str | None = None
        self.turns = Turns()
        self._working = asyncio.Lock()
        self._resting: asyncio.Task[None] | None = None
        self._said: set[str] = set()

    # --- what all have in common ---

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """It comes when the client has taken most of what it asked for."""
        await self.turns.take()
        while self._channel.get_write_buffer_size() > config.CLIENT_WRITE_HIGH_BYTES and not self._channel.is_closing():
            await self._channel.wait_taken()
        await self._channel.connection.flowing.wait()
        async with self._working:
            yield
        if self._handles.live and self._resting is None:
            self._resting = asyncio.create_task(self._rest(), name="sftp-rest")

    async def _rest(self) -> None:
        """Until no handle has a connection into the sandbox."""
        try:
            while self._handles.live:
                await asyncio.sleep(config.SFTP_IDLE_S)
                async with self._working:
                    await self._handles.release_idle()
        finally:
            self._resting = None

    def say(self, error: SandptyError) -> None:
        """Once of each kind, beside the protocol: ssh shows it to who has called it."""
        name = error.reason.name
        if name in SAID_ALOUD and name not in self._said and not self._scp and not self._channel.is_closing():
            self._said.add(name)
            self._channel.write(f"sandpty: {error.message}\n".encode("utf-8", "surrogateescape"), _STDERR)

    async def _sandbox(self) -> tuple[Sandbox, str]:
        """And as whom."""
        sandbox = await self._context.registry.awake(self._login.sandbox, self._principal)
        return sandbox, self._login.user or default_user(sandbox)

    @asynccontextmanager
    async def _files(self) -> AsyncIterator[Files]:
        async with self._context.files.lease(*await self._sandbox()) as files:
            self._home = files.account.home or "/"
            yield files

    @asynccontextmanager
    async def _settled(self) -> AsyncIterator[Files]:
        """For questions about paths: what was written through handles must be there by then."""
        await self._handles.settle()
        async with self._files() as files:
            yield files

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[Files]:
        self._check_writable()
        async with self._settled() as files:
            yield files

    def _check_writable(self) -> None:
        roles.check(self._login.role, "change files")

    async def _path(self, path: bytes) -> str:
        """Relative paths lie below home."""
        wanted = text(path)
        if wanted.startswith("/"):
            return wanted
        if self._home is None:
            async with self._files():
                pass
        home = (self._home or "/").rstrip("/")
        return f"{home}/{wanted}" if wanted not in ("", ".") else home or "/"

    async def _command(self, *argv: str) -> str:
        return await guest_command.run(*await self._sandbox(), *argv)

    # --- looking ---

    @_saying
    async def lstat(self, path: bytes) -> SFTPAttrs:
        where = await self._path(path)
        async with self._settled() as files:
            return entry_attrs(await files.stat(where, metadata=False))

    @_saying
    async def stat(self, path: bytes) -> SFTPAttrs:
        where = await self._path(path)
        async with self._settled() as files:
            return entry_attrs(await files.stat(where, follow=True, metadata=False))

    @_saying
    async def fstat(self, file_obj: object) -> SFTPAttrs:
        handle = _handle(file_obj)
        async with self._settled() as files:
            return entry_attrs(await files.stat(handle.path, follow=True, metadata=False))

    @_saying
    async def realpath(self, path: bytes) -> bytes:
        """The last component need not exist, as OpenSSH has it."""
        where = await self._path(path)
        async with self._settled() as files:
            try:
                return raw(await files.real_path(where))
            except SandptyError as error:
                if error.reason.name != "no_such_file":
                    raise
            parent, last = posixpath.split(posixpath.normpath(where))
            return raw(posixpath.join(await files.real_path(parent), last))

    @_saying
    async def readlink(self, path: bytes) -> bytes:
        where = await self._path(path)
        async with self._settled() as files:
            link_text = (await files.stat(where, metadata=False)).link_text
        if link_text is None:
            raise SandptyError("bad_argument", f"{where} is no symbolic link")
        return raw(link_text)

    def scandir(self, path: bytes) -> AsyncIterator[SFTPName]:
        if len(self._listings) >= config.SFTP_HANDLES_MAX:
            raise asyncssh.SFTPFailure("too many open directories")
        listing = Listing(self._listed(path))
        self._listings.add(listing)
        return listing

    @_saying
    async def _listed(self, path: bytes) -> list[SFTPName]:
        where = await self._path(path)
        async with self._settled() as files:
            here = await files.stat(where, follow=True, metadata=False)
            found = [entry async for entries in files.list(where, metadata=False) for entry in entries]
            if self._scp:
                found = [await meant(files, entry) for entry in found]
        return [name_of(here, "."), name_of(here, ".."), *(name_of(entry, entry.name) for entry in found)]

    @_saying
    async def statvfs(self, path: bytes) -> asyncssh.SFTPVFSAttrs:
        return await self._statvfs(await self._path(path))

    @_saying
    async def fstatvfs(self, file_obj: object) -> asyncssh.SFTPVFSAttrs:
        return await self._statvfs(_handle(file_obj).path)

    async def _statvfs(self, where: str) -> asyncssh.SFTPVFSAttrs:
        """The guest's own `stat` knows; nothing else asks for it."""
        return parsed_statvfs(await self._command("stat", "--file-system", f"--format={STATVFS}", "--", where))

    # --- content ---

    @_saying
    async def open(self, path: bytes, pflags: int, attrs: SFTPAttrs) -> object:
        if len(self._open) >= config.SFTP_HANDLES_MAX:
            raise SandptyError("limit", "too many open files")
        where = await self._path(path)
        handle = Handle(
            where,
            readable=bool(pflags & asyncssh.FXF_READ),
            writable=bool(pflags & (asyncssh.FXF_WRITE | asyncssh.FXF_APPEND)),
            append=bool(pflags & asyncssh.FXF_APPEND),
        )
        if handle.writable:
            await self._make(handle, pflags, attrs.permissions)
        else:
            await self._handles.begin_reading(handle)
        self._open.add(handle)
        return handle

    async def _make(self, handle: Handle, pflags: int, permissions: int | None) -> None:
        """As open(2) would: what it raises is raised here, not with the first byte.

        A file that its owner may not write is made so that we may, and gets its mode at the end.
        """
        mode = 0o666 if permissions is None else permissions & 0o7777
        async with self._changing() as files:
            if not pflags & asyncssh.FXF_CREAT:
                await files.stat(handle.path, follow=True, metadata=False)
            async with files.create(
                handle.path,
                mode=mode | stat.S_IRUSR | stat.S_IWUSR,
                truncate=bool(pflags & asyncssh.FXF_TRUNC),
                append=not pflags & asyncssh.FXF_TRUNC,
                exclusive=bool(pflags & asyncssh.FXF_EXCL),
            ) as writing:
                await writing.finish()
                if writing.created and mode | stat.S_IRUSR | stat.S_IWUSR != mode:
                    handle.closing_mode = mode & ~config.FILES_UMASK

    @_saying
    async def read(self, file_obj: object, offset: int, size: int) -> bytes:
        handle = _handle(file_obj)
        if not handle.readable:
            raise SandptyError("permission_denied", "the file was not opened for reading")
        if self._channel.is_closing():  # `copy-data` would go on without it
            raise asyncssh.SFTPConnectionLost("the client has gone")
        if handle.writing is not None:
            await self._handles.release(handle)
        return await self._handles.read(handle, offset, min(size, config.SFTP_READ_BYTES))

    @_saying
    async def write(self, file_obj: object, offset: int, data: bytes) -> int:
        handle = _handle(file_obj)
        if not handle.writable:
            raise SandptyError("permission_denied", "the file was not opened for writing")
        await self._handles.write(handle, offset, data)
        return len(data)

    @_saying
    async def fsync(self, file_obj: object) -> None:
        """In the guest's kernel; a sandbox's disk has no more to offer."""
        handle = _handle(file_obj)
        await self._handles.release(handle)
        handle.check()

    @_saying
    async def close(self, file_obj: object) -> None:
        handle = _handle(file_obj)
        self._open.discard(handle)
        await self._handles.release(handle)
        if handle.closing_mode is not None:
            async with self._files() as files:
                await files.change(handle.path, mode=handle.closing_mode)
        handle.check()

    async def exit(self) -> None:
        """The client has gone; what was written stays as far as it came."""
        if (resting := self._resting) is not None:
            resting.cancel()
            await asyncio.gather(resting, return_exceptions=True)
        for handle in list(self._open):
            self._open.discard(handle)
            await self._handles.release(handle)

    # --- changing ---

    async def _setstat(self, where: str, attrs: SFTPAttrs, *, follow: bool) -> None:
        if attrs.size is not None:
            self._check_writable()
            await self._handles.settle()
            await self._command("truncate", "--no-create", f"--size={attrs.size}", "--", where)
        async with self._changing() as files:
            await files.change(
                where,
                mode=attrs.permissions & 0o7777 if attrs.permissions is not None and follow else KEEP,
                uid=KEEP if attrs.uid is None else attrs.uid,
                gid=KEEP if attrs.gid is None else attrs.gid,
                accessed_ns=None if attrs.atime is None else int(attrs.atime * 10**9),
                modified_ns=None if attrs.mtime is None else int(attrs.mtime * 10**9),
                follow=follow,
            )

    @_saying
    async def setstat(self, path: bytes, attrs: SFTPAttrs) -> None:
        await self._setstat(await self._path(path), attrs, follow=True)

    @_saying
    async def lsetstat(self, path: bytes, attrs: SFTPAttrs) -> None:
        await self._setstat(await self._path(path), attrs, follow=False)

    @_saying
    async def fsetstat(self, file_obj: object, attrs: SFTPAttrs) -> None:
        handle = _handle(file_obj)
        if attrs.permissions is not None:
            handle.closing_mode = None
        await self._setstat(handle.path, attrs, follow=True)

    @_saying
    async def remove(self, path: bytes) -> None:
        where = await self._path(path)
        async with self._changing() as files:
            if (await files.stat(where, metadata=False)).is_directory:
                raise SandptyError("is_a_directory", f"{where} is a directory")
            await files.remove(where)

    @_saying
    async def rmdir(self, path: bytes) -> None:
        where = await self._path(path)
        async with self._changing() as files:
            if not (await files.stat(where, metadata=False)).is_directory:
                raise SandptyError("not_a_directory", f"{where} is no directory")
            await files.remove(where)

    @_saying
    async def mkdir(self, path: bytes, attrs: SFTPAttrs) -> None:
        where = await self._path(path)
        mode = (0o777 if attrs.permissions is None else attrs.permissions & 0o7777) & ~config.FILES_UMASK
        async with self._changing() as files:
            if not (await files.make_directory(where, parents=False, mode=mode)).made:
                raise SandptyError("file_exists", f"{where} exists")

    @_saying
    async def rename(self, oldpath: bytes, newpath: bytes) -> None:
        """SFTP's own: what is there stays."""
        await self._move(oldpath, newpath, overwrite=False)

    @_saying
    async def posix_rename(self, oldpath: bytes, newpath: bytes) -> None:
        await self._move(oldpath, newpath, overwrite=True)

    async def _move(self, oldpath: bytes, newpath: bytes, *, overwrite: bool) -> None:
        source, target = await self._path(oldpath), await self._path(newpath)
        async with self._changing() as files:
            await files.move(source, target, overwrite=overwrite)

    @_saying
    async def symlink(self, oldpath: bytes, newpath: bytes) -> None:
        where = await self._path(newpath)
        async with self._changing() as files:
            await files.make_symlink(where, text(oldpath))

    @_saying
    async def link(self, oldpath: bytes, newpath: bytes) -> None:
        self._check_writable()
        await self._handles.settle()
        source, target = await self._path(oldpath), await self._path(newpath)
        await self._command("ln", "--no-target-directory", "--", source, target)


def _handle(file_obj: object) -> Handle:
    if not isinstance(file_obj, Handle):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return file_obj
