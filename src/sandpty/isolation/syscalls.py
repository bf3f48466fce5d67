"""System calls that Python does not offer, by ctypes. Each raises OSError as the functions of `os` do."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
import threading
from collections.abc import Iterator
from typing import Final

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_NOATIME: Final = 1024
MS_BIND: Final = 4096
MS_PRIVATE: Final = 1 << 18
MNT_DETACH: Final = 2
CLONE_NEWNET: Final = 0x40000000
CLONE_NEWUSER: Final = 0x10000000
_CLONE_FS: Final = 0x200
_CLONE_NEWNS: Final = 0x20000
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
_MOUNT_ATTR_RDONLY: Final = 1
_MOUNT_ATTR_NOSUID: Final = 2
_MOUNT_ATTR_NODEV: Final = 4
_MOUNT_ATTR_IDMAP: Final = 0x00100000
# The same numbers on every architecture since Linux 5.2.
_SYS_OPEN_TREE: Final = 428
_SYS_MOVE_MOUNT: Final = 429
_SYS_MOUNT_SETATTR: Final = 442


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def _syscall(number: int, *arguments: object, what: str) -> int:
    return _check(_libc.syscall(ctypes.c_long(number), *arguments), what)


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    data = options.encode() if options else None
    result = _libc.mount(os.fsencode(source), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data)
    _check(result, f"mount {kind} on {target}")


def unmount(target: str, flags: int = MNT_DETACH) -> None:
    _check(_libc.umount2(os.fsencode(target), flags), f"umount {target}")


def syncfs(fd: int) -> None:
    """Write what is cached of the file system that `fd` is on (of an overlay: its writable part's) to its device."""
    _check(_libc.syncfs(fd), "syncfs")


def setns(fd: int, kind: int) -> None:
    """Only this thread for a network namespace."""
    _check(_libc.setns(fd, kind), "setns")


@contextlib.contextmanager
def inside_network(netns_fd: int) -> Iterator[None]:
    """This thread is in another network namespace meanwhile. No await inside: others run on this thread too."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(netns_fd, CLONE_NEWNET)
        try:
            yield
        finally:
            setns(home, CLONE_NEWNET)
    finally:
        os.close(home)


def mount_shared(source: str, place_fd: int, userns_fd: int, *, read_only: bool) -> None:
    """Bind `source` on the directory open as `place_fd`, its owners shifted both ways; no set-id bits, no devices."""
    flags = ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC)
    tree = _syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(source), flags, what="open_tree")
    try:
        attributes = _MOUNT_ATTR_IDMAP | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV
        wanted = struct.pack("=QQQQ", attributes | (_MOUNT_ATTR_RDONLY if read_only else 0), 0, 0, userns_fd)
        size = ctypes.c_size_t(len(wanted))
        _syscall(_SYS_MOUNT_SETATTR, tree, b"", ctypes.c_uint(_AT_EMPTY_PATH), wanted, size, what="mount_setattr")
        move = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH)
        _syscall(_SYS_MOVE_MOUNT, tree, b"", place_fd, b"", move, what="move_mount")
    finally:
        os.close(tree)


def mount_idmapped(source: str, target: str, userns_fd: int) -> None:
    """Bind `source` read-only on `target`, its owners shifted by the user namespace's map (Linux 5.12)."""
    flags = ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC)
    tree = _syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(source), flags, what=f"open_tree {source}")
    try:
        attributes = struct.pack("=QQQQ", _MOUNT_ATTR_IDMAP | _MOUNT_ATTR_RDONLY, 0, 0, userns_fd)
        size = ctypes.c_size_t(len(attributes))
        empty = ctypes.c_uint(_AT_EMPTY_PATH)
        _syscall(_SYS_MOUNT_SETATTR, tree, b"", empty, attributes, size, what=f"mount_setattr {source}")
        move = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)
        _syscall(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), move, what=f"move_mount {target}")
    finally:
        os.close(tree)


def bind_inside(pid: int, source: str, target: str) -> None:
    """Bind a file of ours, read-only, on a path in another process's mount namespace.

    In a thread of its own: entering a mount namespace needs a file system state (root, working directory) that no other
    thread shares.
    """
    failure: list[OSError] = []

    def work() -> None:
        try:
            _bind_inside(pid, source, target)
        except OSError as error:
            failure.append(error)

    thread = threading.Thread(target=work, name="bind-inside")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]


def _bind_inside(pid: int, source: str, target: str) -> None:
    flags = ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC)
    tree = _syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(source), flags, what=f"open_tree {source}")
    try:
        attributes = struct.pack("=QQQQ", _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOSUID | _MOUNT_ATTR_NODEV, 0, 0, 0)
        empty = ctypes.c_uint(_AT_EMPTY_PATH)
        size = ctypes.c_size_t(len(attributes))
        _syscall(_SYS_MOUNT_SETATTR, tree, b"", empty, attributes, size, what="mount_setattr")
        namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.unshare(_CLONE_FS), "unshare")
            setns(namespace, _CLONE_NEWNS)
        finally:
            os.close(namespace)
        move = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH)
        _syscall(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), move, what=f"move_mount {target}")
    finally:
        os.close(tree)
