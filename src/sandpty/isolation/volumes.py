"""Volumes: file systems that outlive sandboxes, mounted in any number of them at once.

Each is a sparse ext4 image of its own, as a sandbox's disk is (so its size is a bound that holds), but with a journal,
because it must survive a power cut. All sandboxes that mount it share one loop device and so one file system: what one
writes, the others read. On the disk a guest's uid n is VOLUME_UID_BASE + n; each sandbox's mount shifts that to the
sandbox's own range and back, so that everybody sees the same owners and nothing in there ever belongs to an account
of the host. Set-id bits and devices mean nothing on these mounts.

Nothing of the volume or the sandbox is trusted when one is mounted on the other: the way to the mount point is walked
one directory at a time without following links, and what is bound is a directory that we made and hold.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from sandpty import config
from sandpty.isolation import overlay, syscalls
from sandpty.isolation.disk import Disk
from sandpty.isolation.driver import Mount, Plan
from sandpty.isolation.idmap import IdRange
from sandpty.isolation.slots import Slots
from sandpty.wire.errors import SandptyError

_CONTENT = "content"  # beside the file system's own lost+found
_LOOK = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Volumes:
    """Makes volumes, and mounts them in the roots of sandboxes about to start. Its methods block, and raise OSError."""

    def __init__(self, disk: Disk, slots: Slots, stage: Path) -> None:
        self._disk = disk
        self._slots = slots
        self._stage = stage

    def make(self, directory: Path, disk_mb: int) -> None:
        self._disk.make_lasting(directory, disk_mb)
        mountpoint = self._stage / f"volume-{directory.name}"
        mountpoint.mkdir(mode=0o700)
        try:
            content = self._disk.attach_shared(directory, mountpoint) / _CONTENT
            content.mkdir()
            content.chmod(0o777)  # whoever a sandbox's programs run as: there is no other user to keep out
            owner = config.VOLUME_UID_BASE + config.VOLUME_USER
            os.chown(content, owner, owner)
        finally:
            overlay.unmount(mountpoint)
            mountpoint.rmdir()

    def mount(self, plan: Plan, ids: IdRange) -> None:
        """In the root that is mounted on the sandbox's stage. Raises also SandptyError bad_argument."""
        if not plan.mounts:
            return
        root = self._stage / plan.id / "root"
        userns = self._slots.shift(plan.slot, config.VOLUME_UID_BASE)
        try:
            for number, mount in enumerate(plan.mounts):
                mountpoint = self._stage / plan.id / f"volume{number}"
                mountpoint.mkdir(mode=0o700)
                content = self._disk.attach_shared(mount.directory, mountpoint) / _CONTENT
                place = _place(root, mount, ids)
                try:
                    syscalls.mount_shared(str(content), place, userns, read_only=mount.read_only)
                finally:
                    os.close(place)
        finally:
            os.close(userns)

    def unstage(self, plan: Plan) -> None:
        """What `mount` left outside of the root. Nothing there is fine."""
        for number in range(len(plan.mounts)):
            overlay.unmount(self._stage / plan.id / f"volume{number}")


def _place(root: Path, mount: Mount, ids: IdRange) -> int:
    """The directory at the mount's path, made where it is missing, as a descriptor that the caller closes."""
    with contextlib.ExitStack() as opened:
        directory = os.open(root, _LOOK)
        opened.callback(os.close, directory)
        for name in mount.path.strip("/").split("/"):
            try:
                os.mkdir(name, 0o755, dir_fd=directory)
                os.chown(name, ids.base, ids.base, dir_fd=directory, follow_symlinks=False)
                os.chmod(name, 0o755, dir_fd=directory)  # not what the umask makes of it
            except FileExistsError:
                pass  # made by a template, a guest, or us when it started for the first time
            try:
                directory = os.open(name, _LOOK, dir_fd=directory)
            except NotADirectoryError:
                text = f"a volume cannot be mounted at {mount.path[:200]}: {name[:100]!r} is a link or a file there"
                raise SandptyError("bad_argument", text) from None
            opened.callback(os.close, directory)
        return os.dup(directory)
