"""The files of a guest, through a files connection of its agent.

One connection acts as one user of the guest (really: the agent forks a child that drops to the user's ids) and does one
thing after the other. Paths are absolute guest paths (`str` with surrogateescape); nothing is expanded or cleaned here.

Every method raises SandptyError: agent_unreachable when the connection is lost, agent_misbehaved when the agent breaks
the protocol, bad_path for a path that is not absolute, too long or holds a NUL, permission_denied, file_error (whatever
else the guest's kernel says), and what its docstring names. After an error of the guest's the connection is good for
the next request; after a cancelled call, an unfinished reading or writing it is not (`reusable`).
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

from sandpty.wire.file_types import Account, Entry, EntryType, WatchEvent, WatchEventType

__all__ = [
    "Account",
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

KEEP = -1  # for owner and mode arguments: leave it as it is


class Reading:
    """An open file being read. `entry` is of the open file itself: what is read is what was looked at.

    async with files.open("/etc/passwd") as reading:
        async for piece in reading: ...

    Use each piece before asking for the next one. The end is where the file really ends, whatever its size says: a file
    of /proc (size 0) is read to its end, a file that shrinks meanwhile ends earlier (`count` says how much came).
    """

    entry: Entry
    count: int

    def __aiter__(self) -> AsyncIterator[bytes]:
        raise NotImplementedError

    async def piece(self) -> bytes:
        """The next bytes (at most FILE_PIECE_BYTES), b"" at the end of what was asked for."""
        raise NotImplementedError

    async def read(self, offset: int = 0, length: int | None = None) -> None:
        """Ask the open file for another range, once the last one was read to its end (or was of length 0)."""
        raise NotImplementedError

    async def all(self, limit_bytes: int) -> bytes:
        """The rest of the range in one piece. Raises too_large when it is more than `limit_bytes`."""
        raise NotImplementedError


class Writing:
    """A file being written, in place. Nothing is done until `finish` has returned; leaving without it aborts."""

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes; waits while the guest is slower. Raises early what `finish` would raise (no_space ...).

        `data` may be used again once this returns.
        """
        raise NotImplementedError

    async def finish(self) -> Entry:
        """The entry, once every byte was taken by the guest's kernel."""
        raise NotImplementedError

    created: bool  # after finish: the file was not there before
    count: int  # bytes sent


class MadeDirectory:
    """The answer of make_directory. `made`: how many levels were new (the last ones of the path); 0: it was there."""

    entry: Entry
    made: int


class Watch:
    """A watched directory: an async iterator of events, and the connection's last use."""

    def __aiter__(self) -> AsyncIterator[WatchEvent]:
        raise NotImplementedError

    async def event(self) -> WatchEvent:
        """The next event. After GONE there is none (raises `conflict`)."""
        raise NotImplementedError

    async def pending(self) -> list[WatchEvent]:
        """All that happened until now (drains the kernel's queue before it answers), without waiting for more."""
        raise NotImplementedError


