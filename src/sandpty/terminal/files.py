"""The files of a guest, through a files connection of its agent.

One connection acts as one user of the guest (really: the agent forks a child that drops to the user's ids) and does one
thing after the other. Paths are absolute guest paths (`str` with surrogateescape); nothing is expanded or cleaned here.

Every method raises SandptyError: agent_unreachable when the connection is lost, agent_misbehaved when the agent breaks
the protocol, bad_path for a path that is not absolute, too long or holds a NUL, permission_denied, file_error (whatever
else the guest's kernel says), and what its docstring names. After an error of the guest's the connection is good for
the next request; after a cancelled call, an unfinished reading or writing it is not (`reusable`).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar, Unpack

from sandpty import config
from sandpty.terminal.file_arguments import (
    KEEP,
    WriteOptions,
    check_metadata,
    check_path,
    check_range,
    making,
    place_flags,
    write_request,
)
from sandpty.terminal.file_content import Reading, Writing
from sandpty.terminal.file_socket import AccountChangedError, FileSocket
from sandpty.terminal.watching import Watch
from sandpty.wire import file_frames
from sandpty.wire.errors import SandptyError
from sandpty.wire.file_frames import (
    NO_ID,
    NO_TIME,
    ChangeFlags,
    FileErrorCode,
    FileFrame,
    LookFlags,
    Making,
    PlaceFlags,
    WatchFlags,
)
from sandpty.wire.file_types import Account, Entry, EntryType, WatchEvent, WatchEventType
from sandpty.wire.frames import FrameError

__all__ = [
    "KEEP",
    "Account",
    "AccountChangedError",
    "Entry",
    "EntryType",
    "Files",
    "MadeDirectory",
    "Reading",
    "Watch",
    "WatchEvent",
    "WatchEventType",
    "Writing",
    "open_files",
]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class MadeDirectory:
    """The answer of make_directory. `made`: how many levels were new (the last ones of the path); 0: it was there."""

    entry: Entry
    made: int


class Files:
    """Made by `open_files`. `account` says whom it acts as."""

    def __init__(self, connection: FileSocket, account: Account) -> None:
        self._socket = connection
        self.account = account
        self._busy = False
        self._known: dict[str, Account] = {}  # as last looked up
        self._condition = b""  # goes before the next request

    @property
    def at_rest(self) -> bool:
        """Whether nothing is under way. `reusable` also looks for what the agent may have said since."""
        return not self._busy and not self._socket.closed

    @property
    def reusable(self) -> bool:
        """Whether the connection is at rest and unbroken: the next request may be made."""
        return not self._busy and not self._socket.has_said_something

    @contextmanager
    def _turn(self, *paths: str) -> Iterator[None]:
        """For one request. Left with an error that is not the guest's, the connection stays busy for ever."""
        for path in paths:
            check_path(path)
        if self._busy:
            raise SandptyError("conflict", "a files connection does one thing at a time")
        self._busy = True
        try:
            yield
        except SandptyError as error:
            if error.reason.name not in ("agent_unreachable", "agent_misbehaved"):
                self._busy = False
            raise
        self._busy = False

    async def _ask(self, request: bytes, kind: FileFrame, path: str, decode: Callable[[bytes], _T]) -> _T:
        condition, self._condition = self._condition, b""
        await self._socket.send(condition + request)
        got, payload = await self._socket.frame()
        if condition and got == FileFrame.FILE_ERROR and file_frames.is_error(payload, FileErrorCode.ACCOUNT_CHANGED):
            raise AccountChangedError
        self._socket.check(got, payload, kind, path)
        try:
            return decode(payload)
        except FrameError as error:
            raise self._socket.misbehaved(str(error)) from error

    # --- looking ---

    async def look_up(self, user: str) -> Account:
        """Another user of the guest, by name or decimal uid. Raises no_such_user."""
        with self._turn():
            request = file_frames.encode_name(FileFrame.ACCOUNT_OF, user[:256])
            account = await self._ask(request, FileFrame.ACCOUNT, user, file_frames.decode_account)
        if len(self._known) >= config.FILE_ACCOUNTS_KEPT:
            self._known.clear()
        self._known[user] = account
        return account

    async def with_account(self, user: str, do: Callable[[Account], Awaitable[_T]]) -> _T:
        """`do` with the account of `look_up`, which in most cases is not waited for.

        An account that is known already goes with the first request of `do`, for the guest to compare: if it is another
        one now, nothing is done, and `do` is called again with that. The first request must be one that has one answer:
        anything but `list` and `create`. Raises no_such_user, and what `do` raises.
        """
        if (known := self._known.get(user)) is not None:
            self._condition = file_frames.encode_if_account(user, known)
            try:
                return await do(known)
            except AccountChangedError:
                pass
            finally:
                self._condition = b""
        return await do(await self.look_up(user))

    async def stat(self, path: str, *, follow: bool = False, metadata: bool = True) -> Entry:
        """One entry; follow: of what a symlink leads to. Raises no_such_file, not_a_directory, symlink_loop."""
        flags = (LookFlags.FOLLOW if follow else LookFlags(0)) | (LookFlags.METADATA if metadata else LookFlags(0))
        with self._turn(path):
            request = file_frames.encode_stat(path, flags)
            return await self._ask(request, FileFrame.ENTRY, path, file_frames.decode_entry)

    async def real_path(self, path: str) -> str:
        """The path with every symlink resolved. Raises no_such_file, not_a_directory, symlink_loop."""
        with self._turn(path):
            request = file_frames.encode_name(FileFrame.REAL_PATH_OF, path)
            return await self._ask(request, FileFrame.REAL_PATH, path, file_frames.decode_text)

    async def list(
        self, path: str, *, depth: int = 1, limit: int | None = None, metadata: bool = True
    ) -> AsyncIterator[list[Entry]]:
        """Entries below a directory, in portions: a pre-order walk, names in byte order (`a`, `a/x`, `b`).

        A `path` that is a symlink to a directory is followed, others are not; entries that vanish meanwhile or may not
        be read are passed over. limit: entries at most (None: FILES_LISTED_MAX); more raises `limit`. Take every
        portion: a listing that is left early spoils the connection.
        Raises no_such_file, not_a_directory, symlink_loop, limit.
        """
        most = config.FILES_LISTED_MAX if limit is None else limit
        flags = LookFlags.METADATA if metadata else LookFlags(0)
        base = path.rstrip("/") + "/"
        count = 0
        with self._turn(path):
            assert not self._condition
            depth = max(1, min(depth, NO_ID))
            await self._socket.send(file_frames.encode_list(path, flags, depth, max(0, min(most, NO_ID))))
            while True:
                kind, payload = await self._socket.frame()
                if kind != FileFrame.ENTRIES:
                    self._socket.check(kind, payload, FileFrame.DONE, path)
                    return
                try:
                    entries = file_frames.decode_entries(payload, base)
                except FrameError as error:
                    raise self._socket.misbehaved(str(error)) from error
                count += len(entries)
                if count > most or not entries:
                    raise self._socket.misbehaved("a listing that does not end")
                yield entries
                await asyncio.sleep(0)  # decoding is work: others get their turn

    async def size_of(self, path: str) -> int:
        """Bytes of a file, or of all files below a directory (what they say, not what they take on the disk)."""
        with self._turn(path):
            request = file_frames.encode_name(FileFrame.SIZE_OF, path)
            return (await self._ask(request, FileFrame.SIZE, path, file_frames.decode_size))[0]

    # --- content ---

    def open(self, path: str, *, offset: int = 0, length: int | None = None) -> AbstractAsyncContextManager[Reading]:
        """Open a file and ask for a range at once (length None: to its end; 0: only open).

        Raises no_such_file, is_a_directory, not_a_directory, not_a_file (a FIFO, socket or block device).
        """
        return self._open(path, offset, length)

    @asynccontextmanager
    async def _open(self, path: str, offset: int, length: int | None) -> AsyncIterator[Reading]:
        check_range(offset, length)
        with self._turn(path):
            request = file_frames.encode_open(path, offset, length)
            entry = await self._ask(request, FileFrame.ENTRY, path, file_frames.decode_entry)
        self._busy = True
        reading = Reading(self._socket, path, entry, length)
        try:
            yield reading
            if reading.wanted == 0:
                await reading.piece()  # its end is there already
        finally:
            self._busy = not reading.done

    def create(self, path: str, **how: Unpack[WriteOptions]) -> AbstractAsyncContextManager[Writing]:
        """Open a file for writing, in place; made with `mode & ~umask` when it is not there.

        mode (0o666). truncate (True). parents: make missing directories (parents_mode, 0o755, not masked; owned as the
        file). uid, gid: the file gets this owner in any case (KEEP: who acts). append: what is there stays (as with
        truncate=False). exclusive: it must not be there. offset: where to begin writing. set_mode: the file gets
        exactly `mode`, umask or not, new or not. metadata: replaces the whole set of `user.e2b.*` attributes ({} clears
        it, None leaves it; file systems without attributes ignore it).
        Raises no_such_file, file_exists (exclusive), is_a_directory, not_a_directory, not_a_file, no_space: some of
        them only when content is written.
        """
        return self._create(path, write_request(path, how))

    @asynccontextmanager
    async def _create(self, path: str, request: bytes) -> AsyncIterator[Writing]:
        def finished() -> None:
            self._busy = False

        with self._turn(path):
            assert not self._condition
            await self._socket.send(request)
        self._busy = True
        yield Writing(self._socket, path, finished)

    async def write(self, path: str, data: bytes | AsyncIterable[bytes], **how: Unpack[WriteOptions]) -> Entry:
        """`create` (which has the same options), write all of `data` and finish; what is small goes in one piece."""
        if isinstance(data, bytes) and len(data) <= config.FILE_SMALL_BYTES:
            request = write_request(path, how) + file_frames.encode_content(data)
            with self._turn(path):
                return (await self._ask(request, FileFrame.WRITTEN, path, file_frames.decode_written))[1]
        async with self.create(path, **how) as writing:
            if isinstance(data, bytes):
                await writing.write(data)
            else:
                async for piece in data:
                    await writing.write(piece)
            return await writing.finish()

    # --- changing ---

    async def make_directory(
        self, path: str, *, parents: bool = True, mode: int = 0o755, uid: int = KEEP, gid: int = KEEP
    ) -> MadeDirectory:
        """Make a directory with exactly `mode`; new levels get the owner. One that is there stays as it is (`made` 0).

        Raises no_such_file (parents=False), file_exists (something else is there), not_a_directory (in between).
        """
        with self._turn(path):
            flags = PlaceFlags.PARENTS if parents else PlaceFlags(0)
            request = file_frames.encode_mkdir(path, flags, making(mode, uid, gid))
            made, entry = await self._ask(request, FileFrame.MADE, path, file_frames.decode_made)
            return MadeDirectory(entry, made)

    async def _transfer(self, kind: FileFrame, source: str, target: str, flags: PlaceFlags, making: Making) -> Entry:
        with self._turn(source, target):
            request = file_frames.encode_transfer(kind, source, target, flags, making)
            return await self._ask(request, FileFrame.ENTRY, f"{source} -> {target}", file_frames.decode_entry)

    async def move(
        self,
        source: str,
        target: str,
        *,
        overwrite: bool = True,
        parents: bool = False,
        parents_mode: int = 0o755,
        uid: int = KEEP,
        gid: int = KEEP,
    ) -> Entry:
        """rename(2), also where the kernel cannot (between file systems: copied, then removed). The entry afterwards.

        Raises no_such_file, file_exists (overwrite=False), not_empty, not_a_directory, is_a_directory, bad_path
        (a directory into itself).
        """
        flags = place_flags(keep=not overwrite, parents=parents)
        return await self._transfer(FileFrame.MOVE, source, target, flags, making(parents_mode, uid, gid))

    async def copy(
        self,
        source: str,
        target: str,
        *,
        recursive: bool = False,
        overwrite: bool = True,
        parents: bool = False,
        parents_mode: int = 0o755,
        uid: int = KEEP,
        gid: int = KEEP,
    ) -> Entry:
        """Copy a file, symlink or (recursive) a whole tree as `cp -a` does: modes, times, owners, metadata, holes.

        Symlinks are copied as links with the same text. A directory is merged into one that is there; a symlink that is
        in the way is replaced, not followed. uid, gid: only of missing parents that are made. Sockets and devices are
        passed over. Raises no_such_file, file_exists, is_a_directory (without recursive), bad_path (into itself),
        no_space, limit.
        """
        flags = place_flags(keep=not overwrite, parents=parents, recursive=recursive)
        return await self._transfer(FileFrame.COPY, source, target, flags, making(parents_mode, uid, gid))

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """A symlink is removed, not what it leads to. Raises no_such_file, not_empty (a directory, not recursive)."""
        with self._turn(path):
            request = file_frames.encode_remove(path, place_flags(recursive=recursive))
            await self._ask(request, FileFrame.DONE, path, bytes)

    async def change(
        self,
        path: str,
        *,
        mode: int = KEEP,
        uid: int = KEEP,
        gid: int = KEEP,
        accessed_ns: int | None = None,
        modified_ns: int | None = None,
        recursive: bool = False,
        follow: bool = True,
    ) -> Entry:
        """chmod, chown and utimes in one. recursive: symlinks below are not followed; modes of symlinks stay."""
        flags = ChangeFlags.FOLLOW if follow else ChangeFlags(0)
        flags |= ChangeFlags.RECURSIVE if recursive else ChangeFlags(0)
        times = [NO_TIME if time is None else time for time in (accessed_ns, modified_ns)]
        if any(abs(time) > -NO_TIME or time == -NO_TIME for time in times):
            raise SandptyError("bad_argument", "a time out of range")
        with self._turn(path):
            request = file_frames.encode_change(path, flags, making(mode, uid, gid), *times)
            return await self._ask(request, FileFrame.ENTRY, path, file_frames.decode_entry)

    async def set_metadata(self, path: str, metadata: Mapping[str, str]) -> Entry:
        """Replace the whole set of `user.e2b.*` attributes. Raises no_such_file, not_a_file, too_large."""
        check_metadata(metadata)
        with self._turn(path):
            request = file_frames.encode_metadata(path, metadata)
            return await self._ask(request, FileFrame.ENTRY, path, file_frames.decode_entry)

    async def make_symlink(self, path: str, link_text: str) -> Entry:
        """Raises file_exists, no_such_file."""
        with self._turn(path):
            request = file_frames.encode_symlink(path, link_text)
            return await self._ask(request, FileFrame.ENTRY, path, file_frames.decode_entry)

    # --- unix sockets ---
    # One end of a pair made here is handed out, and the guest has the other: whoever has a socket decides for all who
    # have it whether reading may block.

    async def connect_to(self, path: str) -> socket.socket:
        """To who listens there; non-blocking. Raises port_closed (nobody does), no_such_file, timeout, limit."""
        check_path(path)
        return await self._joined(file_frames.encode_name(FileFrame.CONNECT, path), path)

    async def listen_at(self, path: str) -> None:
        """A socket that only this user reaches; its path goes with this connection. Raises conflict, no_such_file."""
        with self._turn(path):
            await self._ask(file_frames.encode_name(FileFrame.LISTEN, path), FileFrame.DONE, path, bytes)

    async def accept(self) -> socket.socket:
        """The next one who connects where this listens; non-blocking. Raises conflict when the guest has no room."""
        return await self._joined(file_frames.ACCEPT, "")

    async def _joined(self, request: bytes, path: str) -> socket.socket:
        with ExitStack() as on_error:
            ours, theirs = socket.socketpair()
            on_error.enter_context(ours)
            with theirs, self._turn():
                self._socket.send_with(request, theirs.fileno())
                theirs.close()
                await self._socket.answer(FileFrame.DONE, path)
            ours.setblocking(False)
            on_error.pop_all()
        return ours

    # --- watching ---

    async def watch(
        self, path: str, *, recursive: bool = False, entries: bool = False, network_file_systems: bool = False
    ) -> Watch:
        """Watch a directory (a symlink to one is followed); the connection then does nothing else.

        Raises no_such_file, not_a_directory, network_file_system (unless allowed), limit (watches of the guest).
        """
        flags = WatchFlags.ENTRIES if entries else WatchFlags(0)
        flags |= WatchFlags.RECURSIVE if recursive else WatchFlags(0)
        flags |= WatchFlags.NETWORK if network_file_systems else WatchFlags(0)
        with self._turn(path):
            await self._ask(file_frames.encode_watch(path, flags), FileFrame.DONE, path, bytes)
        self._busy = True
        return Watch(self._socket, path)

    def close(self) -> None:
        """Close at once; what was under way is given up and its child in the guest is killed. Safe to repeat."""
        self._socket.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def open_files(socket: str, user: str) -> Files:
    """A files connection that acts as `user` (a name or a decimal uid). Raises no_such_user, limit, ..."""
    connection = await FileSocket.open(socket, file_frames.encode_files(user[:256], config.FILES_UMASK))
    try:
        async with asyncio.timeout(config.AGENT_REPLY_TIMEOUT_S):
            payload = await connection.answer(FileFrame.ACCOUNT, user)
        return Files(connection, file_frames.decode_account(payload))
    except TimeoutError as error:
        connection.close()
        raise SandptyError("agent_unreachable", "the sandbox does not answer; is it still running?") from error
    except FrameError as error:
        raise connection.misbehaved(str(error)) from error
    except BaseException:
        connection.close()
        raise
