"""A bound on what each sandbox writes: a sparse ext4 image of its own, attached to a loop device.

One file per sandbox: its size is the bound (`df` inside tells the truth), removing it is one unlink, and it needs
neither project quotas (which many kernels are built without) nor a file system that has them. Without a journal,
because nobody needs it: a sandbox that is running when the machine loses power is lost anyway, one paused to disk was
unmounted in order.

Where loop devices or mkfs.ext4 are missing, sandboxes write into a plain directory without a bound, and `detail` says
so.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from sandpty.disk_room import has_room
from sandpty.isolation import loop, syscalls

log = logging.getLogger(__name__)

IMAGE_NAME = "disk.img"
_BLANKS_MAX = 32  # sizes that are ready to be copied: clients choose sizes, and each takes a megabyte or more
_PROBE_MB = 16
RELEASE_TIMEOUT_S = 15.0
_TOOL_TIMEOUT_S = 120.0  # one of e2fsprogs
_COPY_TIMEOUT_S = 600.0
_PIECE_BYTES = 1024 * 1024
_FICLONE = 0x40049409
# noinit_itable: or the kernel would write all inode tables, which makes the sparse file big.
_STATE_OFFSET, _STATE_VALID = 1024 + 58, b"\1\0"  # s_state of ext4: EXT4_VALID_FS alone
_OPTIONS = "noinit_itable,errors=remount-ro"
_SHARED_OPTIONS = f"{_OPTIONS},discard"  # it lasts: what was removed from it is given back to the host
_JOURNAL_MB = 4  # the smallest; the default would take 64 MiB of the disk in time
_E2FSCK_MENDED = 1


class Disk:
    """Makes and mounts the images. `blank`: where empty images of each size are kept, to be copied."""

    def __init__(self, blank: Path) -> None:
        self._blank = blank
        self.limited = False
        self.detail = "none"
        self._devices: dict[Path, str] = {}  # of what is shared, while somebody uses it; checked before each use
        self._attaching: dict[Path, threading.Lock] = {}  # of what is shared: whoever repairs one holds up no other
        self._making = threading.Lock()

    def open(self, mountpoint: Path) -> None:
        """See what works here, by mounting an image on `mountpoint`. Never fails: see `detail`."""
        self._blank.mkdir(mode=0o700, exist_ok=True)
        # On a disk that is full now, sandboxes will be made again later, and not without a bound: then tried in memory.
        full = not has_room(self._blank)
        probe = (mountpoint.parent if full else self._blank) / "probe.img"
        try:
            if full:
                make_file_system(probe, _PROBE_MB * 1024 * 1024)
            else:
                self.copy_blank(probe, _PROBE_MB)
            mount(probe, mountpoint)
            syscalls.unmount(str(mountpoint))
            self.limited = True
            self.detail = "a sparse ext4 image for each sandbox"
        except OSError as error:
            self.detail = f"none: {error}"
        probe.unlink(missing_ok=True)
        log.info("disk quota: %s", self.detail)

    def make(self, directory: Path, disk_mb: int) -> None:
        """An empty image (or a plain directory) for a new sandbox. Raises OSError."""
        if not self.limited:
            (directory / "disk").mkdir(mode=0o700)
            return
        self.copy_blank(directory / IMAGE_NAME, disk_mb)

    def attach(self, directory: Path, mountpoint: Path) -> Path:
        """Where to write for the sandbox whose image is in `directory`: `mountpoint`, or the plain directory."""
        image = directory / IMAGE_NAME
        if not image.exists():
            return directory / "disk"
        _wait_released(image)
        mount(image, mountpoint)
        return mountpoint

    def attach_copy(self, directory: Path, mountpoint: Path) -> Path:
        """Where the copy in `directory` can be read: `mountpoint`, or the plain directory. Raises OSError."""
        image = directory / IMAGE_NAME
        if not image.exists():
            return directory / "disk"
        with contextlib.ExitStack() as held:
            # All that stand on one copy share one device, and so its cache.
            device = loop.reopened(self._devices.get(image), image, held) or loop.attach(image, held, readonly=True)
            flags = syscalls.MS_RDONLY | syscalls.MS_NODEV | syscalls.MS_NOSUID | syscalls.MS_NOATIME
            syscalls.mount(device, str(mountpoint), "ext4", flags)
            self._devices[image] = device
        return mountpoint

    def forget_copy(self, directory: Path) -> None:
        """It is being removed."""
        self._devices.pop(directory / IMAGE_NAME, None)
        self._attaching.pop(directory / IMAGE_NAME, None)

    def copy_blank(self, target: Path, disk_mb: int, *, journal: bool = False) -> None:
        """An empty image of that size. Raises OSError."""
        with self._opened_blank(disk_mb, journal) as blank:
            _copy_sparse(blank, target)

    def _opened_blank(self, disk_mb: int, journal: bool) -> BinaryIO:
        path = self._blank / f"{disk_mb}{'-journal' if journal else ''}.img"
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)  # those that are not in use go
            return open(path, "rb")
        with self._making:  # each once, also when several want it at the same time
            if not path.exists():
                make_file_system(path, disk_mb * 1024 * 1024, journal=journal)
                kept = sorted(self._blank.glob("*.img"), key=lambda each: each.stat().st_mtime, reverse=True)
                for old in kept[_BLANKS_MAX:]:
                    old.unlink()
            return open(path, "rb")

    # --- file systems that several sandboxes share ---

    def make_lasting(self, directory: Path, disk_mb: int) -> None:
        """As `make`, for what must survive a power cut. Raises OSError."""
        if not self.limited:
            (directory / "disk").mkdir(mode=0o700)
            return
        self.copy_blank(directory / IMAGE_NAME, disk_mb, journal=True)
        sync(directory)

    def attach_shared(self, directory: Path, mountpoint: Path) -> Path:
        """As `attach`, but others may have mounted it too: they all get the same file system. Raises OSError."""
        image = directory / IMAGE_NAME
        if not image.exists():
            return directory / "disk"
        # Two devices for one image would be two file systems that know nothing of each other: the end of both.
        with self._attaching.setdefault(image, threading.Lock()), contextlib.ExitStack() as held:
            device = loop.reopened(self._devices.get(image), image, held) or loop.reopened(loop.of(image), image, held)
            if device is None:
                check(directory)
                device = loop.attach(image, held)
            flags = syscalls.MS_NODEV | syscalls.MS_NOSUID | syscalls.MS_NOATIME
            syscalls.mount(device, str(mountpoint), "ext4", flags, _SHARED_OPTIONS)
            self._devices[image] = device
        return mountpoint

    def grow(self, directory: Path, disk_mb: int) -> None:
        """Let it hold more; nobody has mounted it. Raises OSError."""
        image = directory / IMAGE_NAME
        if not image.exists():
            return
        with self._attaching.setdefault(image, threading.Lock()):
            _wait_released(image)
            os.truncate(image, disk_mb * 1024 * 1024)
            _run_tool("e2fsck", "-f", "-p", str(image))
            _run_tool("resize2fs", str(image))


def exists(directory: Path) -> bool:
    """Whether the sandbox has a disk from an earlier run."""
    return (directory / IMAGE_NAME).exists() or (directory / "disk").exists()


def wait_released(directory: Path) -> None:
    """Until an ended sandbox's disk is written out. Raises OSError."""
    if (directory / IMAGE_NAME).exists():
        _wait_released(directory / IMAGE_NAME)


