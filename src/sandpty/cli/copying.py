"""Files between this machine and a sandbox: single ones and whole trees, several at a time, with a count of all."""

from __future__ import annotations

import asyncio
import os
import posixpath
import stat
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from sandpty.cli.local_tree import LocalTree, open_regular, written_where_the_user_says, written_whole
from sandpty.sdk import EntryInfo, FileThereError, FileType
from sandpty.sdk._async.files import AsyncFiles
from sandpty.wire.errors import SandptyError

TRANSFERS_AT_ONCE = 6  # a sandbox has 24 places for files; one transfer alone does not fill the way
DEPTH_MOST = 10_000  # of a tree; paths end before it
# With these nothing else of a tree could be copied either.
_FATAL = frozenset(
    ("server_unreachable", "unauthenticated", "no_such_sandbox", "sandbox_ended", "sandbox_paused", "no_such_user")
)


@dataclass(slots=True)
class Copied:
    """What a copy came to. `skipped` and `failed` name paths, with why."""

    files: int = 0
    directories: int = 0
    symlinks: int = 0
    bytes: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)


class Copying:
    """One command's copies in one sandbox. `on_size` is told what will come, `on_bytes` what has, both in bytes."""

    def __init__(
        self,
        files: AsyncFiles,
        *,
        user: str | None,
        recursive: bool,
        on_size: Callable[[int], object],
        on_bytes: Callable[[str, int], object],
    ) -> None:
        self._files = files
        self._user = user
        self._recursive = recursive
        self._on_size = on_size
        self._on_bytes = on_bytes
        self.copied = Copied()

    # --- from the sandbox --------------------------------------------------------------------------------------------

    async def download(self, source: str, target: Path) -> None:
        """A file, or a directory with all in it. A target that is a directory gets it under its own name.

        Raises SandptyError, and OSError for this machine's disk.
        """
        info = await self._files.get_info(source, self._user, follow=True)
        into = target / _own_name(source) if target.is_dir() else target
        said = into == target  # by the user; else a symlink there may be of an earlier copy, and is not followed
        if info.type is FileType.DIR:
            self._check_recursive(source)
            if not said and into.is_symlink():
                raise SandptyError("file_exists", f"{into} is a symlink; name it as TARGET if it is to be followed")
            await self._download_tree(info, into)
            return
        self._on_size(info.size)
        if into.is_dir() and (said or not into.is_symlink()):
            raise SandptyError("is_a_directory", f"{into} is a directory, and {source} is none")
        place = written_where_the_user_says if said else written_whole
        await self._download_file(info.path, lambda mode: place(into, mode))

    async def _download_file(self, path: str, place: Callable[[int], AbstractContextManager[BinaryIO]]) -> None:
        count = 0
        async with await self._files.read(path, "stream", self._user) as stream:
            with place(stream.mode) as file:
                async for piece in stream:
                    file.write(piece)
                    count += len(piece)
                    self._on_bytes(path, len(piece))
        self.copied.files += 1
        self.copied.bytes += count

    async def _download_tree(self, root: EntryInfo, into: Path) -> None:
        tree, base = LocalTree(into, root.mode), root.path
        self.copied.directories += 1
        prefix = base.rstrip("/") + "/"
        found = [entry async for entry in self._files.scan(base, DEPTH_MOST, self._user)]
        self._on_size(sum(entry.size for entry in found if entry.type is FileType.FILE))
        wanted: list[tuple[EntryInfo, str]] = []
        for entry in found:
            if not entry.path.startswith(prefix):
                raise SandptyError("bad_path", f"the sandbox names {entry.path!r}, which is not below {base!r}")
            path = entry.path[len(prefix) :]
            with self._counting_failures(path):
                if entry.type is FileType.DIR:
                    tree.add_directory(path, entry.mode)
                    self.copied.directories += 1
                elif entry.type is FileType.SYMLINK:
                    tree.add_symlink(path, entry.link_text or "")
                elif entry.type is FileType.FILE:
                    wanted.append((entry, path))
                else:
                    self.copied.skipped.append((entry.path, f"a {entry.type.value.replace('_', ' ')}"))

        async def one(entry: EntryInfo, path: str) -> None:
            with self._counting_failures(entry.path):
                await self._download_file(entry.path, lambda mode: tree.add_file(path, mode))

        await _side_by_side(one(entry, path) for entry, path in wanted)
        for path, error in tree.finish():
            if error is None:
                self.copied.symlinks += 1
            else:
                self.copied.failed.append((path, str(error)))

    # --- to the sandbox ----------------------------------------------------------------------------------------------

    async def is_directory(self, path: str) -> bool:
        """In the sandbox, also through a symlink."""
        try:
            return (await self._files.get_info(path, self._user, follow=True)).type is FileType.DIR
        except SandptyError as error:
            if error.reason.name == "no_such_file":
                return False
            raise

    async def upload(self, given: str, target: str, *, into: bool) -> None:
        """A file, or a directory with all in it. into: `target` is a directory, and gets it under its own name.

        Raises SandptyError, and OSError for this machine's disk.
        """
        source = Path(given)
        if into and (own := _own_name(given.replace(os.sep, "/"))):
            target = posixpath.join(target, own)
        if source.is_dir():
            self._check_recursive(str(source))
            await self._upload_tree(source, target)
            return
        about = source.stat()
        if not stat.S_ISREG(about.st_mode):
            raise SandptyError("not_a_file", f"{source} is no regular file")
        self._on_size(about.st_size)
        await self._upload_file(source.resolve(), target)

    async def _upload_file(self, source: Path, target: str) -> None:
        seen = 0

        def progressed(done: int, _: int | None) -> None:
            nonlocal seen
            self._on_bytes(str(source), done - seen)
            seen = done

        with open_regular(source) as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            await self._files.write(target, file, self._user, mode=mode & 0o777, parents=False, on_progress=progressed)
        if mode & ~0o777:
            await self._files.change(target, self._user, mode=mode)
        self.copied.files += 1
        self.copied.bytes += seen

    async def _upload_tree(self, source: Path, target: str) -> None:
        """Directories one after the other, then everything in them, then their modes: one may forbid writing."""
        modes: list[tuple[str, int]] = []
        wanted: list[tuple[Path, str]] = []
        size = 0
        for entry, path in self._walk(source, target):
            with self._counting_failures(str(entry)):
                about = entry.stat() if entry is source else entry.lstat()
                if stat.S_ISDIR(about.st_mode):
                    if await self._files.make_dir(path, self._user):
                        modes.append((path, stat.S_IMODE(about.st_mode)))
                    self.copied.directories += 1
                elif stat.S_ISREG(about.st_mode):
                    wanted.append((entry, path))
                    size += about.st_size
                elif stat.S_ISLNK(about.st_mode):
                    await self._make_symlink(path, os.readlink(entry))
                else:
                    self.copied.skipped.append((str(entry), "no file, directory or symlink"))
        self._on_size(size)

        async def one(entry: Path, path: str) -> None:
            with self._counting_failures(str(entry)):
                await self._upload_file(entry, path)

        await _side_by_side(one(entry, path) for entry, path in wanted)
        for path, mode in reversed(modes):
            with self._counting_failures(path):
                await self._files.change(path, self._user, mode=mode)

    def _walk(self, source: Path, target: str) -> Iterator[tuple[Path, str]]:
        """Everything at and below a local directory, with where it goes; a directory before what is in it."""
        waiting = [(source, target)]
        while waiting:
            directory, place = waiting.pop()
            yield directory, place
            with self._counting_failures(str(directory)), os.scandir(directory) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    found = Path(entry.path), posixpath.join(place, entry.name)
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(found)
                    else:
                        yield found

    async def _make_symlink(self, path: str, text: str) -> None:
        try:
            await self._files.make_symlink(path, text, self._user)
        except FileThereError:
            if (await self._files.get_info(path, self._user)).type is FileType.DIR:
                raise
            await self._files.remove(path, self._user)
            await self._files.make_symlink(path, text, self._user)
        self.copied.symlinks += 1

    # --- both --------------------------------------------------------------------------------------------------------

    def _check_recursive(self, source: str) -> None:
        if not self._recursive:
            raise SandptyError("is_a_directory", f"{source} is a directory; -r copies it with all in it")

    def _counting_failures(self, path: str) -> _CountingFailures:
        return _CountingFailures(self.copied, path)


class _CountingFailures:
    """What goes wrong with one of many is told at the end; what would go wrong with all of them is raised."""

    def __init__(self, copied: Copied, path: str) -> None:
        self._copied = copied
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: object) -> bool:
        if isinstance(value, SandptyError):
            if value.reason.name in _FATAL:
                return False
            self._copied.failed.append((self._path, value.message))
            return True
        if isinstance(value, OSError):
            self._copied.failed.append((self._path, value.strerror or str(value)))
            return True
        return False


def _own_name(source: str) -> str:
    """What a path is called on the other side, "" for one that has no name: then its contents are meant."""
    name = posixpath.basename(source.rstrip("/"))
    return "" if name in (".", "..", "~") else name


async def _side_by_side(work: Iterable[Awaitable[None]]) -> None:
    """Some at a time. The first error ends the others."""
    waiting = iter(work)

    async def worker() -> None:
        for each in waiting:
            await each

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(TRANSFERS_AT_ONCE):
                group.create_task(worker())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
