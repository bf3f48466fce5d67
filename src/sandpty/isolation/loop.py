"""Loop devices: a file as a block device, which frees itself with its last user."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from pathlib import Path

BLOCK_BYTES = 4096
_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LOOP_GET_STATUS64 = 0x4C05
_LOOP_MAJOR = 7
_LO_FLAGS_READ_ONLY = 1
_LO_FLAGS_AUTOCLEAR = 4
_LO_FLAGS_DIRECT_IO = 16
_LOOP_INFO64 = struct.Struct("=QQQQQIIII64s64s32s2Q")
_LOOP_CONFIG_BYTES = 4 + 4 + _LOOP_INFO64.size + 64
_ATTEMPTS = 64  # another program may take a free loop device before us


def of(image: Path) -> str | None:
    wanted = image.stat()
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        device = f"/dev/{backing.parent.parent.name}"
        with contextlib.suppress(OSError), open(device, "rb") as file:
            status = bytearray(_LOOP_INFO64.size)
            fcntl.ioctl(file, _LOOP_GET_STATUS64, status)
            if _LOOP_INFO64.unpack(status)[:2] == (wanted.st_dev, wanted.st_ino):
                return device
    return None


def reopened(device: str | None, image: Path, held: contextlib.ExitStack) -> str | None:
    """`device` if it still is the image's, open until `held` is closed."""
    if device is None:
        return None
    status = bytearray(_LOOP_INFO64.size)
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        held.callback(os.close, fd)
        fcntl.ioctl(fd, _LOOP_GET_STATUS64, status)
    except OSError:
        return None
    wanted = image.stat()
    return device if _LOOP_INFO64.unpack(status)[:2] == (wanted.st_dev, wanted.st_ino) else None


def attach(image: Path, held: contextlib.ExitStack, *, readonly: bool = False) -> str:
    """A loop device for the image, open until `held` is closed: an unused one would free itself."""

    def opened(path: str | Path, flags: int) -> int:
        fd = os.open(path, flags | os.O_CLOEXEC)
        held.callback(os.close, fd)
        return fd

    access = os.O_RDONLY if readonly else os.O_RDWR
    always = _LO_FLAGS_AUTOCLEAR | (_LO_FLAGS_READ_ONLY if readonly else 0)
    control, file = opened("/dev/loop-control", os.O_RDWR), opened(image, access)
    for _ in range(_ATTEMPTS):
        number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
        device = f"/dev/loop{number}"
        if not os.path.exists(device):
            with contextlib.suppress(FileExistsError):
                os.mknod(device, 0o060600, os.makedev(_LOOP_MAJOR, number))
        loop = opened(device, access)
        # Direct I/O, so that nothing is cached twice; not every file system below can do it.
        # Not for a copy that is only read: it would first have to be written out, 50 ms for 50 MB.
        for flags in (always,) if readonly else (always | _LO_FLAGS_DIRECT_IO, always):
            info = _LOOP_INFO64.pack(0, 0, 0, 0, 0, 0, 0, 0, flags, b"", b"", b"", 0, 0)
            head = struct.pack("=II", file, BLOCK_BYTES if flags & _LO_FLAGS_DIRECT_IO else 0)
            with contextlib.suppress(OSError):
                fcntl.ioctl(loop, _LOOP_CONFIGURE, (head + info).ljust(_LOOP_CONFIG_BYTES, b"\0"))
                return device
    raise OSError("no free loop device")
