"""Where the roots of sandboxes about to start are put together: disk, layers, copies, volumes, a few files.

Mount points, the agent and the boot ids lie in a tmpfs that only our mount namespace has. The runtime looks at them as
the sandbox's root, who may not pass through the data directory, and no path of ours shows inside. A sandbox that runs
has its own copy of the mounts.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Sequence
from ipaddress import IPv4Address
from pathlib import Path

from sandpty.isolation import disk, overlay, syscalls
from sandpty.isolation.copies import Copies
from sandpty.isolation.disk import Disk
from sandpty.isolation.driver import Plan
from sandpty.isolation.idmap import range_of
from sandpty.isolation.slots import Prepared
from sandpty.isolation.spares import SIZE_MB
from sandpty.isolation.volumes import Volumes

STAGE_BYTES = 16 * 1024 * 1024


class Stage:
    """`path`: the tmpfs. Its methods block, and raise OSError."""

    def __init__(self, path: Path, tag: str, disks: Disk, copies: Copies, volumes: Volumes) -> None:
        self.path = path
        self.agent = path / "agent"
        self.probe = path / "probe"
        self._tag = tag
        self._disk = disks
        self._copies = copies
        self._volumes = volumes

    def open(self, agent: Path) -> None:
        """`agent`: the program, to be put where sandboxes find it."""
        self.path.mkdir(exist_ok=True)
        if not os.path.ismount(self.path):
            syscalls.mount("tmpfs", str(self.path), "tmpfs", syscalls.MS_NODEV, f"mode=0711,size={STAGE_BYTES}")
        overlay.unmount_below(self.path)  # what a killed supervisor was about to use
        for left in self.path.iterdir():
            overlay.remove_mountpoints(left)
        self.probe.mkdir()
        self.agent.unlink(missing_ok=True)
        shutil.copyfile(agent, self.agent)
        self.agent.chmod(0o555)

    def close(self) -> None:
        """No sandbox is left. Never raises."""
        with contextlib.suppress(OSError):
            syscalls.unmount(str(self.path))
        with contextlib.suppress(OSError):
            self.path.rmdir()

    # --- one sandbox ---

    def root(self, plan: Plan) -> Path:
        return self.path / plan.id / "root"

    def boot_id(self, plan: Plan) -> Path:
        return self.path / plan.id / "boot_id"

    def prepare(self, plan: Plan, prepared: Prepared, name_servers: Sequence[IPv4Address]) -> None:
        """Mount its root, and write what is in it of ours."""
        ids = range_of(self._tag, plan.slot)
        place = self.path / plan.id
        for directory in (place, place / "root", place / "disk"):
            directory.mkdir()
            directory.chmod(0o711)  # not what the umask makes of it
        self.boot_id(plan).write_text(plan.boot_id + "\n", encoding="ascii")
        self.boot_id(plan).chmod(0o444)
        fresh = not disk.exists(plan.directory)
        if fresh and prepared.spare is not None and plan.limits.disk_mb == SIZE_MB:
            writable = prepared.spare.move_to(plan.directory)
        else:
            if fresh:
                self._disk.make(plan.directory, plan.limits.disk_mb)
            else:
                disk.check(plan.directory)
            writable = self._disk.attach(plan.directory, place / "disk")
        overlay.make_writable(writable, plan.layers, ids, hide=not plan.copies)
        with contextlib.ExitStack() as opened:
            below = self._copies.shifted(plan, prepared.namespaces.user, opened)
            if fresh:
                overlay.write_files(writable, _files(plan, below, name_servers), ids)
            overlay.mount(place / "root", writable, plan.layers, prepared.namespaces.user, below)
        self._volumes.mount(plan, ids)

    def clear(self, plan: Plan) -> None:
        """Of what is there of it. Nothing there is fine."""
        overlay.unmount(self.root(plan))
        self._volumes.unstage(plan)
        overlay.unmount(self.path / plan.id / "disk")
        overlay.remove_mountpoints(self.path / plan.id)


def _files(plan: Plan, below: Sequence[overlay.Shifted], name_servers: Sequence[IPv4Address]) -> dict[str, str]:
    names = "".join(f"nameserver {address}\n" for address in name_servers)
    hosts = f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 {plan.id}\n"
    if plan.copies:  # the guest may have added to it
        kept = overlay.read_file([copy.tree for copy in below], "/etc/hosts")
        hosts = hosts if kept is None else kept.replace(plan.copies[0].sandbox_id, plan.id)
    return {"/etc/hostname": plan.id + "\n", "/etc/hosts": hosts, "/etc/resolv.conf": names}
