"""Limits, freezing and accounting by control groups; versions 1 and 2 behind one interface.

The OCI runtime makes a sandbox's groups (`<root>/<controller>/<parent>/<id>`, or `<root>/<parent>/<id>` in version 2); what
happens to them later is done here, by writing files, which takes a fiftieth of a call of the runtime.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from sandpty.isolation.driver import Stats
from sandpty.wire.verbs import Limits

CGROUP_ROOT = Path("/sys/fs/cgroup")
CPU_PERIOD_US = 100_000
FREEZE_TIMEOUT_S = 5.0
REMOVE_TIMEOUT_S = 5.0
_CONTROLLERS = ("memory", "pids", "cpu", "freezer", "devices")  # what the promises need, version 1
_UNIFIED = "unified"  # where the hybrid layout has version 2
_V2_CONTROLLERS = ("memory", "pids", "cpu")


class Cgroups(Protocol):
    """The groups of one data directory."""

    version: int
    parent: str

    def oci_path(self, sandbox_id: str) -> str:
        """What goes into the bundle as cgroupsPath."""

    def missing(self) -> list[str]:
        """Controllers that the promises need and that are not there."""

    def memory_and_swap(self) -> bool:
        """Whether swap can be limited together with memory."""

    def apply(self, sandbox_id: str, limits: Limits) -> None:
        """Change the limits of a running sandbox."""

    def freeze(self, sandbox_id: str) -> None:
        """Returns when every process stands still."""

    def thaw(self, sandbox_id: str) -> None: ...

    def kill(self, sandbox_id: str) -> None:
        """SIGKILL whatever is in the group."""

    def remove(self, sandbox_id: str) -> None:
        """Remove the empty groups; nothing there is fine."""

    def remove_parent(self) -> None:
        """Remove the groups that hold all sandboxes."""

    def stats(self, sandbox_id: str) -> Stats: ...


def _read(path: Path) -> str:
    return path.read_text(encoding="ascii").strip()


def _number(path: Path) -> int:
    try:
        return int(_read(path))
    except (OSError, ValueError):
        return 0


def _counters(path: Path) -> dict[str, int]:
    try:
        pairs = [line.split() for line in _read(path).splitlines()]
    except OSError:
        return {}
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _write(path: Path, value: object) -> None:
    # One write, no truncation: these are switches, not files.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(value).encode())
    finally:
        os.close(fd)


def _cpu_quota_us(limits: Limits) -> int:
    return max(1000, int(limits.cpu_count * CPU_PERIOD_US))


def _kill_listed(path: Path) -> None:
    try:
        pids = _read(path).split()
    except OSError:
        return
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), 9)


def _remove_tree(directory: Path) -> None:
    """rmdir bottom up: a group may hold groups. A group whose last process just ended may still be busy for a moment."""
    deadline = time.monotonic() + REMOVE_TIMEOUT_S
    for path, _, _ in os.walk(directory, topdown=False):
        while True:
            try:
                os.rmdir(path)
            except FileNotFoundError:
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.001)
            else:
                break


def _wait_for(reached: Iterable[bool], what: str) -> None:
    deadline = time.monotonic() + FREEZE_TIMEOUT_S
    for done in reached:
        if done:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} took longer than {FREEZE_TIMEOUT_S:g} s")
        time.sleep(0.0005)


class CgroupsV1:
    """One hierarchy per controller; also the hybrid layout, whose version 2 part is left alone."""

    version = 1

    def __init__(self, parent: str, root: Path = CGROUP_ROOT) -> None:
        self.parent = parent
        self._root = root

    def _path(self, controller: str, sandbox_id: str) -> Path:
        return self._root / controller / self.parent / sandbox_id

    def oci_path(self, sandbox_id: str) -> str:
        return f"/{self.parent}/{sandbox_id}"

    def missing(self) -> list[str]:
        return [name for name in _CONTROLLERS if not (self._root / name / "cgroup.procs").exists()]

    def memory_and_swap(self) -> bool:
        return (self._root / "memory" / "memory.memsw.limit_in_bytes").exists()

    def apply(self, sandbox_id: str, limits: Limits) -> None:
        wanted = limits.memory_mb * 1024 * 1024
        memory = self._path("memory", sandbox_id)
        names = ["memory.limit_in_bytes"]
        if self.memory_and_swap():
            names.append("memory.memsw.limit_in_bytes")
        # memory <= memory+swap holds at every moment: so the outer one first when growing.
        growing = wanted > _number(memory / "memory.limit_in_bytes")
        for name in reversed(names) if growing else names:
            _write(memory / name, wanted)
        _write(self._path("pids", sandbox_id) / "pids.max", limits.pids)
        _write(self._path("cpu", sandbox_id) / "cpu.cfs_quota_us", _cpu_quota_us(limits))

    def freeze(self, sandbox_id: str) -> None:
        switch = self._path("freezer", sandbox_id) / "freezer.state"
        _write(switch, "FROZEN")
        _wait_for(iter(lambda: _read(switch) == "FROZEN", None), "freezing")

    def thaw(self, sandbox_id: str) -> None:
        _write(self._path("freezer", sandbox_id) / "freezer.state", "THAWED")

    def kill(self, sandbox_id: str) -> None:
        _kill_listed(self._path("pids", sandbox_id) / "cgroup.procs")
        with contextlib.suppress(OSError):
            self.thaw(sandbox_id)  # a frozen process dies only when it is thawed

    def remove(self, sandbox_id: str) -> None:
        for controller in os.listdir(self._root):
            if controller == _UNIFIED:
                # Hidden from the runtime, which then takes the place for one more controller and makes plain files.
                shutil.rmtree(self._path(controller, sandbox_id), ignore_errors=True)
            else:
                _remove_tree(self._path(controller, sandbox_id))

    def remove_parent(self) -> None:
        for controller in os.listdir(self._root):
            with contextlib.suppress(OSError):
                os.rmdir(self._root / controller / self.parent)

    def stats(self, sandbox_id: str) -> Stats:
        memory = self._path("memory", sandbox_id)
        cpu_ns = _number(self._path("cpuacct", sandbox_id) / "cpuacct.usage")
        return Stats(
            memory_bytes=_number(memory / "memory.usage_in_bytes"),
            cpu_s=cpu_ns / 1e9,
            processes=_number(self._path("pids", sandbox_id) / "pids.current"),
            out_of_memory_kills=_counters(memory / "memory.oom_control").get("oom_kill", 0),
        )


class CgroupsV2:
    """The unified hierarchy."""

    version = 2

    def __init__(self, parent: str, root: Path = CGROUP_ROOT) -> None:
        self.parent = parent
        self._root = root

    def _path(self, sandbox_id: str) -> Path:
        return self._root / self.parent / sandbox_id

    def oci_path(self, sandbox_id: str) -> str:
        return f"/{self.parent}/{sandbox_id}"

    def missing(self) -> list[str]:
        try:
            present = _read(self._root / "cgroup.controllers").split()
        except OSError:
            present = []
        return [name for name in _V2_CONTROLLERS if name not in present]

    def memory_and_swap(self) -> bool:
        return True  # memory.swap.max is absent only where there is no swap to use

    def apply(self, sandbox_id: str, limits: Limits) -> None:
        group = self._path(sandbox_id)
        _write(group / "memory.max", limits.memory_mb * 1024 * 1024)
        with contextlib.suppress(FileNotFoundError):
            _write(group / "memory.swap.max", 0)
        _write(group / "pids.max", limits.pids)
        _write(group / "cpu.max", f"{_cpu_quota_us(limits)} {CPU_PERIOD_US}")

    def freeze(self, sandbox_id: str) -> None:
        group = self._path(sandbox_id)
        _write(group / "cgroup.freeze", 1)
        _wait_for(iter(lambda: _counters(group / "cgroup.events").get("frozen") == 1, None), "freezing")

    def thaw(self, sandbox_id: str) -> None:
        _write(self._path(sandbox_id) / "cgroup.freeze", 0)

    def kill(self, sandbox_id: str) -> None:
        group = self._path(sandbox_id)
        try:
            _write(group / "cgroup.kill", 1)
        except FileNotFoundError:  # before Linux 5.14, or no such group
            _kill_listed(group / "cgroup.procs")

    def remove(self, sandbox_id: str) -> None:
        _remove_tree(self._path(sandbox_id))

    def remove_parent(self) -> None:
        with contextlib.suppress(OSError):
            os.rmdir(self._root / self.parent)

    def stats(self, sandbox_id: str) -> Stats:
        group = self._path(sandbox_id)
        return Stats(
            memory_bytes=_number(group / "memory.current"),
            cpu_s=_counters(group / "cpu.stat").get("usage_usec", 0) / 1e6,
            processes=_number(group / "pids.current"),
            out_of_memory_kills=_counters(group / "memory.events").get("oom_kill", 0),
        )


def detect(parent: str, root: Path = CGROUP_ROOT) -> Cgroups:
    """Whichever version holds the controllers on this machine."""
    return CgroupsV2(parent, root) if (root / "cgroup.controllers").exists() else CgroupsV1(parent, root)
