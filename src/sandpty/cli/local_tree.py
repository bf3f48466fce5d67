"""A directory of this machine that a guest's files are written below, and nowhere else.

The guest chooses every name, and what each is. So nothing is written through a symlink: directories are looked at
before anything is put in them, files take their place whole, by a rename, and symlinks come last, when nothing is
written any more. Set-id bits of a guest's programs are not taken over: here they would be somebody else's.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sandpty.wire.errors import SandptyError

MODE_BITS = 0o777
# What cannot be a name on Windows; a backslash there would be a way out.
_WINDOWS_FORBIDDEN = frozenset('<>:"/\\|?*') | {chr(code) for code in range(32)}
_WINDOWS_PORTS = [f"{port}{number}" for port in ("com", "lpt") for number in range(10)]
_WINDOWS_DEVICES = frozenset(("con", "prn", "aux", "nul", *_WINDOWS_PORTS))


def check_name(name: str, *, windows: bool = sys.platform == "win32") -> None:
    """One component of a path that a guest chose. Raises bad_path for what is none, or cannot be one here."""
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise SandptyError("bad_path", f"the sandbox names something {name!r}, which is no name")
    if windows and (
        _WINDOWS_FORBIDDEN & set(name) or name[-1] in " ." or name.partition(".")[0].lower() in _WINDOWS_DEVICES
    ):
        raise SandptyError("bad_path", f"{name!r} cannot be the name of a file on Windows")


class LocalTree:
    """Paths are relative to `root`, with `/` between their parts. It is made with `mode` when it is missing."""

    def __init__(self, root: Path, mode: int) -> None:
        there = root.is_dir()
        if not there:
            root.mkdir(0o700)
        self._root = root
        # Of directories that were made; -1: was there, and stays as it is.
        self._modes: dict[str, int] = {"": -1 if there else mode & MODE_BITS}
        self._symlinks: dict[str, str] = {}

    def _place(self, path: str) -> Path:
        """Where it goes: in a directory that is one. Raises bad_path."""
        parent, _, name = path.rpartition("/")
        check_name(name)
        if parent not in self._modes:
            raise SandptyError("bad_path", f"the sandbox names {path!r}, but {parent!r} is no directory of it")
        return self._root.joinpath(path)

    def add_directory(self, path: str, mode: int) -> None:
        """Make it, with its mode at the end, or take one that is there as it is. Raises FileExistsError."""
        place = self._place(path)
        try:
            place.mkdir(0o700)
        except FileExistsError:
            if not stat.S_ISDIR(place.lstat().st_mode):  # a symlink, from an earlier copy perhaps
                raise
            self._modes.setdefault(path, -1)
        else:
            self._modes[path] = mode & MODE_BITS

    def add_symlink(self, path: str, text: str) -> None:
        """It is made by `finish`."""
        self._place(path)
        self._symlinks[path] = text

    @contextlib.contextmanager
    def add_file(self, path: str, mode: int) -> Iterator[BinaryIO]:
        """Write its content; it takes its place when the block is left in peace."""
        with written_whole(self._place(path), mode) as file:
            yield file

    def finish(self) -> Iterator[tuple[str, OSError | None]]:
        """Make the symlinks and set the modes of directories. Yields each symlink, and why it could not be made."""
        for path, text in self._symlinks.items():
            place = self._root.joinpath(path)
            try:
                with contextlib.suppress(FileNotFoundError):
                    place.unlink()
                place.symlink_to(text)
                yield path, None
            except OSError as error:
                yield path, error
        for path, mode in reversed(self._modes.items()):  # what is in a directory comes before it
            if mode >= 0:
                self._root.joinpath(path).chmod(mode)


@contextlib.contextmanager
def written_whole(place: Path, mode: int) -> Iterator[BinaryIO]:
    """A file that takes its place, with that mode, when the block is left in peace; a symlink there is replaced."""
    descriptor, temporary = tempfile.mkstemp(prefix=".sandpty-", dir=place.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        os.chmod(temporary, mode & MODE_BITS)
        os.replace(temporary, place)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def written_where_the_user_says(place: Path, mode: int) -> Iterator[BinaryIO]:
    """As `written_whole`, for a path the user named: its symlinks are followed, devices and pipes are written to."""
    place = Path(os.path.realpath(place))
    try:
        there = place.stat()
    except FileNotFoundError:
        there = None
    if there is not None and not stat.S_ISREG(there.st_mode):
        with place.open("wb") as file:
            yield file
        return
    with written_whole(place, mode) as file:
        if there is not None and hasattr(os, "fchown"):
            with contextlib.suppress(OSError):  # a file of somebody else's stays theirs, when root writes it
                os.fchown(file.fileno(), there.st_uid, there.st_gid)
        yield file


def open_regular(path: Path) -> BinaryIO:
    """To be read: the file itself, not what a symlink leads to, and no FIFO that nobody writes to."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC"):
        flags |= getattr(os, name, 0)
    file = os.fdopen(os.open(path, flags), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{path} is no regular file any more")
    return file