class Files:
    """Made by `open_files`. `account` says whom it acts as."""

    account: Account

    @property
    def reusable(self) -> bool:
        """Whether the connection is at rest and unbroken: the next request may be made."""
        raise NotImplementedError

    async def look_up(self, user: str) -> Account:
        """Another user of the guest, by name or decimal uid (also one without a passwd entry). Raises no_such_user."""
        raise NotImplementedError

    async def stat(self, path: str, *, follow: bool = False, metadata: bool = True) -> Entry:
        """One entry; follow: of what a symlink leads to. Raises no_such_file, not_a_directory, symlink_loop."""
        raise NotImplementedError

    async def real_path(self, path: str) -> str:
        """The path with every symlink resolved. Raises no_such_file, not_a_directory, symlink_loop."""
        raise NotImplementedError

    def list(
        self, path: str, *, depth: int = 1, limit: int | None = None, metadata: bool = True
    ) -> AsyncIterator[list[Entry]]:
        """Entries below a directory, in portions: a pre-order walk, names in byte order (`a`, `a/x`, `b`).

        A `path` that is a symlink to a directory is followed, others are not; entries that vanish meanwhile or may not
        be read are passed over. limit: entries at most (None: FILES_LISTED_MAX); more raises `limit`.
        Raises no_such_file, not_a_directory, symlink_loop, limit.
        """
        raise NotImplementedError

    def open(self, path: str, *, offset: int = 0, length: int | None = None) -> AbstractAsyncContextManager[Reading]:
        """Open a file and ask for a range at once (length None: to its end; 0: only open).

        Raises no_such_file, is_a_directory, not_a_directory, not_a_file (a FIFO, socket or block device).
        """
        raise NotImplementedError

    def create(
        self,
        path: str,
        *,
        mode: int = 0o666,
        truncate: bool = True,
        append: bool = False,
        exclusive: bool = False,
        parents: bool = False,
        parents_mode: int = 0o755,
        uid: int = KEEP,
        gid: int = KEEP,
        set_mode: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> AbstractAsyncContextManager[Writing]:
        """Open a file for writing, in place; made with `mode & ~umask` when it is not there.

        parents: make missing directories (parents_mode, not masked; owned as the file). uid, gid: the file gets this
        owner in any case (KEEP: who acts). set_mode: the file gets exactly `mode`, umask or not, new or not. metadata:
        replaces the whole set of `user.e2b.*` attributes ({} clears it, None leaves it; file systems without
        attributes ignore it). Raises no_such_file, file_exists (exclusive), is_a_directory, not_a_directory,
        not_a_file, no_space.
        """
        raise NotImplementedError

    async def write(
        self,
        path: str,
        data: bytes | AsyncIterable[bytes],
        *,
        mode: int = 0o666,
        append: bool = False,
        exclusive: bool = False,
        parents: bool = False,
        parents_mode: int = 0o755,
        uid: int = KEEP,
        gid: int = KEEP,
        set_mode: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> Entry:
        """`create`, write all of `data` and finish."""
        raise NotImplementedError

    async def make_directory(
        self, path: str, *, parents: bool = True, mode: int = 0o755, uid: int = KEEP, gid: int = KEEP
    ) -> MadeDirectory:
        """Make a directory with exactly `mode`; new levels get the owner. One that is there stays as it is (`made` 0).

        Raises no_such_file (parents=False), file_exists (something else is there), not_a_directory (in between).
        """
        raise NotImplementedError

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
        raise NotImplementedError

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
        """Copy a file, symlink or (recursive) a whole tree, with modes, times and metadata; holes stay holes.

        Symlinks are copied as links; relative ones that lead out of the tree are rewritten to lead to the same place.
        A directory is merged into one that is there. FIFOs, sockets and devices are passed over.
        Raises no_such_file, file_exists, is_a_directory (without recursive), bad_path (into itself), no_space, limit.
        """
        raise NotImplementedError

    async def remove(self, path: str, *, recursive: bool = False) -> None:
        """A symlink is removed, not what it leads to. Raises no_such_file, not_empty (a directory, not recursive)."""
        raise NotImplementedError

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
        raise NotImplementedError

    async def set_metadata(self, path: str, metadata: Mapping[str, str]) -> Entry:
        """Replace the whole set of `user.e2b.*` attributes."""
        raise NotImplementedError

    async def make_symlink(self, path: str, link_text: str) -> Entry:
        """Raises file_exists, no_such_file."""
        raise NotImplementedError

    async def size_of(self, path: str) -> int:
        """Bytes of a file, or of all files below a directory (what they say, not what they take on the disk)."""
        raise NotImplementedError

    async def watch(
        self, path: str, *, recursive: bool = False, entries: bool = False, network_file_systems: bool = False
    ) -> Watch:
        """Watch a directory (a symlink to one is followed); the connection then does nothing else.

        Raises no_such_file, not_a_directory, network_file_system (unless allowed), limit (watches of the guest).
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close at once; what was under way is given up and its child in the guest is killed. Safe to repeat."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def open_files(socket: str, user: str) -> Files:
    """A files connection that acts as `user` (a name or a decimal uid). Raises no_such_user, limit, ..."""
    raise NotImplementedError