def _wait_released(image: Path) -> None:
    """The kernel unmounts an ended sandbox's disk a little later; two mounts of one image would destroy it."""
    deadline = time.monotonic() + RELEASE_TIMEOUT_S
    while (device := loop.of(image)) is not None:
        if time.monotonic() > deadline:
            raise OSError(errno.EBUSY, f"the sandbox's disk is still in use by {device}")
        time.sleep(0.002)


def used_bytes(directory: Path) -> int:
    """What the sandbox's image takes on the host; 0 without an image."""
    try:
        return (directory / IMAGE_NAME).stat().st_blocks * 512
    except OSError:
        return 0


def check(directory: Path) -> None:
    """Repair the image after the machine lost power, or after it was copied while it was mounted. Raises OSError."""
    image = directory / IMAGE_NAME
    if not image.exists():
        return
    _wait_released(image)
    program = shutil.which("e2fsck", path="/usr/sbin:/sbin")
    if program and not _clean(image):
        _ran([program, "-p", str(image)], _TOOL_TIMEOUT_S)


def _clean(image: Path) -> bool:
    """Whether it was unmounted in order and without errors, as its superblock says."""
    with open(image, "rb") as file:
        file.seek(_STATE_OFFSET)
        return file.read(2) == _STATE_VALID


def make_file_system(path: Path, size: int, *, journal: bool = False) -> None:
    """An empty image of so many bytes. Raises OSError."""
    new = path.with_suffix(f".{os.getpid()}")
    try:
        with open(new, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.truncate(size)
        kind = ["-O", "^resize_inode", "-J", f"size={_JOURNAL_MB}"] if journal else ["-O", "^has_journal,^resize_inode"]
        kind += ["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard"]
        _run_tool("mkfs.ext4", "-q", "-F", "-m", "0", "-b", str(loop.BLOCK_BYTES), *kind, str(new))
        os.rename(new, path)
    finally:
        new.unlink(missing_ok=True)


def _run_tool(name: str, *arguments: str) -> None:
    """One of e2fsprogs. Raises OSError."""
    path = shutil.which(name, path="/usr/sbin:/sbin:/usr/bin:/bin")
    if path is None:
        raise FileNotFoundError(f"{name} is not installed (Debian: apt-get install e2fsprogs)")
    status, words = _ran([path, *arguments], _TOOL_TIMEOUT_S)
    if status not in (0, _E2FSCK_MENDED if name == "e2fsck" else 0):
        raise OSError(_number_of(words), f"{name} fails", words)


def _ran(argv: Sequence[str], timeout_s: float) -> tuple[int, str]:
    """A program's exit status and its last words. Raises OSError."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired as error:
        raise OSError(errno.ETIMEDOUT, f"{Path(argv[0]).name} takes over {timeout_s:g} s") from error
    return done.returncode, (done.stderr.strip().splitlines() or ["it says nothing"])[-1]


def _number_of(words: str) -> int:
    """Which error a program means."""
    return errno.ENOSPC if "No space left" in words else errno.EIO


def copy(directory: Path, target: Path) -> None:
    """Copy the disk of the sandbox in `directory`, which nobody writes to at present. Raises OSError."""
    if (directory / IMAGE_NAME).exists():
        with open(directory / IMAGE_NAME, "rb") as image:
            _copy_sparse(image, target / IMAGE_NAME)
        return
    # Hard links, holes, extended attributes and overlayfs' own marks: cp keeps all of them.
    argv = ["cp", "--archive", "--reflink=auto", "--sparse=auto", "--", str(directory / "disk"), str(target / "disk")]
    status, words = _ran(argv, _COPY_TIMEOUT_S)
    if status != 0:
        raise OSError(_number_of(words), "cp fails", words)


def take(directory: Path, target: Path) -> None:
    """Move the disk of the ended sandbox in `directory` to `target`. Raises OSError."""
    name = IMAGE_NAME if (directory / IMAGE_NAME).exists() else "disk"
    if name == IMAGE_NAME:
        _wait_released(directory / name)
    os.rename(directory / name, target / name)


def sync(directory: Path) -> None:
    """Returns once a copy would survive a power cut. Raises OSError."""
    image = directory / IMAGE_NAME
    fd = os.open(image if image.exists() else directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if image.exists():
            os.fsync(fd)
        else:
            syscalls.syncfs(fd)
    finally:
        os.close(fd)


def _copy_sparse(read: BinaryIO, target: Path) -> None:
    """Copy the data of a sparse file and leave the holes; on file systems that can, share the blocks instead."""
    with open(target, "xb") as write:
        os.fchmod(write.fileno(), 0o600)
        with contextlib.suppress(OSError):
            fcntl.ioctl(write, _FICLONE, read.fileno())
            return
        copy_data(read.fileno(), write.fileno())


def copy_data(source: int, target: int) -> None:
    """The content of one file into another, which is empty; holes stay holes. Raises OSError."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            start = os.lseek(source, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data beyond this offset
                return
            raise
        at = os.lseek(source, start, os.SEEK_HOLE)
        _copy_range(source, target, start, at)


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        try:
            copied = os.copy_file_range(source, target, end - start, start, start)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            copied = 0
        start += copied or os.pwrite(target, os.pread(source, min(end - start, _PIECE_BYTES), start), start)


def mount(image: Path, mountpoint: Path) -> None:
    """Attach the image to a loop device and mount it; the device frees itself with the last unmount. Raises OSError."""
    with contextlib.ExitStack() as held:
        device = loop.attach(image, held)
        flags = syscalls.MS_NODEV | syscalls.MS_NOSUID | syscalls.MS_NOATIME
        syscalls.mount(device, str(mountpoint), "ext4", flags, _OPTIONS)
