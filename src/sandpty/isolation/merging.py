"""Copies that lie on each other, made one: `python -m sandpty.isolation.merging TARGET SIZE_MB LAYERS COPY:BASE...`.

TARGET and the COPYs are directories as `Driver.copy` fills them; the COPYs are told from the top down, and the owners
of the result are the guest's own numbers. A program of its own, in a mount namespace of its own: what it walks is the
work of guests. No link in it is followed. What overlayfs says in an upper directory (whiteouts, opaque directories) is
kept, so the result can be put in the place of the copies.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import shutil
import stat
import struct
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from sandpty.isolation import disk, program, syscalls
from sandpty.isolation.driver import MERGED_BASE, Copy
from sandpty.isolation.failures import failure, told
from sandpty.wire.errors import SandptyError

log = logging.getLogger(__name__)
OPAQUE = "trusted.overlay.opaque"
_REFUSED = ("trusted.overlay.redirect", "trusted.overlay.metacopy")  # never made with the options that we mount with
_OWN = "trusted.overlay."  # the others say where a file once came from
_CAPABILITY = "security.capability"
_CAPABILITY_WITH_ROOT = 24  # bytes of a vfs_ns_cap_data: its last four are the uid of the namespace's root
_ACL = ("system.posix_acl_access", "system.posix_acl_default")
_ACL_HEAD, _ACL_ENTRY = 4, struct.Struct("<HHI")
_ACL_NAMED = (0x02, 0x08)  # entries that hold a uid or gid
_TIMEOUT_S = 600.0
_WHAT = "the layers cannot be merged"
_ERROR_CHARACTERS = 300
_DEEP_MAX = 500  # directories in each other: each holds two descriptors and a frame of ours


class MergeError(Exception):
    """The copies cannot be merged."""


class _Copy:
    """One copy being laid over what is there. shift: from its owners to the result's."""

    def __init__(self, shift: int) -> None:
        self._shift = shift
        self._linked: dict[int, int] = {}  # inode of a file with several names -> a descriptor of what it became

    def lay(self, source: int, target: int, depth: int = 0) -> None:
        """Directory over directory, by descriptors that stay open."""
        if depth > _DEEP_MAX:
            raise MergeError(f"directories are more than {_DEEP_MAX} deep")
        for entry in os.scandir(source):
            found = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                self._directory(entry.name, found, source, target, depth)
            else:
                _remove(entry.name, target)
                self._file(entry.name, found, source, target)

    def _directory(self, name: str, found: os.stat_result, source: int, target: int, depth: int) -> None:
        with contextlib.ExitStack() as opened:
            inner = _opened(name, source, opened)
            below = _kind(name, target)
            if below is None or not stat.S_ISDIR(below) or _is_opaque(inner):
                _remove(name, target)
                os.mkdir(name, 0o700, dir_fd=target)
            made = _opened(name, target, opened)
            self.lay(inner, made, depth + 1)
            self.dress(inner, made, found)
            if below is not None and not stat.S_ISDIR(below):
                os.setxattr(made, OPAQUE, b"y")  # nothing of what the removed one hid comes back

    def _file(self, name: str, found: os.stat_result, source: int, target: int) -> None:
        if (there := self._linked.get(found.st_ino)) is not None:
            os.link(f"/proc/self/fd/{there}", name, dst_dir_fd=target, follow_symlinks=True)
            return
        if stat.S_ISREG(found.st_mode):
            with contextlib.ExitStack() as opened:
                read = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
                opened.callback(os.close, read)
                written = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
                opened.callback(os.close, written)
                disk.copy_data(read, written)
                self.dress(read, written, found)
                if found.st_nlink > 1:
                    self._linked[found.st_ino] = os.dup(written)
        elif stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
            self._own(name, target, found)
        elif not stat.S_ISCHR(found.st_mode) or found.st_rdev == 0:
            os.mknod(name, found.st_mode, found.st_rdev if stat.S_ISCHR(found.st_mode) else 0, dir_fd=target)
            if found.st_rdev or not stat.S_ISCHR(found.st_mode):
                self._own(name, target, found)

    def close(self) -> None:
        for descriptor in self._linked.values():
            os.close(descriptor)

    def _own(self, name: str, target: int, found: os.stat_result) -> None:
        os.chown(name, found.st_uid + self._shift, found.st_gid + self._shift, dir_fd=target, follow_symlinks=False)
        os.utime(name, ns=(found.st_atime_ns, found.st_mtime_ns), dir_fd=target, follow_symlinks=False)

    def dress(self, source: int, target: int, found: os.stat_result) -> None:
        """Owners, mode, attributes and times."""
        os.fchown(target, found.st_uid + self._shift, found.st_gid + self._shift)
        os.fchmod(target, stat.S_IMODE(found.st_mode))
        for name in os.listxattr(source):
            if name in _REFUSED:
                raise MergeError("a file is known by another layer's name")
            if name == OPAQUE or not name.startswith(_OWN):
                os.setxattr(target, name, self._attribute(name, os.getxattr(source, name)))
        os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))

    def _attribute(self, name: str, value: bytes) -> bytes:
        """With the owners that it holds shifted."""
        if name == _CAPABILITY and len(value) == _CAPABILITY_WITH_ROOT:
            (root,) = struct.unpack_from("<I", value, 20)
            return value[:20] + struct.pack("<I", root + self._shift)
        if name in _ACL:
            entries = _ACL_ENTRY.iter_unpack(value[_ACL_HEAD:])
            shifted = (
                _ACL_ENTRY.pack(tag, rights, owner + self._shift if tag in _ACL_NAMED else owner)
                for tag, rights, owner in entries
            )
            return value[:_ACL_HEAD] + b"".join(shifted)
        return value


