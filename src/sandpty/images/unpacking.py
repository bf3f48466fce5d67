"""Putting the entries of layers into a tree. Runs where `/` is the tree, without a network (confined.py).

Rules: OCI image-spec 1.1, "Image Layer Filesystem Changeset". As everywhere in this field, links of an image are
followed where they stand in the way of a deeper entry; here they cannot lead out, because there is no outside.
Left out: device nodes (a sandbox has its own /dev, and could open none), attributes but users' own and capabilities.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tarfile
from collections.abc import Callable
from typing import IO

from sandpty import config, disk_room
from sandpty.wire.errors import SandptyError

_WHITEOUT, _OPAQUE, _RESERVED = ".wh.", ".wh..wh..opq", ".wh..wh."
_IDS = config.UID_RANGE
_NOBODY = 65_534
_COPY_BYTES = 1024 * 1024
_READ_BYTES = 256 * 1024
_TIME_MAX = 0x3_7FFF_FFFF  # what ext4 can keep
_XATTR = "SCHILY.xattr."
_CAPABILITY = "security.capability"
_CAPABILITY_BYTES = 20  # of version 2: rights of the tree's own root, so of the sandbox's
_SPACE_EVERY = 256  # entries between looks at the free space


def hostile(why: str, name: str) -> SandptyError:
    """An image that must not be unpacked."""
    return SandptyError("bad_image", f"{why}: {name[:200]!r}")


class Unpacking:
    """One tree, all of its layers. `room(bytes)` is told what a file will take, and raises when it is too much.

    `entry()` is called for each entry; notices: what was left out, counted.
    """

    def __init__(self, room: Callable[[int], None], entry: Callable[[], None]) -> None:
        self._room = room
        self._entry = entry
        self.notices: dict[str, int] = {}
        self._made: set[str] = set()  # paths of this layer: what its opaque marks do not hide
        self._times: dict[str, tuple[int, int]] = {}  # of directories, set when all is in them
        self._first = True
        self._parent: tuple[str, str] | None = None  # the last one that was found, by the name it was asked for
        self._count = 0

    def layer(self, stream: IO[bytes]) -> None:
        """Raises SandptyError (bad_image, too_large, no_space) and what `layers.BROKEN` names."""
        try:
            with tarfile.open(
                fileobj=stream, mode="r|", bufsize=_READ_BYTES, encoding="utf-8", errors="surrogateescape"
            ) as tar:
                for info in tar:
                    tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
                    self._entry()
                    self._look_at_space()
                    self._take(tar, info)
                _check_end(tar)
        except tarfile.TarError as error:
            raise SandptyError("bad_image", f"a layer's archive is broken: {error}") from error
        except MemoryError as error:
            raise SandptyError("bad_image", "a layer's headers or names take too much memory") from error
        except (ValueError, RecursionError) as error:  # nothing that a header may say is ours to crash on
            raise SandptyError("bad_image", f"a layer's archive says nonsense: {error}") from error
        self._end_layer()

    def _look_at_space(self) -> None:
        self._count += 1
        if self._count % _SPACE_EVERY == 0:
            check_space()

    def _end_layer(self) -> None:
        for path, times in self._times.items():
            with contextlib.suppress(OSError):  # a later entry may have replaced it
                if stat.S_ISDIR(os.lstat(path).st_mode):
                    os.utime(path, ns=times, follow_symlinks=False)
        self._times.clear()
        self._made.clear()
        self._first = False
        self._parent = None

    # --- one entry ---

    def _take(self, tar: tarfile.TarFile, info: tarfile.TarInfo) -> None:
        parts = _parts(info.name)
        if info.size < 0:
            raise hostile("a negative size", info.name)
        if info.size > config.IMAGE_TREE_BYTES:  # tarfile would look for the end of it for years
            raise SandptyError("too_large", f"an entry says that it has {info.size} bytes: {info.name[:200]!r}")
        if not parts:
            if not info.isdir():
                raise hostile("an entry would replace the root", info.name)
            _own(info, "/")
            return
        try:
            parent = self._directory(parts[:-1])
            if parts[-1].startswith(_WHITEOUT):
                self._hide(parent, parts[-1])
            else:
                self._put(tar, info, f"{parent}/{parts[-1]}")
        except OSError as error:
            if error.errno is None or error.errno in _OF_THE_DISK:
                raise
            raise hostile(f"an entry cannot be made ({error.strerror})", info.name) from error

    def _directory(self, parts: list[str]) -> str:
        """The real path (without the leading `/` of the root) that these parts lead to, made where it is missing."""
        name = "/".join(parts)
        if self._parent is None or self._parent[0] != name:
            path = os.path.realpath(f"/{name}")
            if path.count("/") > config.IMAGE_DEPTH_MAX:
                raise hostile("a directory is too deep", name)
            if not os.path.isdir(path):
                os.makedirs(path, 0o755, exist_ok=True)
            self._parent = (name, "" if path == "/" else path)
        return self._parent[1]

    def _hide(self, parent: str, name: str) -> None:
        if name == _OPAQUE:
            if not self._first:
                for child in os.listdir(parent or "/"):
                    self._remove_lower(f"{parent}/{child}")
        elif not name.startswith(_RESERVED):
            hidden = name.removeprefix(_WHITEOUT)
            if hidden in ("", ".", ".."):
                raise hostile("a whiteout of nothing", name)
            if not self._first:
                self._remove_lower(f"{parent}/{hidden}")
        self._parent = None

    def _remove_lower(self, path: str) -> None:
        """What earlier layers have put there; what this one has put into it stays."""
        if path not in self._made or not os.path.lexists(path):
            _remove(path)
        elif stat.S_ISDIR(os.lstat(path).st_mode):
            for child in os.listdir(path):
                self._remove_lower(f"{path}/{child}")

    def _put(self, tar: tarfile.TarFile, info: tarfile.TarInfo, path: str) -> None:
        self._clear(info, path)
        if info.isreg():
            self._file(tar, info, path)
        elif info.isdir():
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            self._finish(info, path)
            self._times[path] = _times(info)
        elif info.issym():
            os.symlink(info.linkname, path)
            os.chown(path, _id(info.uid), _id(info.gid), follow_symlinks=False)
            os.utime(path, ns=_times(info), follow_symlinks=False)
        elif info.islnk():
            self._hard_link(info, path)
        elif info.isfifo():
            os.mkfifo(path, 0o600)
            self._finish(info, path)
        else:
            self._note("device nodes were left out" if info.isdev() else "entries of an unknown kind were left out")
            return
        if not self._first:
            self._remember(path)

    def _remember(self, path: str) -> None:
        """This layer has made it, and so all that it lies in."""
        while path and path not in self._made:
            self._made.add(path)
            path = path.rpartition("/")[0]

    def _clear(self, info: tarfile.TarInfo, path: str) -> None:
        """Make way, except for a directory where one is. Links are removed, not followed."""
        try:
            there = os.lstat(path).st_mode
        except FileNotFoundError:
            pass
        else:
            if not (info.isdir() and stat.S_ISDIR(there)):
                if info.islnk() and _same_file(path, _target(self, info)):
                    return
                _remove(path)
                self._parent = None

    def _file(self, tar: tarfile.TarFile, info: tarfile.TarInfo, path: str) -> None:
        if info.issparse():
            self._room(info.size)  # holes are not in the archive, and cost what they are said to hold
        content = tar.extractfile(info)
        assert content is not None
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            written = 0
            while data := content.read(_COPY_BYTES):
                view = memoryview(data)
                while view:
                    view = view[os.write(fd, view) :]
                written += len(data)
                if written % (64 * _COPY_BYTES) == 0:
                    check_space()
            self._finish(info, fd)
            os.utime(fd, ns=_times(info))
        finally:
            os.close(fd)

    def _hard_link(self, info: tarfile.TarInfo, path: str) -> None:
        target = _target(self, info)
        if not _same_file(path, target):
            os.link(target, path, follow_symlinks=False)

    def _finish(self, info: tarfile.TarInfo, place: str | int) -> None:
        """Owner before mode: changing the owner takes setuid away. Attributes last: so it does capabilities."""
        _own(info, place)
        for key, text in info.pax_headers.items():
            if not key.startswith(_XATTR):
                continue
            name, value = key.removeprefix(_XATTR), text.encode("utf-8", "surrogateescape")
            if not _is_kept(name, value, info):
                self._note("attributes of the system were left out")
                continue
            try:
                os.setxattr(place, name, value)
            except OSError:  # larger than this file system takes
                self._note("attributes were left out that do not fit")

    def _note(self, text: str) -> None:
        if text in self.notices or len(self.notices) < config.IMAGE_NOTICES_MAX:
            self.notices[text] = self.notices.get(text, 0) + 1


def _check_end(tar: tarfile.TarFile) -> None:
    """Where tarfile sees an end, also at a header that it cannot read: nothing may follow but zeros."""
    rest = tar.fileobj
    assert rest is not None
    while data := rest.read(_READ_BYTES):
        if data.count(0) != len(data):
            raise SandptyError("bad_image", "something follows the end of a layer's archive, or it is broken there")


_OF_THE_DISK = (5, 28, 30, 122)  # EIO, ENOSPC, EROFS, EDQUOT: not the image's fault


def check_space() -> None:
    """Raises no_space before what runs here has none left."""
    if not disk_room.has_room("/"):
        raise SandptyError("no_space", "the data directory's disk is full")


def _parts(name: str) -> list[str]:
    if len(os.fsencode(name)) > config.IMAGE_NAME_BYTES:
        raise hostile("a name is too long", name)
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise hostile("a name leads upwards", name)
    if len(parts) > config.IMAGE_DEPTH_MAX:
        raise hostile("an entry is too deep", name)
    return parts


def _target(unpacking: Unpacking, info: tarfile.TarInfo) -> str:
    """Of a hard link: a path of the tree, as names of entries are."""
    parts = _parts(info.linkname)
    if not parts:
        raise hostile("a hard link to the root", info.name)
    parent = os.path.realpath("/" + "/".join(parts[:-1]))
    return os.path.join(parent, parts[-1])


def _same_file(path: str, other: str) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.lstat(other))
    except OSError:
        return False


def _remove(path: str) -> None:
    try:
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass


def _own(info: tarfile.TarInfo, place: str | int) -> None:
    os.chown(place, _id(info.uid), _id(info.gid))
    os.chmod(place, info.mode & 0o7777)


def _id(number: int) -> int:
    """Sandboxes have 65,536 of them; what is beyond belongs to nobody there."""
    return number if 0 <= number < _IDS else _NOBODY


def _times(info: tarfile.TarInfo) -> tuple[int, int]:
    try:
        seconds = min(max(float(info.mtime), 0.0), _TIME_MAX)
        nanoseconds = int(seconds * 1_000_000_000)
    except (ValueError, OverflowError):
        nanoseconds = 0
    return nanoseconds, nanoseconds


def _is_kept(name: str, value: bytes, info: tarfile.TarInfo) -> bool:
    """trusted.* steers overlays, security.* and system.* belong to the host; a capability is no more than setuid."""
    if name == _CAPABILITY:
        return info.isreg() and len(value) == _CAPABILITY_BYTES
    return name.startswith("user.") and not name.startswith("user.overlay.") and (info.isreg() or info.isdir())
