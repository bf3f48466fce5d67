"""Copies that sandboxes stand on: their trees, mounted once for all that need them, and shifted to each one's owners.

A copy's disk image stays mounted, because attaching it takes a quarter of a cold start. A copy that was merged
(merging.py) belongs to the ids that templates' trees belong to, so that a sandbox's own user namespace shifts it;
another copy belongs to the range of the sandbox that wrote it, and needs a namespace made for the pair.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from sandpty import config
from sandpty.isolation import disk, merging, overlay, syscalls
from sandpty.isolation.driver import MERGED_BASE, Copy, Plan, Started
from sandpty.isolation.failures import failure
from sandpty.isolation.idmap import range_of
from sandpty.isolation.slots import Slots
from sandpty.wire.errors import SandptyError


class Copies:
    """`place`: a directory for mount points of ours. Coroutines raise SandptyError, the others OSError."""

    def __init__(self, tag: str, disks: disk.Disk, slots: Slots, place: Path) -> None:
        self._tag = tag
        self._disks = disks
        self._slots = slots
        self._place = place
        self._mounted: OrderedDict[Path, Path] = OrderedDict()  # by directory, the least lately used first
        self._number = 0
        self._lock = threading.Lock()

    def shifted(self, plan: Plan, userns_fd: int, opened: contextlib.ExitStack) -> list[overlay.Shifted]:
        """The plan's copies, readable, and owned by the sandbox whose user namespace it is. Blocks."""
        namespaces = {MERGED_BASE: userns_fd}
        shifted: list[overlay.Shifted] = []
        for copy in plan.copies:
            if copy.ids_base not in namespaces:
                namespaces[copy.ids_base] = self._slots.shift(plan.slot, copy.ids_base)
                opened.callback(os.close, namespaces[copy.ids_base])
            shifted.append(overlay.Shifted(self._tree(copy.directory), namespaces[copy.ids_base]))
        return shifted

    def _tree(self, directory: Path) -> Path:
        with self._lock:
            if directory in self._mounted:
                self._mounted.move_to_end(directory)
                return self._mounted[directory]
            self._number += 1
            mountpoint = self._place / str(self._number)
            mountpoint.mkdir(mode=0o700, parents=True)
            try:
                tree = self._disks.attach_copy(directory, mountpoint)
            except OSError:
                mountpoint.rmdir()
                raise
            if tree != mountpoint:  # a plain directory
                mountpoint.rmdir()
                return tree
            self._mounted[directory] = mountpoint
            while len(self._mounted) > config.COPIES_MOUNTED_MAX:
                _unmount(self._mounted.popitem(last=False)[1])  # who stands on it has mounts of its own
            return mountpoint

    def forget(self, directory: Path) -> None:
        """It is about to be removed."""
        with self._lock:
            mountpoint = self._mounted.pop(directory, None)
            if mountpoint is not None:
                _unmount(mountpoint)
        self._disks.forget_copy(directory)

    # --- make ---

    async def copy(self, plan: Plan, started: Started, directory: Path) -> Copy:
        """See Driver.copy."""
        try:
            await asyncio.to_thread(_copy, plan, started, directory)
        except OSError as error:
            raise failure("the disk cannot be copied", error) from error
        return Copy(directory, range_of(self._tag, plan.slot).base, plan.id)

    async def take(self, plan: Plan, directory: Path) -> Copy:
        """See Driver.take."""
        try:
            await asyncio.to_thread(disk.take, plan.directory, directory)
        except OSError as error:
            raise failure("the disk cannot be taken", error) from error
        return Copy(directory, range_of(self._tag, plan.slot).base, plan.id)

    async def merge(self, copies: Sequence[Copy], directory: Path, *, layers: int, disk_mb: int) -> Copy:
        """See Driver.merge."""
        await merging.run(directory, 2 * disk_mb, layers, copies)
        return Copy(directory, MERGED_BASE, copies[0].sandbox_id)

    async def sync(self, directory: Path) -> None:
        """See Driver.sync_copy."""
        try:
            await asyncio.to_thread(disk.sync, directory)
        except OSError as error:
            raise SandptyError("no_space", f"the copy cannot be written out: {error.strerror}") from error

    def close(self) -> None:
        """Unmount all."""
        with self._lock:
            for mountpoint in self._mounted.values():
                _unmount(mountpoint)
            self._mounted.clear()


def _copy(plan: Plan, started: Started, directory: Path) -> None:
    if started.pid:
        # Of its overlay, and so of the disk below it. Opened through init's root, which no guest can change.
        root = os.open(f"/proc/{started.pid}/root", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.syncfs(root)
        finally:
            os.close(root)
    else:
        disk.wait_released(plan.directory)
    disk.copy(plan.directory, directory)


def _unmount(mountpoint: Path) -> None:
    overlay.unmount(mountpoint)
    with contextlib.suppress(OSError):
        mountpoint.rmdir()