def _opened(name: str, directory: int | None, opened: contextlib.ExitStack) -> int:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    opened.callback(os.close, fd)
    return fd


def _kind(name: str, directory: int) -> int | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return None


def _is_opaque(directory: int) -> bool:
    try:
        return os.getxattr(directory, OPAQUE) == b"y"
    except OSError:
        return False


def _remove(name: str, directory: int) -> None:
    """Whatever it is; nothing there is fine."""
    kind = _kind(name, directory)
    if kind is None:
        return
    if not stat.S_ISDIR(kind):
        os.unlink(name, dir_fd=directory)
        return
    with contextlib.ExitStack() as opened:
        inner = _opened(name, directory, opened)
        for each in os.listdir(inner):
            _remove(each, inner)
    os.rmdir(name, dir_fd=directory)


def merge(target: Path, layers: int, copies: list[tuple[Path, int]]) -> None:
    """`target`: an empty writable disk; `copies`: readable disks and their owners' base, the topmost first.

    Raises OSError, MergeError.
    """
    for number in range(layers):
        (target / f"work{number}").mkdir(mode=0o700)
        upper = target / f"upper{number}"
        upper.mkdir(mode=0o755)
        with contextlib.ExitStack() as opened:
            made = _opened(str(upper), None, opened)
            for tree, base in reversed(copies):
                source = _opened(str(tree / f"upper{number}"), None, opened)
                laid = _Copy(MERGED_BASE - base)
                opened.callback(laid.close)
                laid.lay(source, made)
                laid.dress(source, made, os.fstat(source))


def _mount_all(
    target: Path, size_mb: int, sources: list[Path], stage: Path, mounted: contextlib.ExitStack
) -> list[Path]:
    """Where the target and the sources can be written and read; images are mounted below `stage`."""
    if not (sources[0] / disk.IMAGE_NAME).exists():
        (target / "disk").mkdir(mode=0o700)
        return [directory / "disk" for directory in (target, *sources)]
    disk.make_file_system(target / disk.IMAGE_NAME, size_mb * 1024 * 1024)
    places = []
    for number, directory in enumerate((target, *sources)):
        place = stage / str(number)
        place.mkdir()
        if number == 0:
            disk.mount(directory / disk.IMAGE_NAME, place)
        else:
            disk.Disk(stage).attach_copy(directory, place)
        mounted.callback(syscalls.unmount, str(place), 0)
        places.append(place)
    return places


def main(argv: list[str]) -> int:
    """Exit status 0: done; 1: not, and the last line says why; 28 (ENOSPC): the disk is full."""
    target, size_mb, layers = Path(argv[0]), int(argv[1]), int(argv[2])
    parts = [each.rpartition(":") for each in argv[3:]]
    sources, bases = [Path(path) for path, _, _ in parts], [int(base) for _, _, base in parts]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
    try:
        with tempfile.TemporaryDirectory(prefix="sandpty-merge-") as stage, contextlib.ExitStack() as mounted:
            result, *trees = _mount_all(target, size_mb, sources, Path(stage), mounted)
            merge(result, layers, list(zip(trees, bases, strict=True)))
    except MergeError as error:
        print(error)
        return 1
    except (OSError, RecursionError) as error:
        print(f"{error!r}\n{told(error)}")  # with its paths for the log only
        return errno.ENOSPC if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) else 1
    return 0


async def run(target: Path, size_mb: int, layers: int, copies: Sequence[Copy]) -> None:
    """Run it. Raises SandptyError runtime_failed, no_space."""
    unshare = shutil.which("unshare") or "/usr/bin/unshare"
    nice = shutil.which("nice") or "/usr/bin/nice"  # terminals come first
    argv = [
        nice,
        "-n",
        "10",
        unshare,
        "--mount",
        "--propagation",
        "private",
        sys.executable,
        "-m",
        "sandpty.isolation.merging",
    ]
    argv += [str(target), str(size_mb), str(layers), *(f"{copy.directory}:{copy.ids_base}" for copy in copies)]
    words = target / "merge.log"
    try:
        status = await program.run(argv, timeout_s=_TIMEOUT_S, output=words)
        lines = words.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        words.unlink()
    except OSError as error:
        raise failure(_WHAT, error) from error
    if status != 0:
        log.warning("%s: %s", _WHAT, " ".join(lines))
    if status == errno.ENOSPC:
        raise failure(_WHAT, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    if status != 0:
        raise SandptyError(
            "runtime_failed", f"{_WHAT}: {lines[-1][:_ERROR_CHARACTERS] if lines else 'it says nothing'}"
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
